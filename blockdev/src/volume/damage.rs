//! What cannot be read, by volume: found by walking the maps and reading what lies in segments that are known to be hurt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::{MAP_FANOUT, MapPage};
use crate::format::volume::VolumeRecord;
use crate::map::Miss;
use crate::report::{Damage, DamagedRange};
use crate::units::{BLOCK_BYTES, Lba, SegmentId, Seqno, VirtualBlock, VolumeId};

/// Ranges that are listed.
const RANGES_MAX: usize = 10_000;

/// Receives blocks looked at and blocks in all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Whether an error says that something cannot be read, rather than that the pool is stopped or a request wrong.
pub(super) fn is_unreadable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io)
}

/// Ranges found so far.
struct List {
    damage: Damage,
    volume: String,
    blocks: u64,
}

impl List {
    fn add(&mut self, first: u64, count: u64, reason: &Error) {
        // A page of the map reaches beyond the volume's end.
        let count = count.min(self.blocks.saturating_sub(first));
        let (offset, len) = (first * BLOCK_BYTES, count * BLOCK_BYTES);
        if len == 0 {
            return;
        }
        self.damage.bytes += len;
        let ranges = &mut self.damage.ranges;
        let full = ranges.len() >= RANGES_MAX;
        match ranges.last_mut() {
            Some(last) if last.volume == self.volume && last.offset + last.len == offset => last.len += len,
            _ if full => self.damage.more = true,
            _ => {
                let (volume, reason) = (self.volume.clone(), reason.to_string());
                ranges.push(DamagedRange { volume, offset, len, reason });
            }
        }
    }
}

/// A page of a map, found or not.
enum Page {
    Read(Box<MapPage>),
    Unreadable(Error),
    /// Another one lies there by now.
    Changed,
}

/// A volume that takes no writes.
#[derive(Clone, Debug)]
pub struct Broken {
    /// What cannot be read.
    pub why: String,
    /// Where a change of the map needs it.
    at: (Lba, u64),
    /// Newest write that was taken and then dropped.
    dropped: Seqno,
    /// Newest operation of which a flush was answered with an error since.
    told: Seqno,
}

impl Engine {
    /// Segments in which something cannot be read, as far as is known.
    pub fn hurt_segments(&self) -> BTreeSet<SegmentId> {
        let absent = self.array.absent();
        let state = self.state.read();
        let lost = |e: &crate::redundancy::array::Extent| e.lost_columns(absent).count_ones() as usize > e.parity;
        let hurt = state
            .segments
            .iter()
            .filter(|s| s.record.live > 0 && (s.extent.damaged.load(Ordering::Acquire) || lost(&s.extent)));
        hurt.map(|s| s.record.id).collect()
    }

    /// Fails when a volume takes no writes.
    pub fn check_volume(&self, volume: VolumeId) -> Result<()> {
        match self.broken.lock().get(&volume) {
            Some(b) => Err(Error::io(format!("volume {volume} takes no writes: {}", b.why))),
            None => Ok(()),
        }
    }

    /// A flush of what came up to an operation is answered with an error: who asked knows that writes are lost.
    pub(super) fn tell_broken(&self, volume: VolumeId, upto: Seqno) {
        let known = match self.broken.lock().get_mut(&volume) {
            Some(b) => {
                b.told = b.told.max(upto);
                true
            }
            None => false,
        };
        if known {
            self.want_mending();
        }
    }

    /// A write was dropped that had been taken.
    pub(super) fn note_dropped(&self, volume: VolumeId, seqno: Seqno) {
        if let Some(b) = self.broken.lock().get_mut(&volume) {
            b.dropped = b.dropped.max(seqno);
        }
    }

    /// Something may be readable again.
    pub(super) fn want_mending(&self) {
        if !self.broken.lock().is_empty() {
            self.mending_wanted.store(true, Ordering::Release);
            self.array.changed.notify_one();
        }
    }

    /// Lets volumes take writes again whose map can be read by now. Not before whoever wrote was told of what was dropped: a later flush that succeeds would
    /// call it durable.
    pub(super) async fn mend_volumes(&self) -> Result<()> {
        let told = |(volume, b): (&VolumeId, &Broken)| (b.told >= b.dropped).then_some((*volume, b.at));
        let hopeful: Vec<(VolumeId, (Lba, u64))> = self.broken.lock().iter().filter_map(told).collect();
        for (volume, (lba, count)) in hopeful {
            // Nothing is committed, or dropped, in between.
            let _committer = self.committer.lock().await;
            let _pass = self.gate.enter();
            if self.first_unreadable(volume, lba, count as usize).await?.is_some() {
                continue;
            }
            let mut broken = self.broken.lock();
            if broken.get(&volume).is_some_and(|b| b.told >= b.dropped) {
                broken.remove(&volume);
                tracing::warn!(volume = volume.0, "the map of a volume can be read again: it takes writes");
            }
        }
        Ok(())
    }

    /// Why the map cannot be changed there, if it cannot.
    pub(super) async fn first_unreadable(&self, volume: VolumeId, lba: Lba, count: usize) -> Result<Option<Error>> {
        loop {
            let (missing, lost) = {
                let state = self.state.read();
                (state.missing(volume, lba, count), state.table.lost())
            };
            let Some(miss) = missing.first() else { return Ok(None) };
            match self.load(*miss).await {
                // What is lost may not be needed.
                Err(e) if is_unreadable(&e) && self.state.read().table.lost() == lost => return Ok(Some(e)),
                Err(e) if !is_unreadable(&e) => return Err(e),
                _ => {}
            }
        }
    }

