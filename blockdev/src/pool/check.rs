//! `pool check`: walks a checkpoint read-only and recomputes references, space, checksums and parity.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::page::{BlockEntry, BlockKind, MAP_FANOUT, PagePtr, TABLE_FANOUT};
use crate::format::record::VolumeRecord;
use crate::log::replay::Replay;
use crate::redundancy::array::DiskArray;
use crate::report::{CheckReport, Finding};
use crate::units::{BLOCK_BYTES, SegmentId, Uuid, VirtualBlock};
use crate::volume::recovery::{Labelled, newest_checkpoint, read_label};
use crate::volume::{Engine, PoolConfig};

/// Findings of one kind are listed up to this many.
const FINDINGS_MAX: usize = 100;
/// Blocks verified at once.
const BATCH: usize = 256;

/// Receives blocks done and blocks in all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Checks the newest checkpoint on the disks of an array. Nothing may be freed meanwhile.
pub async fn check_array(
    env: &Arc<dyn Env>,
    array: &Arc<DiskArray>,
    pool: Uuid,
    progress: Progress,
) -> Result<CheckReport> {
    let mut labelled = Vec::new();
    for member in array.online() {
        let Some(disk) = member.online() else { continue };
        // A disk that fails now is left out: redundancy makes up for it, or the check will say what it cannot read.
        let Ok(label) = read_label(&disk).await else { continue };
        if label.pool == pool {
            let superblocks = crate::volume::recovery::superblocks(&disk, &label).await;
            labelled.push(Labelled { disk, label, superblocks });
        }
    }
    let label = labelled.first().ok_or_else(|| Error::io("no disk can be read"))?.label.clone();
    let (superblock, catalogue) = newest_checkpoint(&labelled).await?;
    let engine = Engine::at_checkpoint(
        env.clone(),
        array.clone(),
        &label,
        superblock.epoch,
        (&superblock, &catalogue),
        Replay::default(),
        PoolConfig { memory: 64 << 20, ..PoolConfig::default() },
    );
    let counts = vec![0; catalogue.table_len as usize];
    let checker = Checker { engine, report: CheckReport::default(), counts, live: BTreeMap::new(), progress };
    checker.run(catalogue.unique_bytes, catalogue.stored_bytes).await
}

struct Checker {
    engine: Engine,
    report: CheckReport,
    /// References met, by virtual block.
    counts: Vec<u32>,
    /// Live bytes found, by segment.
    live: BTreeMap<SegmentId, u64>,
    progress: Progress,
}

impl Checker {
    fn find(&mut self, code: &str, message: String) {
        if self.report.findings.iter().filter(|f| f.code == code).count() < FINDINGS_MAX {
            self.report.findings.push(Finding { code: code.into(), message });
        }
    }

    async fn run(mut self, unique: u64, stored: u64) -> Result<CheckReport> {
        let volumes: Vec<VolumeRecord> = self.engine.state.read().volumes.values().cloned().collect();
        for volume in &volumes {
            self.report.volumes += 1;
            let mapped = self.walk_map(volume).await;
            if mapped != volume.mapped {
                self.find(
                    "volume.mapped",
                    format!("volume {}: {} blocks recorded, {mapped} mapped", volume.name, volume.mapped),
                );
            }
        }
        let (found_unique, found_stored) = self.walk_table().await;
        if (found_unique, found_stored) != (unique, stored) {
            self.find(
                "pool.reduction",
                format!(
                    "unique and stored bytes are {found_unique} and {found_stored}, recorded {unique} and {stored}"
                ),
            );
        }
        self.check_segments().await;
        Ok(self.report)
    }

    fn count(&mut self, block: VirtualBlock, what: &str) -> bool {
        match self.counts.get_mut(block.0 as usize) {
            Some(n) => {
                *n += 1;
                true
            }
            None => {
                self.find("map.range", format!("{what} refers to virtual block {block}, beyond the block table"));
                false
            }
        }
    }

    /// Walks a volume's map without recursion; returns the mapped blocks.
    async fn walk_map(&mut self, volume: &VolumeRecord) -> u64 {
        let mut mapped = 0;
        let mut stack = Vec::new();
        if !volume.root.is_none() {
            stack.push((volume.root, volume.levels - 1, 0u64));
        }
        while let Some((block, level, index)) = stack.pop() {
            let what = format!("volume {}, level {level}, page {index}", volume.name);
            if !self.count(block, &what) {
                continue;
            }
            let page = self
                .engine
                .with_state(|s| s.maps.pages.get(block.0).cloned().ok_or(crate::map::Miss::Map(block)))
                .await;
            let page = match page {
                Ok(page) => page,
                Err(e) => {
                    self.find("map.unreadable", format!("{what}: {e}"));
                    continue;
                }
            };
            if (page.volume, page.level, page.index) != (volume.id, level, index) {
                self.find("map.misplaced", format!("{what}: the page there belongs elsewhere"));
                continue;
            }
            for (slot, &entry) in page.entries.iter().enumerate().filter(|(_, e)| !e.is_none()) {
                let below = index * MAP_FANOUT as u64 + slot as u64;
                if level > 0 {
                    stack.push((entry, level - 1, below));
                } else if below >= volume.blocks {
                    self.find("map.beyond", format!("{what}: block {below} is mapped beyond the volume's end"));
                } else if self.count(entry, &what) {
                    mapped += 1;
                }
            }
            let mut state = self.engine.state.write();
            state.maps.pages.evict(1024);
        }
        self.report.mapped_blocks += mapped;
        mapped
    }

