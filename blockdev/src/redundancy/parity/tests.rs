use super::*;

/// Deterministic bytes (SplitMix64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A whole stripe by the definition of P and Q.
fn stripe(k: usize, m: usize, len: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut columns: Vec<Vec<u8>> = (0..k).map(|i| noise(seed * 1000 + i as u64, len)).collect();
    let sum = |weight: &dyn Fn(usize) -> u8| -> Vec<u8> {
        (0..len).map(|at| (0..k).fold(0, |sum, i| sum ^ gf::mul(weight(i), columns[i][at]))).collect()
    };
    let parity = [sum(&|_| 1), sum(&gf::power)];
    columns.extend(parity.into_iter().take(m));
    columns
}

fn refs(columns: &[Vec<u8>]) -> Vec<&[u8]> {
    columns.iter().map(Vec::as_slice).collect()
}

/// Lengths around every step of every kernel.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=70).chain([127, 128, 129, 191, 255, 256, 257, 300, 511, 512, 513, 1000, 4095, 4096, 4097])
}

#[test]
fn a_known_stripe() {
    let data: [&[u8]; 3] = [&[0x01, 0x80, 0xFF], &[0x02, 0x80, 0x00], &[0x04, 0x80, 0x01]];
    let (mut p, mut q) = ([0; 3], [0; 3]);
    encode(&data, Some(&mut p), Some(&mut q));
    assert_eq!(p, [0x07, 0x80, 0xFE]);
    // 1 + 2*2 + 4*4; 0x80 + (2*0x80 = 0x1D) + (4*0x80 = 0x3A); 0xFF + 0 + 4.
    assert_eq!(q, [0x01 ^ 0x04 ^ 0x10, 0x80 ^ 0x1D ^ 0x3A, 0xFB]);
}

#[test]
fn every_kernel_encodes_like_the_definition_at_every_length() {
    let kernels = Kernel::available();
    assert!(kernels.contains(&Kernel::best()));
    for len in lengths() {
        for k in [1, 2, 3, 4, 8, 16, MAX_DATA] {
            let good = stripe(k, 2, len, len as u64);
            let data = refs(&good[..k]);
            for &kernel in &kernels {
                let (mut p, mut q) = (vec![0xAA; len], vec![0xAA; len]);
                encode_with(kernel, &data, Some(&mut p), Some(&mut q));
                assert!(p == good[k] && q == good[k + 1], "{kernel:?} {k}+2 of {len}");
                let (mut p, mut q) = (vec![0xAA; len], vec![0xAA; len]);
                encode_with(kernel, &data, Some(&mut p), None);
                encode_with(kernel, &data, None, Some(&mut q));
                assert!(p == good[k] && q == good[k + 1], "{kernel:?} {k}+1 of {len}");
            }
        }
    }
}

#[test]
fn every_kernel_combines_like_the_definition_at_every_length_and_alignment() {
    for len in lengths() {
        for offset in [0, 1, 7] {
            let columns: Vec<Vec<u8>> = (0..5).map(|i| noise(77 + i, len + offset)).collect();
            let coefficients = [0, 1, 2, 0x8E, 0xFF];
            let terms: Vec<(u8, &[u8])> = coefficients.into_iter().zip(columns.iter().map(|c| &c[offset..])).collect();
            let good: Vec<u8> =
                (0..len).map(|at| terms.iter().fold(0, |sum, (c, column)| sum ^ gf::mul(*c, column[at]))).collect();
            for kernel in Kernel::available() {
                let mut out = vec![0x55; len + offset];
                kernel.combine(&terms, &mut out[offset..]);
                assert!(out[offset..] == good, "{kernel:?} {len} at {offset}");
            }
        }
    }
}

/// Every set of at most `m` lost columns.
fn erasures(columns: usize, m: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    if m >= 1 {
        all.extend((0..columns).map(|a| vec![a]));
    }
    if m >= 2 {
        all.extend((0..columns).flat_map(|a| (a + 1..columns).map(move |b| vec![a, b])));
    }
    all
}

