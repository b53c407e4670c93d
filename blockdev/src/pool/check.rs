//! `pool check`: walks a checkpoint read-only and recomputes references, space, checksums and parity.
//!
//! References are counted for a range of virtual blocks at a time, so that the counters take a bounded amount of memory. For each
//! range all maps are walked, then the range of the block table is: a table of several ranges takes as many passes over the maps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::format::label::Label;
use crate::format::page::{BlockEntry, BlockKind, MAP_FANOUT, PagePtr, TABLE_FANOUT};
use crate::format::volume::VolumeRecord;
use crate::log::replay::Replay;
use crate::map::tree::page_end;
use crate::redundancy::array::DiskArray;
use crate::report::{CheckReport, Finding};
use crate::units::{BLOCK_BYTES, SegmentId, Uuid, VirtualBlock, VolumeId};
use crate::volume::recovery::{Labelled, Root, newest_checkpoint, read_label};
use crate::volume::{Engine, PoolConfig};

/// Findings of one kind are listed up to this many.
const FINDINGS_MAX: usize = 100;
/// Blocks verified at once.
const BATCH: usize = 256;
/// Virtual blocks whose references are counted at a time: 64 MiB of counters.
const COUNTED_AT_ONCE: u64 = (64 << 20) / size_of::<u32>() as u64;

/// Receives blocks done and blocks in all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Checks the newest checkpoint on the disks of an array. Nothing may be freed meanwhile.
pub async fn check_array(
    env: &Arc<dyn Env>,
    array: &Arc<DiskArray>,
    pool: Uuid,
    progress: Progress,
) -> Result<CheckReport> {
    check_counting(env, array, pool, COUNTED_AT_ONCE, progress).await
}

/// How often the newest checkpoint is looked for.
const TRIES: u32 = 10;

/// The newest checkpoint, and a label.
async fn find_root(array: &Arc<DiskArray>, pool: Uuid) -> Result<(Label, Root)> {
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
    Ok((label, newest_checkpoint(&labelled).await?))
}

/// As [`check_array`], counting the references of `at_once` virtual blocks at a time.
async fn check_counting(
    env: &Arc<dyn Env>,
    array: &Arc<DiskArray>,
    pool: Uuid,
    at_once: u64,
    progress: Progress,
) -> Result<CheckReport> {
    let (mut root, mut tries) = (find_root(array, pool).await, 1);
    while root.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt) && tries < TRIES {
        // Checkpoints that were made meanwhile may have taken the place of its catalogue.
        (root, tries) = (find_root(array, pool).await, tries + 1);
    }
    let (label, Root { superblock, catalogue, .. }) = root?;
    let engine = Engine::at_checkpoint(
        env.clone(),
        array.clone(),
        &label,
        superblock.epoch,
        (&superblock, &catalogue),
        Replay::default(),
        PoolConfig { memory: 64 << 20, ..PoolConfig::default() },
    );
    let checker = Checker {
        engine,
        report: CheckReport::default(),
        table_len: catalogue.table_len,
        counted: 0..0,
        counts: Vec::new(),
        live: BTreeMap::new(),
        progress: Steps { done: 0, total: 0, tell: progress },
    };
    checker.run(at_once, [catalogue.unique_bytes, catalogue.stored_bytes, catalogue.referenced_bytes]).await
}

/// Progress in blocks: those of the maps once for each pass, then those of the block table.
struct Steps {
    done: u64,
    total: u64,
    tell: Progress,
}

impl Steps {
    /// Neither backwards nor beyond the end: a map may hold more than was recorded for it.
    fn reach(&mut self, done: u64) {
        self.done = done.clamp(self.done, self.total);
        (self.tell)(self.done, self.total);
    }
}

struct Checker {
    engine: Engine,
    report: CheckReport,
    /// Entries of the block table.
    table_len: u64,
    /// Virtual blocks whose references this pass counts.
    counted: Range<u64>,
    /// References met to each of them.
    counts: Vec<u32>,
    /// Live bytes found, by segment.
    live: BTreeMap<SegmentId, u64>,
    progress: Steps,
}

impl Checker {
    /// Keeps a finding. Later passes over the maps meet the same ones again.
    fn find(&mut self, code: &str, message: String) {
        let mut same = self.report.findings.iter().filter(|f| f.code == code);
        if same.clone().count() < FINDINGS_MAX && same.all(|f| f.message != message) {
            self.report.findings.push(Finding { code: code.into(), message });
        }
    }

