//! What a volume takes: unique data and savings, counted in its map or, for a large volume, in a sample of it.

use super::Engine;
use crate::error::Result;
use crate::format::page::MAP_FANOUT;
use crate::units::{BLOCK_BYTES, Lba, VolumeId};

/// A volume with no more map leaves than this is counted exactly.
const EXACT: usize = 256;
/// Leaves looked at in a larger one, about.
const SAMPLE: usize = 256;
/// Leaves that are listed, so that each has the same chance to be looked at: 64 GiB. Beyond that, as many places in the volume are, and leaves that stand
/// alone count for more than they should.
const LISTED: usize = 32 << 10;

/// Bytes of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Mapped blocks that nothing else refers to, before compression.
    pub unique: u64,
    /// What sharing and compression save: mapped bytes less the volume's share of stored bytes.
    pub savings: u64,
    /// Whether both were inferred from a part of the volume.
    pub estimated: bool,
}

impl Engine {
    /// The first map leaf there is, from `leaf` on.
    async fn next_leaf(&self, volume: VolumeId, leaf: u64, blocks: u64) -> Result<Option<u64>> {
        let fanout = MAP_FANOUT as u64;
        let next = |s: &super::state::State| match s.live(volume) {
            Some(v) => s.maps.next_in_leaf(v, leaf * fanout, blocks),
            None => Ok(None),
        };
        let _pass = self.gate.enter();
        Ok(self.with_state(next).await?.map(|lba| lba / fanout))
    }

    /// Leaves of a volume to look at, in order, and whether these are not all of them. Equal distances, so that the answer does not jump from call
    /// to call.
    async fn leaves(&self, volume: VolumeId, blocks: u64) -> Result<(Vec<u64>, bool)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(leaf) = self.next_leaf(volume, at, blocks).await? {
            found.push(leaf);
            if found.len() > LISTED {
                break;
            }
            at = leaf + 1;
        }
        if found.len() <= EXACT {
            return Ok((found, false));
        }
        if found.len() <= LISTED {
            let step = found.len().div_ceil(SAMPLE);
            return Ok((found.into_iter().step_by(step).collect(), true));
        }
        found.clear();
        let step = blocks.div_ceil(MAP_FANOUT as u64).div_ceil(SAMPLE as u64).max(1);
        for at in (0..SAMPLE as u64).map(|i| i * step) {
            found.extend(self.next_leaf(volume, at, blocks).await?);
        }
        found.dedup();
        Ok((found, true))
    }

    /// A volume's usage: counted, or estimated when it is large.
    pub async fn usage(&self, volume: VolumeId) -> Result<Usage> {
        let fanout = MAP_FANOUT as u64;
        let known = self.state.read().live(volume).map(|v| (v.blocks, v.mapped));
        let Some((blocks, mapped)) = known.filter(|(_, mapped)| *mapped > 0) else { return Ok(Usage::default()) };
        let (leaves, estimated) = self.leaves(volume, blocks).await?;
        let (mut seen, mut unique, mut stored) = (0u64, 0u64, 0f64);
        for leaf in leaves {
            let count = (blocks - leaf * fanout).min(fanout) as usize;
            // One pass for each leaf: checkpoints wait for passes, and the pages of the block table may all have to be read.
            let _pass = self.gate.enter();
            let entries = self
                .with_state(|s| {
                    let mut found = Vec::with_capacity(count);
                    if let Some(v) = s.live(volume) {
                        s.maps.lookup_range(v, Lba(leaf * fanout), count, &mut found)?;
                    }
                    let mapped = found.into_iter().filter(|b| !b.is_none());
                    mapped.map(|b| s.table.entry(b)).collect::<std::result::Result<Vec<_>, _>>()
                })
                .await?;
            for entry in entries {
                seen += 1;
                unique += u64::from(entry.refcount == 1);
                stored += entry.share() as f64 / f64::from(entry.refcount.max(1));
            }
        }
        let scale = mapped as f64 / seen.max(1) as f64;
        let bytes = mapped * BLOCK_BYTES;
        Ok(Usage {
            unique: ((unique * BLOCK_BYTES) as f64 * scale) as u64,
            savings: bytes.saturating_sub((stored * scale) as u64),
            estimated,
        })
    }
}