    /// A volume takes no writes any more, since its map cannot be read where a change of these blocks needs it.
    pub(super) fn break_volume(&self, volume: VolumeId, at: (Lba, u64), why: &Error) {
        let new = {
            let mut broken = self.broken.lock();
            let new = !broken.contains_key(&volume);
            let (dropped, told) = (Seqno(0), Seqno(0));
            broken.entry(volume).or_insert_with(|| Broken { why: why.to_string(), at, dropped, told });
            new
        };
        if new {
            tracing::error!(volume = volume.0, error = %why, "a page of a volume's map cannot be read: it takes no writes any more");
        }
    }

    /// Lists all ranges of volumes that cannot be read.
    pub async fn damage(self: &Arc<Self>, progress: Progress) -> Result<Damage> {
        // What waits to be committed takes the place of what it overwrites.
        if !self.config.read_only {
            self.flush().await?;
        }
        let volumes: Vec<VolumeRecord> = self.state.read().volumes.values().filter(|v| !v.deleting).cloned().collect();
        let names: BTreeMap<VolumeId, (String, u32)> = {
            let state = self.state.read();
            volumes.iter().map(|v| (v.id, (state.name_of(v), state.listed_from(v)))).collect()
        };
        let name = |id: &VolumeId| names.get(id).map(|(name, _)| name.clone());
        let read_only = self.broken.lock().iter().filter_map(|(id, b)| Some((name(id)?, b.why.clone()))).collect();
        let mut list = List { damage: Damage { read_only, ..Damage::default() }, volume: String::new(), blocks: 0 };
        let hurt = self.hurt_segments();
        if hurt.is_empty() {
            return Ok(list.damage);
        }
        let (mut done, total) = (0, volumes.iter().filter(|v| !v.is_snapshot()).map(|v| v.mapped).sum());
        for volume in &volumes {
            let Some((name, floor)) = names.get(&volume.id) else { continue };
            (list.volume, list.blocks) = (name.clone(), volume.blocks);
            // Of a snapshot what those before it do not have: the rest is listed with them.
            let listed = |birth: u32| !volume.is_snapshot() || birth > *floor;
            let mut stack = Vec::new();
            if !volume.root.is_none() && listed(volume.root_birth) {
                stack.push((volume.root, volume.levels - 1, 0u64));
            }
            while let Some((block, level, index)) = stack.pop() {
                self.check_alive()?;
                let first = index * (MAP_FANOUT as u64).pow(u32::from(level) + 1);
                let page = match self.map_page(volume, (block, level, index)).await? {
                    Page::Read(page) => page,
                    Page::Changed => continue,
                    Page::Unreadable(e) => {
                        list.add(first, (MAP_FANOUT as u64).pow(u32::from(level) + 1), &e);
                        continue;
                    }
                };
                let below = index * MAP_FANOUT as u64;
                let used = page.entries.iter().enumerate().filter(|(_, entry)| !entry.is_none());
                let used = used.filter(|(slot, _)| listed(page.birth(*slot)));
                if level > 0 {
                    // The stack gives them back in order.
                    let mut pages: Vec<_> =
                        used.map(|(slot, entry)| (*entry, level - 1, below + slot as u64)).collect();
                    pages.reverse();
                    stack.append(&mut pages);
                    continue;
                }
                let used: Vec<(u64, VirtualBlock)> = used.map(|(slot, entry)| (first + slot as u64, *entry)).collect();
                for (lba, block) in &used {
                    if self.is_doubtful(*block, &hurt).await?
                        && let Err(e) = self.read_lbas(volume.id, Lba(*lba), 1).await
                        && is_unreadable(&e)
                    {
                        list.add(*lba, 1, &e);
                    }
                }
                done += if volume.is_snapshot() { 0 } else { used.len() as u64 };
                progress(done.min(total), total);
            }
        }
        Ok(list.damage)
    }

    async fn map_page(&self, volume: &VolumeRecord, (block, level, index): (VirtualBlock, u8, u64)) -> Result<Page> {
        let _pass = self.gate.enter();
        let page = self.with_state(|s| s.maps.pages.get(block.0).cloned().ok_or(Miss::Map(block))).await;
        match page {
            Ok(p) if (p.volume, p.level, p.index) == (volume.family, level, index) => Ok(Page::Read(Box::new(p))),
            Ok(_) => Ok(Page::Changed),
            // It may have been freed since the page above was looked at.
            Err(e) if is_unreadable(&e) => {
                match self.read_lbas(volume.id, Lba(index * (MAP_FANOUT as u64).pow(u32::from(level) + 1)), 1).await {
                    Err(e) if is_unreadable(&e) => Ok(Page::Unreadable(e)),
                    Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
                    _ => Ok(Page::Changed),
                }
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a block may be one that cannot be read.
    async fn is_doubtful(&self, block: VirtualBlock, hurt: &BTreeSet<SegmentId>) -> Result<bool> {
        let _pass = self.gate.enter();
        match self.with_state(|s| s.table.entry(block)).await {
            Ok(entry) => Ok(hurt.contains(&entry.frame.segment)),
            Err(e) if is_unreadable(&e) => Ok(true),
            Err(e) => Err(e),
        }
    }
}
