//! What a volume takes: unique data and savings, from a sample of its map.

use std::collections::BTreeSet;

use super::Engine;
use crate::error::Result;
use crate::format::page::MAP_FANOUT;
use crate::units::{BLOCK_BYTES, Lba, VolumeId};

/// Map leaves looked at; a volume with no more is counted exactly.
const LEAVES: u64 = 64;

/// Bytes of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Mapped blocks that nothing else refers to, before compression.
    pub unique: u64,
    /// What sharing and compression save: mapped bytes less the volume's share of stored bytes.
    pub savings: u64,
}

impl Engine {
    /// Estimates a volume's usage. Leaves are taken at equal distances, so that the answer does not jump from call to call.
    pub async fn usage(&self, volume: VolumeId) -> Result<Usage> {
        let _pass = self.gate.enter();
        let fanout = MAP_FANOUT as u64;
        let known = self.state.read().volumes.get(&volume).map(|v| (v.blocks, v.mapped));
        let Some((blocks, mapped)) = known.filter(|(_, mapped)| *mapped > 0) else { return Ok(Usage::default()) };
        let step = (blocks.div_ceil(fanout).div_ceil(LEAVES) * fanout).max(fanout);
        let mut leaves = BTreeSet::new();
        for at in (0..blocks).step_by(step as usize) {
            let next = |s: &super::state::State| match s.volumes.get(&volume) {
                Some(v) => s.maps.next_mapped(v, at, blocks),
                None => Ok(None),
            };
            if let Some(lba) = self.with_state(next).await? {
                leaves.insert(lba / fanout);
            }
        }
        let (mut seen, mut unique, mut stored) = (0u64, 0u64, 0f64);
        for leaf in leaves {
            let count = (blocks - leaf * fanout).min(fanout) as usize;
            let entries = self
                .with_state(|s| {
                    let mut found = Vec::with_capacity(count);
                    if let Some(v) = s.volumes.get(&volume) {
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
        })
    }
}
