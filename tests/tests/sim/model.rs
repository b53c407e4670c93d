//! What the volumes should hold: every operation in order, so that any prefix can be compared with what is read.

use std::collections::BTreeMap;

use blockdev::env::Rng;
use blockdev::units::BLOCK_SIZE;

/// Content of a block by its tag: 0 is zeroes; others fill the block with something half compressible that starts with the tag.
pub fn content(tag: u64) -> Vec<u8> {
    let mut out = vec![0; BLOCK_SIZE];
    if tag != 0 {
        let mut rng = Rng::new(tag);
        rng.fill(&mut out[..BLOCK_SIZE / 2]);
        out[..8].copy_from_slice(&tag.to_le_bytes());
        // Some blocks do not compress at all.
        if tag.is_multiple_of(5) {
            rng.fill(&mut out[BLOCK_SIZE / 2..]);
        }
    }
    out
}

/// The tag of a block that was read; None when it is not a block that was ever written.
pub fn tag_of(block: &[u8]) -> Option<u64> {
    let mut first = [0; 8];
    first.copy_from_slice(&block[..8]);
    let tag = u64::from_le_bytes(first);
    (content(tag) == block).then_some(tag)
}

/// What one operation does to one volume.
#[derive(Clone, Debug)]
pub enum Step {
    /// Tags at consecutive blocks; all 0 for discards.
    Write { volume: usize, lba: u64, tags: Vec<u64> },
    /// New size in blocks.
    Resize { volume: usize, blocks: u64 },
    /// Snapshots of volumes, all at once.
    Snapshot { of: Vec<(usize, String)> },
    /// A snapshot goes.
    DropSnapshot { name: String },
    /// A volume begins with, or goes back to, what a snapshot holds.
    Clone { from: String, volume: usize },
    /// A volume takes the content of another one.
    Refresh { from: usize, volume: usize },
    /// A volume goes, with its snapshots.
    DropVolume { volume: usize },
    /// A group a volume is in from now on, and a setting, which goes when it has no value; at once.
    Manage { volume: usize, group: u32, setting: String, value: Vec<u8> },
    /// Snapshots are kept in this way from now on: whether they are secure, and the rule that took them.
    Keep { names: Vec<String>, secure: bool, rule: u32 },
    /// Several steps at once.
    Both(Box<[Step; 2]>),
}

/// Writes of more blocks than this may be cut by a crash: they are taken in piece by piece, of as many blocks as two segments hold beside
/// their summaries and what is kept for recovery, which need not be a round number.
pub const PIECE_BLOCKS: usize = 16;

impl Step {
    /// The image after a beginning of this step, if that is what was found.
    fn cut_as(&self, before: &Image, found: &Image) -> Option<Image> {
        let Step::Write { volume, lba, tags } = self else { return None };
        // A discard is one record, however long.
        if tags.iter().all(|tag| *tag == 0) {
            return None;
        }
        (PIECE_BLOCKS..tags.len())
            .map(|len| {
                let mut image = before.clone();
                image.apply(&Step::Write { volume: *volume, lba: *lba, tags: tags[..len].to_vec() });
                image
            })
            .find(|image| image == found)
    }
}

/// Tags of all blocks and sizes of all volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub volumes: BTreeMap<usize, Vec<u64>>,
    /// By the name they have with their volume.
    pub snapshots: BTreeMap<String, Vec<u64>>,
    /// Volumes that are in a group.
    pub groups: BTreeMap<usize, u32>,
    pub settings: BTreeMap<String, Vec<u8>>,
    /// Snapshots that are not just kept: whether they are secure, and the rule that took them.
    pub kept: BTreeMap<String, (bool, u32)>,
}