#[test]
fn every_erasure_of_every_width_is_reconstructed_by_every_kernel() {
    let len = 259;
    for k in 1..=16 {
        for m in 0..=MAX_PARITY {
            let good = stripe(k, m, len, (k * 3 + m) as u64);
            for lost in erasures(k + m, m) {
                for kernel in Kernel::available() {
                    let mut rooms = vec![vec![0xEE; len]; lost.len()];
                    let mut left = rooms.iter_mut();
                    let mut columns: Vec<Column<'_>> = (0..k + m)
                        .map(|i| match lost.contains(&i) {
                            true => Column::Wanted(left.next().unwrap()),
                            false => Column::Present(&good[i]),
                        })
                        .collect();
                    reconstruct_with(kernel, &mut columns, k, m).unwrap();
                    for (room, &i) in rooms.iter().zip(&lost) {
                        assert!(*room == good[i], "{kernel:?} {k}+{m} lost {lost:?}: column {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_widest_stripe_survives_any_two_losses() {
    let (k, m, len) = (MAX_DATA, 2, 67);
    let good = stripe(k, m, len, 5);
    for lost in erasures(k + m, m) {
        let present: Vec<bool> = (0..k + m).map(|i| !lost.contains(&i)).collect();
        for &wanted in &lost {
            let mut out = vec![0; len];
            Recovery::plan(k, m, &present, wanted).unwrap().apply(|i| &good[i], &mut out);
            assert!(out == good[wanted], "lost {lost:?}: column {wanted}");
        }
    }
}

#[test]
fn reconstruction_longer_than_a_cache_block_and_of_odd_length() {
    let (k, m, len) = (4, 2, 3 * BLOCKING + 17);
    let good = stripe(k, m, len, 9);
    let (mut a, mut b) = (vec![0; len], vec![0; len]);
    let mut columns: Vec<Column<'_>> = good.iter().map(|c| Column::Present(c)).collect();
    columns[1] = Column::Wanted(&mut a);
    columns[5] = Column::Wanted(&mut b);
    reconstruct(&mut columns, k, m).unwrap();
    assert!(a == good[1] && b == good[5]);
}

#[test]
fn one_wanted_column_of_two_missing_is_enough() {
    let (k, m, len) = (4, 2, 100);
    let good = stripe(k, m, len, 11);
    let mut out = vec![0; len];
    let mut columns: Vec<Column<'_>> = good.iter().map(|c| Column::Present(c)).collect();
    columns[0] = Column::Missing;
    columns[2] = Column::Wanted(&mut out);
    reconstruct(&mut columns, k, m).unwrap();
    assert_eq!(out, good[2]);
}

#[test]
fn a_degraded_read_reads_k_columns_and_not_q() {
    let mut present = vec![true; 10];
    present[3] = false;
    let plan = Recovery::plan(8, 2, &present, 3).unwrap();
    assert_eq!(plan.wanted(), 3);
    assert_eq!(plan.sources().collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 7, 8]);
    present[8] = false;
    let plan = Recovery::plan(8, 2, &present, 3).unwrap();
    assert_eq!(plan.sources().collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 7, 9]);
}

#[test]
fn a_mirror_reads_one_copy() {
    for m in 1..=2 {
        let mut present = vec![true; 1 + m];
        present[0] = false;
        let plan = Recovery::plan(1, m, &present, 0).unwrap();
        assert_eq!(plan.sources().collect::<Vec<_>>(), [1]);
    }
    let plan = Recovery::plan(1, 2, &[false, false, true], 0).unwrap();
    assert_eq!(plan.sources().collect::<Vec<_>>(), [2]);
}

#[test]
fn parity_is_recomputed_past_a_lost_data_column() {
    let good = stripe(3, 2, 40, 21);
    // D1 lost: P comes from Q, Q from P.
    for (lost, from) in [(3, 4), (4, 3)] {
        let present: Vec<bool> = (0..5).map(|i| i != 1 && i != lost).collect();
        let plan = Recovery::plan(3, 2, &present, lost).unwrap();
        assert_eq!(plan.sources().collect::<Vec<_>>(), [0, 2, from]);
        let mut out = vec![0; 40];
        plan.apply(|i| &good[i], &mut out);
        assert_eq!(out, good[lost]);
    }
}

#[test]
fn too_many_losses_are_refused() {
    let error = Recovery::plan(4, 2, &[false, false, false, true, true, true], 0).unwrap_err();
    assert_eq!(error, NotEnough { present: 3, needed: 4 });
    assert_eq!(error.to_string(), "3 columns of the stripe are left, 4 are needed");
    assert!(Recovery::plan(4, 1, &[false, false, true, true, true], 1).is_err());
    assert!(Recovery::plan(4, 0, &[false, true, true, true], 0).is_err());
    assert!(Recovery::plan(1, 0, &[false], 0).is_err());
    assert!(Recovery::plan(2, 2, &[false, true, false, false], 0).is_err());
    // A lost parity column cannot be given when three columns are gone.
    assert!(Recovery::plan(4, 2, &[false, false, true, true, false, true], 4).is_err());
    let mut out = [0; 4];
    let mut columns = [Column::Wanted(&mut out), Column::Missing, Column::Present(&[0; 4])];
    assert!(reconstruct(&mut columns, 2, 1).is_err());
}

#[test]
fn verify_finds_any_flipped_bit() {
    for len in [1, 64, 100, BLOCKING + 5] {
        let good = stripe(4, 2, len, 31);
        let mut bad = good.clone();
        assert!(verify(&refs(&bad[..4]), Some(&bad[4]), Some(&bad[5])));
        for column in 0..6 {
            for at in [0, len / 2, len - 1] {
                bad[column][at] ^= 0x10;
                let ok = |p: bool, q: bool| verify(&refs(&bad[..4]), p.then_some(&bad[4]), q.then_some(&bad[5]));
                assert!(!ok(true, true));
                assert_eq!(ok(true, false), column == 5);
                assert_eq!(ok(false, true), column == 4);
                bad[column][at] ^= 0x10;
            }
        }
    }
    assert!(verify(&[], None, None));
    assert!(!verify(&[&[1, 2]], Some(&[1]), None));
}
