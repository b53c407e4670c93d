//! Cheap looks at raw data: is it all zeroes, is it hopeless to compress.

/// Whether all bytes are zero; true for no bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    /// Bytes looked at between two decisions to go on.
    const STEP: usize = 256;
    let (steps, rest) = bytes.as_chunks::<STEP>();
    steps.iter().all(|step| step.iter().fold(0, |any, byte| any | byte) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// One byte in so many is sampled.
const SAMPLING: usize = 8;
/// Bytes of one sample.
const RUN: usize = 16;
/// Fewer sampled bytes than this say nothing.
const SAMPLE_MIN: usize = 192;

/// Whether the distribution of byte values is too even for an entropy coder to save a sixteenth, leaving out stretches of one and the same byte.
///
/// Counts pairs of equal bytes in a sample. With `p_i` the frequencies of byte values, the share of equal pairs is
/// `sum p_i^2`, whose logarithm (the collision entropy) is never above Shannon's entropy. Random bytes give 1/256.
/// To save a sixteenth the entropy must be at most 7.5 bits, hence the share at least 1.41/256; half of it zeroes is
/// 64/256. The limit is 1.25/256: in the smallest frame, of 4 KiB, more than five standard deviations from random.
///
/// Says nothing about repetitions.
pub fn is_flat(raw: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    let mut sampled = 0u64;
    // Where in its stretch each run is taken changes irregularly, lest it keep step with the structure of the data.
    let mut jitter = 0x9E37_79B9u32;
    for stretch in raw.chunks_exact(RUN * SAMPLING) {
        jitter = jitter.wrapping_mul(0x0019_660D).wrapping_add(0x3C6E_F35F);
        let from = (jitter >> 16) as usize % (RUN * (SAMPLING - 1) + 1);
        let run = &stretch[from..from + RUN];
        if run.iter().all(|&byte| byte == run[0]) {
            continue;
        }
        for &byte in run {
            counts[usize::from(byte)] += 1;
        }
        sampled += RUN as u64;
    }
    if sampled < SAMPLE_MIN as u64 {
        return false;
    }
    let squares: u64 = counts.iter().map(|&n| u64::from(n) * u64::from(n)).sum();
    // (squares - sampled) / (sampled * (sampled - 1)) < 1.25 / 256
    (squares - sampled) * 1024 < sampled * (sampled - 1) * 5
}
