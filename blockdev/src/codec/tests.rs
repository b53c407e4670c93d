use super::*;

/// Deterministic random numbers (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// Lengths of frames of blocks and of small metadata.
const LENGTHS: [usize; 9] = [1, 15, 100, 511, 4096, 8192, 12288, 16384, FRAME_MAX];
const COMPRESSIONS: [Compression; 3] = [Compression::Off, Compression::Lz4, Compression::Zstd];

fn text(random: &mut Random, len: usize) -> Vec<u8> {
    let words = ["extent ", "stripe ", "of ", "the ", "parity ", "segment ", "is ", "written ", "once ", "block\n"];
    let mut out: Vec<u8> = Vec::new();
    while out.len() < len {
        out.extend_from_slice(words[random.below(words.len())].as_bytes());
    }
    out.truncate(len);
    out
}

/// This test's own program: machine code, symbols, tables.
fn program() -> Vec<u8> {
    std::fs::read(std::env::current_exe().unwrap()).unwrap()
}

/// Data of many kinds; those marked true compress 2:1 at least from one block on.
fn samples(len: usize) -> Vec<(&'static str, bool, Vec<u8>)> {
    let mut random = Random(len as u64);
    let noise = random.bytes(len);
    let half = len / 2;
    let mut out =
        vec![("zeroes", true, vec![0; len]), ("text", true, text(&mut random, len)), ("noise", false, noise.clone())];
    let mut front = noise.clone();
    front[..len - half].fill(0);
    out.push(("zeroes then noise", true, front));
    let mut back = noise.clone();
    back[half..].fill(0);
    out.push(("noise then zeroes", true, back));
    for period in [2, 16, 64, 128, 256, 512] {
        let striped = noise.iter().enumerate().map(|(i, &b)| if i % period < period / 2 { b } else { 0 }).collect();
        out.push(("stripes of zeroes and noise", period >= 16, striped));
    }
    let mut twice = noise[..len - half].to_vec();
    twice.extend_from_slice(&noise[..half]);
    out.push(("noise twice", len <= FRAME_MAX, twice));
    let hexadecimal = noise.iter().map(|b| b"0123456789abcdef"[usize::from(b & 15)]).collect();
    out.push(("hexadecimal digits", false, hexadecimal));
    let counters = (0..len.div_ceil(4)).flat_map(|i| (i as u32).to_be_bytes()).take(len).collect();
    out.push(("counters", len <= 16384, counters));
    // Records drawn from few distinct ones: evenly distributed bytes, all of it repetition.
    let records: Vec<Vec<u8>> = (0..len.div_ceil(32 * 6)).map(|_| random.bytes(32)).collect();
    let drawn = (0..len.div_ceil(32)).flat_map(|_| records[random.below(records.len())].clone()).take(len).collect();
    out.push(("repeated records", true, drawn));
    out
}

#[test]
fn everything_comes_back_and_nothing_grows() {
    let mut compressor = Compressor::new();
    for len in LENGTHS {
        for (name, _, raw) in samples(len) {
            for compression in COMPRESSIONS {
                let mut out = b"before".to_vec();
                let codec = compressor.compress(compression, &raw, &mut out);
                let stored = out.len() - 6;
                let allowed: &[Codec] = match compression {
                    Compression::Off => &[Codec::Raw],
                    Compression::Lz4 => &[Codec::Raw, Codec::Lz4],
                    Compression::Zstd => &[Codec::Raw, Codec::Lz4, Codec::Zstd],
                };
                assert!(allowed.contains(&codec));
                match codec {
                    Codec::Raw => assert_eq!(stored, len),
                    _ => assert!(stored <= len - len / SAVING_MIN, "{name} {len} by {codec:?}: {stored}"),
                }
                let mut back = vec![1; len];
                decompress(codec, &out[6..], &mut back).unwrap();
                assert!(out.starts_with(b"before") && back == raw, "{name} {len}");
            }
        }
    }
}

#[test]
fn an_empty_frame() {
    for compression in COMPRESSIONS {
        let mut out = vec![];
        assert_eq!(Compressor::new().compress(compression, &[], &mut out), Codec::Raw);
        decompress(Codec::Raw, &out, &mut []).unwrap();
    }
}

