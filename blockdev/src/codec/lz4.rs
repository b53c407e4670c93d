//! Uncompressing LZ4 blocks.
//!
//! The format is that of <https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>: tokens of two lengths, literals, and how far back what follows
//! them has been seen. Written for what volumes hold, where a repetition is often a run of zeroes as long as half a block: those are filled, not copied
//! byte by byte. Everything is checked, for a frame may be anything until its checksums are known to be right.

/// Bytes copied at once where it does not matter what lies behind the end.
const STEP: usize = 16;
/// Repetitions longer than this are left to `memmove`.
const STEPS_MAX: usize = 4 * STEP;
/// A repetition is at least this long.
const MATCH_MIN: usize = 4;
/// A length that does not fit a token's half is continued behind it.
const CONTINUED: usize = 15;

/// Uncompresses a block to the beginning of `out` and says how long it is; None if `data` is no LZ4 block, or does not fit.
pub fn decompress(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut from, mut to) = (0, 0);
    loop {
        let token = usize::from(*data.get(from)?);
        from += 1;
        let len = length(token >> 4, data, &mut from)?;
        match (data.get(from..from + STEP), out.get_mut(to..to + STEP)) {
            (Some(source), Some(target)) if len <= STEP => target.copy_from_slice(source),
            _ => out.get_mut(to..to + len)?.copy_from_slice(data.get(from..from + len)?),
        }
        from += len;
        to += len;
        if from == data.len() {
            return Some(to);
        }
        let back = usize::from(u16::from_le_bytes(data.get(from..from + 2)?.try_into().ok()?));
        from += 2;
        let len = length(token & 15, data, &mut from)? + MATCH_MIN;
        repeat(out, to, back, len)?;
        to += len;
    }
}

/// A length of which `short` is in the token.
fn length(short: usize, data: &[u8], from: &mut usize) -> Option<usize> {
    let mut len = short;
    if short == CONTINUED {
        loop {
            let more = *data.get(*from)?;
            *from += 1;
            len += usize::from(more);
            if more != u8::MAX {
                break;
            }
        }
    }
    Some(len)
}

/// Puts the `len` bytes that begin `back` bytes before `to` at `to`; they may be among what they are put.
fn repeat(out: &mut [u8], to: usize, back: usize, len: usize) -> Option<()> {
    let start = to.checked_sub(back).filter(|_| back > 0)?;
    let end = to + len;
    if end > out.len() {
        return None;
    }
    if len <= STEPS_MAX && end + STEP <= out.len() {
        match back {
            STEP.. => step::<STEP>(out, start, to, len),
            8.. => step::<8>(out, start, to, len),
            _ => step::<1>(out, start, to, len),
        }
    } else if back >= len {
        out.copy_within(start..start + len, to);
    } else if back == 1 {
        let byte = out[start];
        out[to..end].fill(byte);
    } else {
        // What is there repeats itself: from its beginning on, each time as much as there is.
        let mut done = 0;
        while done < len {
            let n = (back + done).min(len - done);
            out.copy_within(start..start + n, to + done);
            done += n;
        }
    }
    Some(())
}

/// Copies `N` bytes at a time, the last time maybe more than is left; what is copied begins `N` bytes before `to` at least.
fn step<const N: usize>(out: &mut [u8], start: usize, to: usize, len: usize) {
    for at in (0..len).step_by(N) {
        out.copy_within(start + at..start + at + N, to + at);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Random;
    use super::*;

    /// Literals, and a repetition behind them.
    fn sequence(literals: &[u8], back: u16, len: usize) -> Vec<u8> {
        let mut out = vec![(literals.len().min(15) << 4 | (len - MATCH_MIN).min(15)) as u8];
        let continued = |out: &mut Vec<u8>, mut len: usize| {
            while len >= 255 {
                out.push(255);
                len -= 255;
            }
            out.push(len as u8);
        };
        if literals.len() >= 15 {
            continued(&mut out, literals.len() - 15);
        }
        out.extend_from_slice(literals);
        out.extend_from_slice(&back.to_le_bytes());
        if len - MATCH_MIN >= 15 {
            continued(&mut out, len - MATCH_MIN - 15);
        }
        out
    }

    #[test]
    fn repetitions_of_all_lengths_and_distances() {
        let literals: Vec<u8> = (0..40).map(|i| i * 3 + 1).collect();
        for back in 1..=40 {
            for len in (4..80).chain([254, 273, 274, 275, 1000]) {
                let mut block = sequence(&literals, back, len);
                block.extend([0x30, 7, 8, 9]);
                let mut expected = literals.clone();
                (0..len).for_each(|_| expected.push(expected[expected.len() - usize::from(back)]));
                expected.extend([7, 8, 9]);
                // With room behind it and without.
                for room in [0, 1, STEP, 100] {
                    let mut out = vec![0; expected.len() + room];
                    assert_eq!(decompress(&block, &mut out), Some(expected.len()), "{back} {len} {room}");
                    assert!(out.starts_with(&expected), "{back} {len} {room}");
                }
                assert_eq!(decompress(&block, &mut vec![0; expected.len() - 1]), None);
                for cut in 0..block.len() {
                    let whole = decompress(&block[..cut], &mut vec![0; expected.len() + 100]);
                    // Cut behind literals it is a block too.
                    assert!(whole.is_none_or(|n| n < expected.len()), "{back} {len} {cut}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let out = &mut [0; 100];
        assert_eq!(decompress(&[], out), None);
        assert_eq!(decompress(&[0], out), Some(0));
        // Further back than the beginning, and not back at all.
        assert_eq!(decompress(&[0x10, 1, 2, 0, 0x10, 1], out), None);
        assert_eq!(decompress(&[0x10, 1, 0, 0, 0x10, 1], out), None);
        assert_eq!(decompress(&[0x10, 1, 1, 0, 0x10, 1], out), Some(6));
        // Lengths that go on behind the end.
        assert_eq!(decompress(&[0xF0, 255, 255], out), None);
        assert_eq!(decompress(&[0xF0], out), None);
        assert_eq!(decompress(&[0x1F, 1, 1, 0, 255], out), None);
    }

    #[test]
    fn agrees_with_the_library() {
        let mut random = Random(1);
        let (mut whole, mut broken) = (0, 0);
        for _ in 0..20_000 {
            let mut raw: Vec<u8> = Vec::new();
            let len = 1 + random.below(6000);
            while raw.len() < len {
                let most = 1 << random.below(10);
                let part = 1 + random.below(most);
                match random.below(4) {
                    0 => raw.extend((0..part).map(|_| random.below(256) as u8)),
                    1 => raw.extend(std::iter::repeat_n(random.below(256) as u8, part)),
                    _ if raw.is_empty() => {}
                    _ => {
                        let back = 1 + random.below(raw.len().min(300));
                        (0..part).for_each(|_| raw.push(raw[raw.len() - back]));
                    }
                }
            }
            let mut block = lz4_flex::block::compress(&raw);
            let mut out = vec![0; raw.len()];
            assert_eq!(decompress(&block, &mut out), Some(raw.len()));
            assert_eq!(out, raw);
            // Damaged, it is refused, or what the library makes of it.
            let at = random.below(block.len());
            block[at] ^= 1 << random.below(8);
            let mut theirs = vec![0; raw.len()];
            if let (Some(n), Ok(m)) =
                (decompress(&block, &mut out), lz4_flex::block::decompress_into(&block, &mut theirs))
            {
                whole += 1;
                assert!(n == m && out[..n] == theirs[..n]);
            } else {
                broken += 1;
            }
        }
        assert!(whole > 100 && broken > 100, "{whole} {broken}");
    }
}