    /// Walks the block table: compares references, adds up live bytes, verifies every stored block.
    async fn walk_table(&mut self) -> (u64, u64) {
        let (mut unique, mut stored) = (0, 0);
        let pages = self.counts.len().div_ceil(TABLE_FANOUT) as u64;
        let mut batch: Vec<(VirtualBlock, BlockEntry)> = Vec::new();
        for page in 0..pages {
            let first = page * TABLE_FANOUT as u64;
            let entries = self
                .engine
                .with_state(|s| {
                    let entry = |i: u64| s.table.entry(VirtualBlock(first + i));
                    (0..TABLE_FANOUT as u64).map(entry).collect::<std::result::Result<Vec<_>, _>>()
                })
                .await;
            let entries = match entries {
                Ok(entries) => entries,
                Err(e) => {
                    self.find("table.unreadable", format!("block table page {page}: {e}"));
                    continue;
                }
            };
            let mut used = 0;
            for (i, entry) in entries.into_iter().enumerate() {
                let block = VirtualBlock(first + i as u64);
                let counted = self.counts.get(block.0 as usize).copied().unwrap_or(0);
                if entry.refcount != counted && entry.refcount != u32::MAX {
                    let code = if entry.refcount < counted { "refcount.low" } else { "refcount.high" };
                    self.find(
                        code,
                        format!("virtual block {block}: {} references recorded, {counted} found", entry.refcount),
                    );
                }
                if entry.refcount == 0 {
                    continue;
                }
                used += 1;
                self.report.stored_blocks += 1;
                if entry.kind == BlockKind::Data {
                    unique += BLOCK_BYTES;
                    stored += entry.share();
                    batch.push((block, entry));
                }
                *self.live.entry(entry.frame.segment).or_default() += entry.share();
            }
            let pointer = self.engine.with_state(|s| s.table.pointer(page)).await.unwrap_or_default();
            if pointer.used != used {
                self.find(
                    "table.used",
                    format!("block table page {page}: {} entries in use recorded, {used} found", pointer.used),
                );
            }
            self.count_page(&pointer);
            if batch.len() >= BATCH {
                self.verify(std::mem::take(&mut batch)).await;
            }
            (self.progress)(page + 1, pages);
            let mut state = self.engine.state.write();
            state.table.pages.evict(1024);
        }
        self.verify(batch).await;
        let roots = self.engine.state.read().table.roots.clone();
        roots.iter().for_each(|r| self.count_page(r));
        (unique, stored)
    }

    fn count_page(&mut self, pointer: &PagePtr) {
        if !pointer.is_none() {
            *self.live.entry(pointer.at.segment).or_default() += u64::from(pointer.at.len);
        }
    }

    async fn verify(&mut self, batch: Vec<(VirtualBlock, BlockEntry)>) {
        let entries: Vec<BlockEntry> = batch.iter().map(|(_, e)| *e).collect();
        for ((block, _), content) in batch.into_iter().zip(self.engine.fetch_blocks(&entries).await) {
            match content {
                Ok(data) => self.report.verified += data.len() as u64,
                Err(e) => self.find("block.unreadable", format!("virtual block {block}: {e}")),
            }
        }
    }

    async fn check_segments(&mut self) {
        let segments = self.engine.state.read().segments.records();
        let mut chunks = BTreeMap::new();
        for s in &segments {
            for column in &s.columns {
                if let Some(other) = chunks.insert(*column, s.id) {
                    self.find(
                        "chunk.shared",
                        format!("chunk {} of disk {} is in segments {other} and {}", column.1, column.0, s.id),
                    );
                }
            }
            let live = self.live.remove(&s.id).unwrap_or(0);
            if live != s.live {
                self.find("segment.live", format!("segment {}: {} live bytes recorded, {live} found", s.id, s.live));
            }
            let Ok(extent) = self.engine.extent(s.id) else { continue };
            let stripes = s.written / extent.stripe_size(&self.engine.array.geometry);
            for stripe in 0..stripes {
                match self.engine.array.verify_stripe(&extent, stripe).await {
                    Some(true) => self.report.stripes += 1,
                    Some(false) => {
                        self.find("stripe.parity", format!("segment {}, stripe {stripe}: parity does not match", s.id))
                    }
                    None => {}
                }
            }
        }
        for (id, live) in std::mem::take(&mut self.live).into_iter().filter(|(_, live)| *live > 0) {
            self.find("segment.unknown", format!("{live} live bytes lie in segment {id}, which is not in use"));
        }
    }
}