#[test]
fn data_that_compresses_two_to_one_is_never_skipped() {
    let mut compressor = Compressor::new();
    for len in [4096, 8192, 16384, FRAME_MAX] {
        for (name, compressible, raw) in samples(len) {
            let mut out = vec![];
            let codec = compressor.compress(Compression::Zstd, &raw, &mut out);
            if compressible {
                // Zeroes and noise by halves make 2:1 less what the frame itself costs.
                assert!(
                    codec != Codec::Raw && out.len() <= len / 2 + len / 16,
                    "{name} {len}: {codec:?} {}",
                    out.len()
                );
            }
        }
    }
}

#[test]
fn what_zstandard_would_save_is_saved() {
    let mut random = Random(5);
    let (mut plain, mut compressor) = (Compressor::new(), Compressor::new());
    let (mut chosen, mut stored, mut best) = ([0; 3], 0, 0);
    for round in 0..3000 {
        // Random mixtures of noise, repetitions of earlier bytes of this frame, constants and text.
        let len = [4096, 8192, 16384][round % 3];
        let mut raw: Vec<u8> = Vec::new();
        while raw.len() < len {
            let scale = random.below(10);
            let part = 1 + random.below(4 << scale);
            match random.below(8) {
                0..4 => raw.extend(random.bytes(part)),
                4..6 if !raw.is_empty() => {
                    let from = random.below(raw.len());
                    let part = part.min(raw.len() - from);
                    raw.extend_from_within(from..from + part);
                }
                6 => raw.extend(std::iter::repeat_n(random.next() as u8, part)),
                _ => raw.extend(text(&mut random, part)),
            }
        }
        raw.truncate(len);
        let mut room = vec![0; len * 2];
        let zstandard = plain.zstd.compress2(&mut room[..], &raw).unwrap();
        let mut out = vec![];
        let codec = compressor.compress(Compression::Zstd, &raw, &mut out);
        chosen[codec as usize] += 1;
        stored += out.len();
        best += zstandard.min(len);
        assert!(out.len() <= zstandard + len / 4, "round {round}: {} by {codec:?}, {zstandard} of {len}", out.len());
    }
    assert!(stored * 100 <= best * 101, "{stored} instead of {best}");
    assert!(chosen.iter().all(|&n| n > 20), "the mixtures are of all kinds: {chosen:?}");
}

#[test]
fn blocks_that_are_partly_noise_and_partly_constant_are_left_to_lz4() {
    let mut random = Random(6);
    let mut compressor = Compressor::new();
    for len in [4096, 8192, 16384, FRAME_MAX] {
        for _ in 0..100 {
            let mut raw = random.bytes(len);
            // As fio makes them, and as a page that holds something compressed or encrypted.
            raw.chunks_mut(BLOCK_SIZE).for_each(|block| block[BLOCK_SIZE / 2 - 80..].fill(0));
            let mut out = vec![];
            let codec = compressor.compress(Compression::Zstd, &raw, &mut out);
            assert!(codec == Codec::Lz4 && out.len() <= len / 2, "{len}: {} by {codec:?}", out.len());
        }
    }
}

#[test]
fn programs_are_left_to_zstandard() {
    // What the machine built this time: an odd frame may be noise, or a table for which both do the same.
    let program = program();
    let (mut frames, mut others, mut stored, mut best, mut whole) = (0, 0, 0, 0, 0);
    let (mut plain, mut compressor) = (Compressor::new(), Compressor::new());
    for raw in program.chunks_exact(16384).take(200) {
        let mut room = vec![0; raw.len() * 2];
        let zstandard = plain.zstd.compress2(&mut room[..], raw).unwrap().min(raw.len());
        let mut out = vec![];
        let codec = compressor.compress(Compression::Zstd, raw, &mut out);
        frames += 1;
        others += usize::from(codec != Codec::Zstd && zstandard * 8 < raw.len() * 7);
        stored += out.len();
        best += zstandard;
        whole += raw.len();
    }
    assert!(frames > 64 && best * 3 < whole * 2, "a program is known to compress: {best} of {whole}");
    assert!(stored * 1000 <= best * 1005, "{stored} instead of {best}");
    assert!(others * 20 < frames, "{others} of {frames}");
}

#[test]
fn noise_is_skipped() {
    let mut random = Random(9);
    for len in [4096, 8192, 16384, FRAME_MAX] {
        for _ in 0..100 {
            let raw = random.bytes(len);
            assert!(repetitions_only(&raw, &mut vec![]).is_some(), "{len}");
        }
    }
}