    async fn run(mut self, at_once: u64, recorded: [u64; 3]) -> Result<CheckReport> {
        let volumes: Vec<VolumeRecord> = self.engine.state.read().volumes.values().cloned().collect();
        self.report.volumes = volumes.len() as u64;
        // Whole pages of the table.
        let at_once = at_once.max(1).next_multiple_of(TABLE_FANOUT as u64);
        let passes = self.table_len.div_ceil(at_once).max(1);
        let mapped = volumes.iter().fold(0u64, |sum, v| sum.saturating_add(v.mapped));
        self.progress.total = passes.saturating_mul(mapped).saturating_add(self.table_len);
        let mut found = [0; 3];
        for pass in 0..passes {
            self.counted = pass * at_once..self.table_len.min((pass + 1) * at_once);
            self.counts.clear();
            self.counts.resize((self.counted.end - self.counted.start) as usize, 0);
            for volume in &volumes {
                let start = self.progress.done;
                let mapped = self.walk_map(volume).await;
                self.progress.reach(start.saturating_add(volume.mapped));
                if pass > 0 {
                    continue;
                }
                self.report.mapped_blocks += mapped;
                // What a version shares with its parent is walked there.
                let alone = volume.parent == VolumeId(0) && !volume.deleting;
                if alone && mapped != volume.mapped {
                    self.find(
                        "volume.mapped",
                        format!("volume {}: {} blocks recorded, {mapped} mapped", self.name_of(volume), volume.mapped),
                    );
                } else if alone && volume.owned != volume.mapped {
                    let (owned, mapped) = (volume.owned, volume.mapped);
                    self.find(
                        "volume.owned",
                        format!(
                            "volume {}: {owned} of {mapped} blocks count as its own, all are",
                            self.name_of(volume)
                        ),
                    );
                }
            }
            let part = self.walk_table().await;
            found.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let roots = self.engine.state.read().table.roots.clone();
        roots.iter().for_each(|r| self.count_page(r));
        if found != recorded {
            self.find(
                "pool.reduction",
                format!("unique, stored and referenced bytes are {found:?}, recorded {recorded:?}"),
            );
        }
        self.check_segments().await;
        Ok(self.report)
    }

    /// Whether the block table has this block; if it is among those of this pass, one more reference to it was met.
    fn count(&mut self, block: VirtualBlock, what: &str) -> bool {
        if block.0 >= self.table_len {
            self.find("map.range", format!("{what} refers to virtual block {block}, beyond the block table"));
            return false;
        }
        let index = block.0.checked_sub(self.counted.start);
        if let Some(n) = index.and_then(|i| self.counts.get_mut(i as usize)) {
            *n = n.saturating_add(1);
        }
        true
    }

    fn name_of(&self, version: &VolumeRecord) -> String {
        self.engine.state.read().name_of(version)
    }

    /// Walks what is a version's own in its map, without recursion; returns the mapped blocks.
    async fn walk_map(&mut self, volume: &VolumeRecord) -> u64 {
        let mut mapped = 0;
        let start = self.progress.done;
        let (name, floor) = (self.name_of(volume), self.engine.state.read().floor(volume));
        let mut stack = Vec::new();
        if !volume.root.is_none() {
            stack.push((volume.root, volume.root_birth, volume.levels - 1, 0u64));
        }
        while let Some((block, birth, level, index)) = stack.pop() {
            let what = format!("volume {name}, level {level}, page {index}");
            let end = page_end(level, index);
            // Before its cursor a version that is being deleted no longer counts: its child owns what is there, below pages that are not yet its own.
            let own = birth > floor.at(end);
            let handed_below = birth > floor.grandparent && end - page_end(level, 0) < floor.handed;
            if end <= volume.handed || !own && !handed_below {
                continue;
            }
            if own && !self.count(block, &what) {
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
            if (page.volume, page.level, page.index) != (volume.family, level, index) {
                self.find("map.misplaced", format!("{what}: the page there belongs elsewhere"));
                continue;
            }
            for (slot, &entry) in page.entries.iter().enumerate().filter(|(_, e)| !e.is_none()) {
                let below = index * MAP_FANOUT as u64 + slot as u64;
                let birth = page.birth(slot);
                if birth == 0 || birth > volume.generation {
                    self.find("map.birth", format!("{what}: block {below} was born in generation {birth}"));
                }
                if level > 0 {
                    stack.push((entry, birth, level - 1, below));
                } else if !floor.owns(birth, below) {
                    continue;
                } else if below >= volume.blocks {
                    self.find("map.beyond", format!("{what}: block {below} is mapped beyond the volume's end"));
                } else if self.count(entry, &what) {
                    mapped += 1;
                }
            }
            self.progress.reach(start.saturating_add(mapped.min(volume.mapped)));
            let mut state = self.engine.state.write();
            state.maps.pages.evict(1024);
        }
        mapped
    }

    /// Walks the part of the block table that was counted: compares references, adds up live bytes, verifies every stored block.
    ///
    /// Returns bytes of data blocks before and after compression, and each as often as it is referred to.
    async fn walk_table(&mut self) -> [u64; 3] {
        let (mut unique, mut stored, mut referenced) = (0, 0, 0);
        let (Range { start, end }, before) = (self.counted.clone(), self.progress.done);
        let mut batch: Vec<(VirtualBlock, BlockEntry)> = Vec::new();
        for page in start / TABLE_FANOUT as u64..end.div_ceil(TABLE_FANOUT as u64) {
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
                let counted = self.counts.get((block.0 - start) as usize).copied().unwrap_or(0);
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
                    referenced += BLOCK_BYTES * u64::from(entry.refcount);
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
            self.progress.reach(before + (first + TABLE_FANOUT as u64 - start));
            let mut state = self.engine.state.write();
            state.table.pages.evict(1024);
        }
        self.verify(batch).await;
        self.progress.reach(before + (end - start));
        [unique, stored, referenced]
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
                    None => self.report.stripes_incomplete += 1,
                }
            }
        }
        for (id, live) in std::mem::take(&mut self.live).into_iter().filter(|(_, live)| *live > 0) {
            self.find("segment.unknown", format!("{live} live bytes lie in segment {id}, which is not in use"));
        }
    }
}

#[cfg(test)]
mod tests;
