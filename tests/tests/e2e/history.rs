//! What was written to a device, in steps, and the check of what a crash left of it.
//!
//! All writes of a step are complete before those of the next are sent, and they do not overlap. After a crash the device must
//! show one instant: every step before some step K whole, of K any part, nothing of later ones; and K not before the last
//! step a completed flush covers.

/// Bytes of a block: the grain below which nothing may be torn.
pub const BLOCK: usize = 4096;

/// What a block holds: 0 for zeroes, otherwise the number its bytes are made from.
pub type Content = u64;

const MAGIC: u64 = 0x5ea1_ab1e_b10c_0001;

/// The bytes of `content`: half of them random, so that they compress about two to one.
pub fn bytes_of(content: Content) -> Vec<u8> {
    let mut out = vec![0; BLOCK];
    if content == 0 {
        return out;
    }
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&content.to_le_bytes());
    let mut random = Random::new(content);
    for word in out[16..BLOCK / 2].chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    out
}

/// The content a block holds, or nothing when it is none that was ever written.
fn content_of(block: &[u8]) -> Option<Content> {
    if block.iter().all(|b| *b == 0) {
        return Some(0);
    }
    let content = u64::from_le_bytes(block[8..16].try_into().ok()?);
    (content != 0 && block == bytes_of(content)).then_some(content)
}

/// A small generator (splitmix64); the seed is its whole state.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }
}

/// The history of a device of so many blocks.
pub struct History {
    blocks: Vec<Vec<(u64, Content)>>,
    /// The last step begun.
    pub step: u64,
    /// The last step known to be durable.
    pub flushed: u64,
}

/// What a check saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Writes to blocks that are gone, none of them flushed.
    pub lost: usize,
    /// Writes to blocks since the last check.
    pub written: usize,
}

impl History {
    /// Of a device that reads as zeroes.
    pub fn new(blocks: usize) -> Self {
        Self { blocks: vec![vec![(0, 0)]; blocks], step: 0, flushed: 0 }
    }

    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Notes, before it is sent, that the present step writes `content` to `block`.
    pub fn write(&mut self, block: usize, content: Content) {
        self.blocks[block].push((self.step, content));
    }

    /// Checks the whole device after a crash, then takes what it shows for what it holds.
    pub fn check(&mut self, image: &[u8]) -> Result<Seen, String> {
        assert_eq!(image.len(), self.blocks.len() * BLOCK, "the image of a device has its size");
        let mut seen = Seen::default();
        // The latest step seen anywhere, and the earliest step something is missing of.
        let (mut latest, mut missing) = ((0, 0), (u64::MAX, 0));
        let mut shown = Vec::with_capacity(self.blocks.len());
        for (at, (history, block)) in self.blocks.iter().zip(image.chunks_exact(BLOCK)).enumerate() {
            let Some(content) = content_of(block) else {
                return Err(format!("block {at} holds bytes nobody wrote: {:02x?}…", &block[..32]));
            };
            shown.push(content);
            seen.written += history.len() - 1;
            // The same content may have been written more than once: each is a possible reading.
            let durable = history.iter().rposition(|(step, _)| *step <= self.flushed).unwrap_or(0);
            let matching = || history.iter().enumerate().filter(|(_, (_, c))| *c == content).map(|(i, _)| i);
            let Some(newest) = matching().next_back().filter(|newest| *newest >= durable) else {
                let what =
                    if matching().next().is_some() { "an older state than" } else { "another block's data, not" };
                let (step, flushed) = (history[durable].0, self.flushed);
                return Err(format!("block {at} shows {what} step {step}, and step {flushed} was flushed"));
            };
            let oldest = matching().find(|i| *i >= durable).unwrap_or(newest);
            latest = latest.max((history[oldest].0, at));
            if let Some((step, _)) = history.get(newest + 1) {
                missing = missing.min((*step, at));
                seen.lost += history.len() - 1 - newest;
            }
        }
        if missing.0 < latest.0 {
            return Err(format!(
                "not one instant: block {} shows step {}, but block {} lacks step {}",
                latest.1, latest.0, missing.1, missing.0
            ));
        }
        for (history, content) in self.blocks.iter_mut().zip(shown) {
            *history = vec![(0, content)];
        }
        Ok(seen)
    }
}

/// The check must bite: each of these devices is wrong in one way.
#[test]
fn check_finds_what_is_wrong() {
    let history = || {
        let mut history = History::new(3);
        for (step, block, content) in [(1, 0, 10), (1, 1, 11), (2, 0, 12), (3, 1, 13), (4, 2, 14)] {
            history.step = step;
            history.write(block, content);
        }
        history.flushed = 1;
        history
    };
    let check = |contents: [Content; 3]| history().check(&contents.map(bytes_of).concat());
    for good in [[10, 11, 0], [12, 11, 0], [12, 13, 0], [12, 13, 14]] {
        check(good).unwrap();
    }
    for (wrong, why) in [
        ([0, 11, 0], "older state"),
        ([10, 12, 0], "another block's"),
        ([10, 13, 0], "not one instant"),
        ([12, 11, 14], "not one instant"),
    ] {
        let error = check(wrong).unwrap_err();
        assert!(error.contains(why), "{wrong:?}: {error}");
    }
    let mut torn = [12, 13, 14].map(bytes_of).concat();
    torn[512..1024].copy_from_slice(&bytes_of(10)[512..1024]);
    assert!(history().check(&torn).unwrap_err().contains("nobody wrote"));
    let mut lab = history();
    assert_eq!(lab.check(&[12, 11, 0].map(bytes_of).concat()).unwrap().lost, 2);
    assert!(lab.check(&[10, 11, 0].map(bytes_of).concat()).is_err(), "what a check saw stays");
}