#[test]
fn a_mutated_frame_never_panics() {
    let mut random = Random(3);
    let mut compressor = Compressor::new();
    for compression in [Compression::Lz4, Compression::Zstd] {
        for round in 0..3000 {
            let len = LENGTHS[random.below(LENGTHS.len() - 2)];
            let all = samples(len);
            let raw = &all[round % all.len()].2;
            let mut stored = vec![];
            let codec = compressor.compress(compression, raw, &mut stored);
            for _ in 0..=random.below(4) {
                let at = random.below(stored.len().max(1));
                match random.below(4) {
                    0 => stored.truncate(at),
                    1 => stored.insert(at.min(stored.len()), random.next() as u8),
                    _ if at < stored.len() => stored[at] ^= 1 << random.below(8),
                    _ => {}
                }
            }
            let raw_len = if random.below(4) == 0 { random.below(FRAME_MAX + 10) } else { len };
            let codec = if random.below(4) == 0 { Codec::try_from(random.below(3) as u8).unwrap() } else { codec };
            let mut out = vec![7; raw_len];
            if let Err(error) = decompress(codec, &stored, &mut out) {
                assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
            }
        }
    }
}

#[test]
fn noise_as_a_frame_never_panics() {
    let mut random = Random(4);
    for _ in 0..5000 {
        let len = random.below(300);
        let data = random.bytes(len);
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            let whole = decompress(codec, &data, &mut [0; 4096]).is_ok();
            assert!(!whole || codec != Codec::Raw);
        }
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let mut stored = vec![];
    let codec = Compressor::new().compress(Compression::Zstd, &[5; 4096], &mut stored);
    assert_eq!(codec, Codec::Zstd);
    let message = |codec, data: &[u8], len| decompress(codec, data, &mut vec![0; len]).unwrap_err().to_string();
    assert!(message(codec, &stored, 8192).ends_with("holds 4096 bytes"));
    assert!(message(codec, &stored, FRAME_MAX + 1).ends_with("longer than a frame can be"));
    assert!(message(Codec::Raw, &stored, 4096).ends_with("lengths differ"));
    assert!(message(codec, &stored, 100).starts_with("Zstd frame of "));
    assert_eq!(Codec::try_from(3).unwrap_err().to_string(), "codec 3 is unknown");
}

#[test]
fn numbers_on_disk() {
    for (codec, number) in [(Codec::Raw, 0), (Codec::Lz4, 1), (Codec::Zstd, 2)] {
        assert_eq!(codec as u8, number);
        assert_eq!(Codec::try_from(number).unwrap(), codec);
    }
}

#[test]
fn frames_of_the_first_format_still_decompress() {
    // Window of 16 KiB; one last block: 100 times 0x41.
    let zstd = [0x00, 0x20, 0x23, 0x03, 0x00, 0x41];
    // One literal, 94 bytes from one byte back, five literals.
    let lz4 = [0x1F, 0x41, 0x01, 0x00, 0x4B, 0x50, 0x41, 0x41, 0x41, 0x41, 0x41];
    for (codec, data) in [(Codec::Zstd, &zstd[..]), (Codec::Lz4, &lz4[..])] {
        let mut out = [0; 100];
        decompress(codec, data, &mut out).unwrap();
        assert_eq!(out, [0x41; 100], "{codec:?}");
    }
}

#[test]
fn other_levels_give_frames_of_the_same_format() {
    let raw = text(&mut Random(1), 16384);
    let mut sizes = vec![];
    for level in [-5, 1, 9, 19, 1000] {
        let mut out = vec![];
        assert_eq!(Compressor::with_level(level).compress(Compression::Zstd, &raw, &mut out), Codec::Zstd);
        let mut back = vec![0; raw.len()];
        decompress(Codec::Zstd, &out, &mut back).unwrap();
        assert_eq!(back, raw);
        sizes.push(out.len());
    }
    assert!(sizes[3] < sizes[0], "{sizes:?}");
}

#[test]
fn zero_means_every_byte() {
    assert!(is_zero(&[]));
    for len in [1, 7, 255, 256, 257, 4096, 16384] {
        let mut bytes = vec![0; len];
        assert!(is_zero(&bytes));
        for at in 0..len {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "{at} of {len}");
            bytes[at] = 0;
        }
    }
}

#[test]
fn fingerprints_are_xxh3_128() {
    assert_eq!(fingerprint(&[]), 0x99AA_06D3_0147_98D8_6001_C324_468D_497F);
    assert_ne!(fingerprint(&[0; 4096]), fingerprint(&[0; 4095]));
}