impl Image {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Write { volume, lba, tags } => {
                let blocks = self.volumes.entry(*volume).or_default();
                blocks[*lba as usize..*lba as usize + tags.len()].copy_from_slice(tags);
            }
            Step::Resize { volume, blocks } => self.volumes.entry(*volume).or_default().resize(*blocks as usize, 0),
            Step::Snapshot { of } => {
                for (volume, name) in of {
                    self.snapshots.insert(name.clone(), self.volumes[volume].clone());
                }
            }
            Step::DropSnapshot { name } => {
                self.snapshots.remove(name);
                self.kept.remove(name);
            }
            Step::Manage { volume, group, setting, value } => {
                self.groups.insert(*volume, *group);
                self.groups.retain(|_, group| *group != 0);
                self.settings.insert(setting.clone(), value.clone());
                self.settings.retain(|_, value| !value.is_empty());
            }
            Step::Keep { names, secure, rule } => {
                self.kept.extend(names.iter().map(|name| (name.clone(), (*secure, *rule))));
                self.kept.retain(|_, kept| *kept != (false, 0));
            }
            Step::Clone { from, volume } => drop(self.volumes.insert(*volume, self.snapshots[from].clone())),
            Step::Refresh { from, volume } => drop(self.volumes.insert(*volume, self.volumes[from].clone())),
            Step::DropVolume { volume } => {
                self.volumes.remove(volume);
                let own = format!("v{volume}@");
                self.snapshots.retain(|name, _| !name.starts_with(&own));
                self.kept.retain(|name, _| !name.starts_with(&own));
            }
            Step::Both(steps) => steps.iter().for_each(|step| self.apply(step)),
        }
    }

    /// Where two images differ, for messages.
    pub fn difference(&self, other: &Self) -> String {
        for (volume, blocks) in &self.volumes {
            let Some(theirs) = other.volumes.get(volume) else { return format!("volume {volume} is missing") };
            if blocks.len() != theirs.len() {
                return format!("volume {volume}: {} blocks, expected {}", theirs.len(), blocks.len());
            }
            let wrong: Vec<usize> = (0..blocks.len()).filter(|&i| blocks[i] != theirs[i]).collect();
            if let Some(&i) = wrong.first() {
                return format!(
                    "volume {volume}: {} blocks differ, first {i}: expected {:x}, found {:x}",
                    wrong.len(),
                    blocks[i],
                    theirs[i]
                );
            }
        }
        if self.volumes.len() != other.volumes.len() {
            return format!("volumes {:?}, expected {:?}", other.volumes.keys(), self.volumes.keys());
        }
        if !self.snapshots.keys().eq(other.snapshots.keys()) {
            return format!("snapshots {:?}, expected {:?}", other.snapshots.keys(), self.snapshots.keys());
        }
        match self.snapshots.iter().find(|(name, blocks)| other.snapshots[*name] != **blocks) {
            Some((name, blocks)) => {
                let theirs = &other.snapshots[name];
                let wrong = (0..blocks.len()).find(|&i| theirs.get(i) != Some(&blocks[i]));
                format!("snapshot {name}: {} blocks, expected {}, first wrong {wrong:?}", theirs.len(), blocks.len())
            }
            None => {
                let managed = |i: &Self| format!("{:?} {:?} {:?}", i.groups, i.settings, i.kept);
                format!("managed as {}, expected {}", managed(other), managed(self))
            }
        }
    }
}

/// All operations since the last recovery, in the order in which they were issued.
#[derive(Clone, Default)]
pub struct Model {
    base: Image,
    steps: Vec<Step>,
    /// Steps that must be there after a crash.
    durable: usize,
    /// Steps that must be there when the process was killed, and the power stayed.
    kept: usize,
}

impl Model {
    /// An operation is about to be issued.
    pub fn issue(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// The last operation issued was refused: nothing of it may ever be seen.
    pub fn withdraw(&mut self) {
        self.steps.pop();
    }

    /// Of the last operation issued, a write, only so many blocks were taken.
    pub fn cut(&mut self, blocks: usize) {
        if let Some(Step::Write { tags, .. }) = self.steps.last_mut() {
            tags.truncate(blocks);
        }
    }

    /// A flush completed that was issued when there were `steps` steps.
    pub fn flushed(&mut self, steps: usize) {
        self.durable = self.durable.max(steps);
    }

    /// The first `steps` steps were answered by a device whose writes outlive the process.
    pub fn answered(&mut self, steps: usize) {
        self.kept = self.kept.max(steps);
    }

    /// What outlived the process is gone with the power.
    pub fn power_cut(&mut self) {
        self.kept = 0;
    }

    /// Steps issued.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// The image after all steps.
    pub fn now(&self) -> Image {
        let mut image = self.base.clone();
        self.steps.iter().for_each(|s| image.apply(s));
        image
    }

    /// The first `n` steps made this image, the others are lost: their number is returned.
    fn go_on_from(&mut self, image: Image, n: usize) -> usize {
        let lost = self.steps.len() - n;
        self.base = image;
        self.steps.clear();
        (self.durable, self.kept) = (0, 0);
        lost
    }

    /// The prefix that equals what was found after a crash; the model goes on from there. The steps that were lost are returned.
    pub fn recover(&mut self, found: &Image) -> Result<usize, String> {
        let least = self.durable.max(self.kept);
        let mut image = self.base.clone();
        let mut nearest = String::new();
        for n in 0..=self.steps.len() {
            if n > 0 {
                image.apply(&self.steps[n - 1]);
            }
            if n >= least && image == *found {
                return Ok(self.go_on_from(image, n));
            }
            if n == least {
                nearest = image.difference(found);
            }
        }
        let mut cut = self.base.clone();
        for n in 1..=self.steps.len() {
            if n > least
                && let Some(cut) = self.steps[n - 1].cut_as(&cut, found)
            {
                return Ok(self.go_on_from(cut, n));
            }
            cut.apply(&self.steps[n - 1]);
        }
        Err(format!(
            "no prefix of {} steps, {} of them flushed and {} to be kept, gives what was found; against the flushed prefix: {nearest}; against all: {}",
            self.steps.len(),
            self.durable,
            self.kept,
            image.difference(found)
        ))
    }
}
