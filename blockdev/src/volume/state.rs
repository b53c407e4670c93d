//! The committed state of the pool and its one transition function, [`State::apply`]: used alike by commits and by replay.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::catalogue::Catalogue;
use crate::format::page::{BlockEntry, BlockKind, Location, MAP_FANOUT};
use crate::format::part::{Content, Item};
use crate::format::record::{BlockRef, Frame, Op, Record};
use crate::format::volume::{Setting, VolumeRecord};
use crate::map::table::{BlockTable, page_of};
use crate::map::tree::{PageKey, VolumeMaps, by_leaf, page_index};
use crate::map::{Miss, Need};
use crate::planted::{self, Bug};
use crate::segment::table::SegmentTable;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Lba, Seqno, VirtualBlock, VolumeId};

/// What whoever manages the pool keeps in it, by name.
pub type Settings = Arc<BTreeMap<String, Vec<u8>>>;

/// Everything that commits change. Pages that are not resident are loaded by the engine on a [`Miss`].
pub struct State {
    /// Volumes by identity.
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// Volume maps.
    pub maps: VolumeMaps,
    /// Block table.
    pub table: BlockTable,
    /// Segments.
    pub segments: SegmentTable,
    /// Bytes of data blocks in use before compression.
    pub unique_bytes: u64,
    /// Bytes of data blocks in use after compression.
    pub stored_bytes: u64,
    /// Bytes of data blocks, each as often as it is referred to.
    pub referenced_bytes: u64,
    /// Newest record applied.
    pub record: u64,
    /// Newest host operation applied.
    pub seqno: Seqno,
    /// Next volume identity.
    pub next_volume: u32,
    /// Which versions go on from which: parent, child.
    pub(super) children: BTreeSet<(VolumeId, VolumeId)>,
    /// Versions that are not being deleted, by name: volumes below 0, snapshots below their volume.
    pub(super) names: BTreeMap<(VolumeId, String), VolumeId>,
    /// Volumes that space is reserved for.
    pub(super) reserving: BTreeSet<VolumeId>,
    /// Snapshots that expire, are not being deleted, by the time at which they do.
    pub expiring: BTreeSet<(u64, VolumeId)>,
    /// See [`Setting`].
    pub settings: Settings,
    /// What the pool's clock showed at the newest record or checkpoint that says so.
    pub clock_s: u64,
}

/// Why a record cannot be applied: a page must be loaded, or the record does not fit the state.
pub enum Blocked {
    /// Load this and try again.
    Miss(Miss),
    /// The record contradicts the state: damage, or a bug.
    Bad(Error),
}

impl From<Miss> for Blocked {
    fn from(miss: Miss) -> Self {
        Self::Miss(miss)
    }
}

pub(super) fn bad(message: impl Into<String>) -> Blocked {
    Blocked::Bad(Error::corrupt(message))
}

impl State {
    /// The state of a checkpoint.
    pub fn of(catalogue: &Catalogue, segments: SegmentTable, checkpoint: u64) -> Self {
        let live = || catalogue.volumes.iter().filter(|v| !v.deleting);
        Self {
            names: live().map(|v| ((v.snapshot_of, v.name.clone()), v.id)).collect(),
            expiring: live().filter_map(expiry).collect(),
            settings: Arc::new(catalogue.settings.iter().map(|s| (s.name.clone(), s.value.clone())).collect()),
            clock_s: catalogue.clock_s,
            volumes: catalogue.volumes.iter().map(|v| (v.id, v.clone())).collect(),
            maps: VolumeMaps::default(),
            table: BlockTable::new(catalogue.directory.clone(), catalogue.table_len, checkpoint),
            segments,
            unique_bytes: catalogue.unique_bytes,
            stored_bytes: catalogue.stored_bytes,
            referenced_bytes: catalogue.referenced_bytes,
            record: catalogue.record,
            seqno: Seqno(catalogue.seqno),
            next_volume: catalogue.next_volume,
            children: catalogue.volumes.iter().map(|v| (v.parent, v.id)).collect(),
            reserving: live().filter(|v| v.reserved > 0).map(|v| v.id).collect(),
        }
    }

    /// What must be loaded next to overwrite `count` LBAs; nothing when all is resident, or the volume is gone.
    pub fn missing(&self, volume: VolumeId, lba: Lba, count: usize) -> Vec<Miss> {
        let mut out = Vec::new();
        let Some(volume) = self.volumes.get(&volume) else { return out };
        let floor = self.floor(volume);
        for (lba, range) in by_leaf(lba, count) {
            match self.maps.own_blocks(volume, &floor, lba, range.len()) {
                Ok(blocks) => {
                    let mut last = u64::MAX;
                    for old in blocks {
                        let page = page_of(old);
                        if page != last && !self.table.is_lost(old) {
                            out.extend(self.table.lacks(old));
                            last = page;
                        }
                    }
                    let mut path = Vec::new();
                    if self.maps.path(volume, lba, &mut path).is_ok() {
                        out.extend(path.into_iter().filter_map(|page| self.table.lacks(page)));
                    }
                }
                Err(miss) => out.push(miss),
            }
        }
        out
    }

    /// Makes sure that everything [`State::apply`] needs is resident; returns how many map pages would come into being.
    pub fn prepare(&mut self, record: &Record) -> std::result::Result<usize, Blocked> {
        let mut created = Created::default();
        let mut roots = 0;
        let mut path = Vec::new();
        let mut last = u64::MAX;
        for page in &record.pages {
            self.table.ensure(*page)?;
        }
        for op in &record.ops {
            match op {
                Op::Write { volume, lba, blocks } => {
                    let volume = self.volumes.get(volume).ok_or_else(|| bad(format!("no volume {volume}")))?;
                    if lba.0.checked_add(blocks.len() as u64).is_none_or(|end| end > volume.blocks) {
                        return Err(bad(format!("volume {}: write beyond its end", volume.name)));
                    }
                    let floor = self.floor(volume);
                    for (lba, range) in by_leaf(*lba, blocks.len()) {
                        let part = &blocks[range];
                        if part.iter().all(|b| *b == BlockRef::Zero) {
                            if self.maps.has_leaf(volume, lba)? {
                                self.maps.walk(volume, &floor, lba, |l, index| created.add((volume.id, l, index)))?;
                            }
                            created.empty(volume.id);
                        } else {
                            created.whole_path(volume, lba);
                            self.maps.walk(volume, &floor, lba, |l, index| created.add((volume.id, l, index)))?;
                        }
                        path.clear();
                        self.maps.path(volume, lba, &mut path)?;
                        for page in &path {
                            self.table.ensure_another(*page, &mut last)?;
                        }
                        for block in part {
                            if let BlockRef::Shared(v) | BlockRef::New { block: v, .. } = block {
                                self.table.ensure_another(*v, &mut last)?;
                            }
                        }
                        for old in self.maps.own_blocks(volume, &floor, lba, part.len())? {
                            self.table.ensure_released(old, &mut last)?;
                        }
                    }
                }
                Op::Unmap { volume, lba, count } => {
                    let volume = self.volumes.get(volume).ok_or_else(|| bad(format!("no volume {volume}")))?;
                    let floor = self.floor(volume);
                    let (mut at, end) = (lba.0, lba.0 + count);
                    while let Some(next) = self.maps.next_mapped(volume, at, end)? {
                        self.maps.walk(volume, &floor, Lba(next), |l, index| created.add((volume.id, l, index)))?;
                        path.clear();
                        self.maps.path(volume, Lba(next), &mut path)?;
                        for page in &path {
                            self.table.ensure_another(*page, &mut last)?;
                        }
                        let len = leaf_rest(next, end);
                        for old in self.maps.own_blocks(volume, &floor, Lba(next), len)? {
                            self.table.ensure_released(old, &mut last)?;
                        }
                        at = next + len as u64;
                    }
                    created.empty(volume.id);
                }
                Op::Relocate(moves) => {
                    for m in moves {
                        self.table.ensure(m.block)?;
                    }
                }
                Op::PutVolume(v) => {
                    if let Some(old) = self.volumes.get(&v.id)
                        && !old.root.is_none()
                    {
                        let levels = crate::map::tree::levels_for(v.blocks);
                        roots += usize::from(levels.saturating_sub(old.levels));
                    }
                }
                Op::HandOver { blocks, .. } => {
                    for block in blocks {
                        self.table.ensure_released(*block, &mut last)?;
                    }
                }
                Op::Clear { volume, lba, slots } => self.prepare_clear(*volume, *lba, slots)?,
                _ => {}
            }
        }
        Ok(created.count() + roots)
    }

    /// Applies a record: all of it, or nothing when something is not resident ([`State::prepare`] decides).
    pub fn apply(&mut self, record: &Record) -> std::result::Result<(), Blocked> {
        let needed = self.prepare(record)?;
        if needed > record.pages.len() {
            return Err(bad(format!(
                "record {}: {needed} map pages are needed, {} given",
                record.number,
                record.pages.len()
            )));
        }
        self.apply_prepared(record)
    }

    /// Applies a record for which [`State::prepare`] has just found everything resident, with the pages it asked for.
    pub fn apply_prepared(&mut self, record: &Record) -> std::result::Result<(), Blocked> {
        let mut pages = record.pages.iter().copied();
        for op in &record.ops {
            self.apply_op(op, &record.frames, &mut pages)?;
        }
        self.record = record.number;
        self.seqno = self.seqno.max(record.seqno);
        Ok(())
    }

    fn apply_op(
        &mut self,
        op: &Op,
        frames: &[Frame],
        pages: &mut impl Iterator<Item = VirtualBlock>,
    ) -> std::result::Result<(), Blocked> {
        match op {
            Op::Write { volume, lba, blocks } => {
                let mut to = Vec::with_capacity(blocks.len().min(MAP_FANOUT));
                for (lba, range) in by_leaf(*lba, blocks.len()) {
                    to.clear();
                    // New references first: what loses its last one here and gains another in the same breath was never free.
                    for block in &blocks[range] {
                        to.push(match *block {
                            BlockRef::Zero => VirtualBlock::NONE,
                            BlockRef::Shared(v) => {
                                self.share(v)?;
                                v
                            }
                            BlockRef::New { block, frame, index, fingerprint } => {
                                self.create(block, &frames[frame as usize], index, fingerprint)?;
                                block
                            }
                        });
                    }
                    self.map(*volume, lba, &to, pages)?;
                }
            }
            Op::Unmap { volume, lba, count } => {
                let (mut at, end) = (lba.0, lba.0 + count);
                loop {
                    let v = self.volumes.get(volume).ok_or_else(|| bad(format!("no volume {volume}")))?;
                    let Some(next) = self.maps.next_mapped(v, at, end)? else { break };
                    let len = leaf_rest(next, end);
                    self.map(*volume, Lba(next), &[VirtualBlock::NONE; MAP_FANOUT][..len], pages)?;
                    at = next + len as u64;
                }
            }
            Op::Relocate(moves) => {
                for m in moves {
                    self.relocate(m, &frames[m.frame as usize])?;
                }
            }
            Op::OpenSegment(segment) => {
                let known = self.segments.get(segment.id).is_some_and(|s| s.record.incarnation >= segment.incarnation);
                if !known {
                    self.segments.insert(segment.clone());
                }
            }
            Op::ClosePart { at } => {
                if let Some(s) = self.segments.get_mut(at.segment) {
                    s.record.last_part = *at;
                }
            }
            Op::SealSegment(id) => self.segments.seal(*id),
            Op::PutVolume(new) => {
                match self.volumes.get_mut(&new.id) {
                    None => self.add_version(new.clone()),
                    Some(old) => {
                        let table = &mut self.table;
                        let mut short = false;
                        self.maps.grow(old, new.blocks, || {
                            next_page(table, pages).unwrap_or_else(|| {
                                short = true;
                                VirtualBlock::NONE
                            })
                        });
                        if short {
                            return Err(bad("a record gives too few map pages"));
                        }
                        old.blocks = new.blocks;
                        old.reserved = new.reserved;
                        old.attachment.clone_from(&new.attachment);
                        self.describe_version(new);
                    }
                }
                self.next_volume = self.next_volume.max(new.id.0 + 1);
            }
            Op::DropVolume(id) => self.drop_version(*id)?,
            Op::Snapshot(snapshot) => self.take_snapshot(snapshot)?,
            Op::Clone(clone) => self.clone_snapshot(clone)?,
            Op::HandOver { volume, to, blocks } => self.hand_over(*volume, *to, blocks)?,
            Op::Clear { volume, lba, slots } => self.clear(*volume, *lba, slots)?,
            Op::Set(Setting { name, value }) => {
                let settings = Arc::make_mut(&mut self.settings);
                match value.is_empty() {
                    true => drop(settings.remove(name)),
                    false => drop(settings.insert(name.clone(), value.clone())),
                }
            }
            Op::Clock(time_s) => self.clock_s = *time_s,
            Op::MoveColumns { segment, incarnation, columns } => {
                self.segments.move_columns(*segment, *incarnation, columns);
            }
        }
        Ok(())
    }

    fn create(&mut self, block: VirtualBlock, frame: &Frame, index: u8, fingerprint: u128) -> Need<()> {
        let entry = BlockEntry {
            frame: frame.at,
            codec: frame.codec,
            index,
            frame_blocks: frame.blocks,
            kind: BlockKind::Data,
            refcount: 1,
            checksum: fingerprint as u64,
            raw_len: frame.raw_len,
            interval: self.table.interval,
        };
        self.table.update(block, |e| *e = entry)?;
        self.segments.add_live(&entry.frame, entry.share());
        self.unique_bytes += BLOCK_BYTES;
        self.stored_bytes += entry.share();
        self.referenced_bytes += BLOCK_BYTES;
        Ok(())
    }

    /// Adds a reference. An earlier operation of the same record may have given the last one back: then the block comes back to life.
    fn share(&mut self, block: VirtualBlock) -> Need<()> {
        let entry = self.table.update(block, |e| {
            e.refcount = e.refcount.saturating_add(1);
            *e
        })?;
        self.referenced_bytes += BLOCK_BYTES;
        if entry.refcount == 1 {
            self.segments.add_live(&entry.frame, entry.share());
            self.unique_bytes += BLOCK_BYTES;
            self.stored_bytes += entry.share();
        }
        Ok(())
    }

    /// Maps consecutive LBAs within one leaf page and gives back what they were mapped to.
    fn map(
        &mut self,
        volume: VolumeId,
        lba: Lba,
        to: &[VirtualBlock],
        pages: &mut impl Iterator<Item = VirtualBlock>,
    ) -> std::result::Result<(), Blocked> {
        let floor = self.floor_of(volume);
        let v = self.volumes.get_mut(&volume).ok_or_else(|| bad(format!("no volume {volume}")))?;
        let zeroes = to.iter().any(|b| b.is_none());
        if to.iter().all(|b| b.is_none()) && !self.maps.has_leaf(v, lba)? {
            return Ok(());
        }
        let table = &mut self.table;
        let (mut short, mut replaced, mut path) = (false, Vec::new(), Vec::new());
        let new_page = || {
            next_page(table, pages).unwrap_or_else(|| {
                short = true;
                VirtualBlock::NONE
            })
        };
        self.maps.set_in_leaf(v, &floor, lba, to, new_page, &mut replaced, &mut path)?;
        if short {
            return Err(bad("a record gives too few map pages"));
        }
        let mapped = to.iter().filter(|b| !b.is_none()).count() as u64;
        self.count_owned(volume, mapped, replaced.len() as u64);
        // A dirty map page needs a dirty table page, so that a checkpoint can give it a place.
        for page in &path {
            self.table.touch(*page)?;
        }
        if !planted::active(Bug::ReferenceLeaked) {
            for old in replaced {
                self.release(old)?;
            }
        }
        if zeroes {
            let mut freed = Vec::new();
            let v = self.volumes.get_mut(&volume).ok_or_else(|| bad(format!("no volume {volume}")))?;
            self.maps.prune(v, lba, |page| freed.push(page))?;
            for page in freed {
                self.release(page)?;
            }
        }
        Ok(())
    }

    /// Gives one reference back.
    pub(super) fn release(&mut self, block: VirtualBlock) -> Need<()> {
        if self.table.is_lost(block) {
            return Ok(());
        }
        let interval = self.table.interval;
        let entry = self.table.update(block, |e| {
            if e.refcount == 0 || e.refcount == u32::MAX {
                return None;
            }
            e.refcount -= 1;
            if e.refcount == 0 {
                e.interval = interval;
            }
            Some(*e)
        })?;
        let Some(entry) = entry else { return Ok(()) };
        if entry.kind == BlockKind::Data {
            self.referenced_bytes = self.referenced_bytes.saturating_sub(BLOCK_BYTES);
        }
        if entry.refcount == 0 {
            self.segments.sub_live(&entry.frame, entry.share());
            if entry.kind == BlockKind::Data {
                self.unique_bytes = self.unique_bytes.saturating_sub(BLOCK_BYTES);
                self.stored_bytes = self.stored_bytes.saturating_sub(entry.share());
            }
        }
        Ok(())
    }

    fn relocate(&mut self, m: &crate::format::record::Move, frame: &Frame) -> Need<()> {
        let old = self.table.entry(m.block)?;
        let same = old.kind == BlockKind::MapPage || old.checksum == m.fingerprint as u64;
        let there = same && old.refcount > 0 && (old.frame.segment, old.frame.offset) == m.from;
        if !there && !planted::active(Bug::MoveUnconditional) {
            return Ok(());
        }
        let new = BlockEntry {
            frame: frame.at,
            codec: frame.codec,
            index: m.index,
            frame_blocks: frame.blocks,
            raw_len: frame.raw_len,
            ..old
        };
        self.table.update(m.block, |e| *e = new)?;
        self.segments.sub_live(&old.frame, old.share());
        self.segments.add_live(&new.frame, new.share());
        if new.kind == BlockKind::Data {
            self.stored_bytes = (self.stored_bytes + new.share()).saturating_sub(old.share());
        }
        Ok(())
    }

    /// A checkpoint wrote a map page: the page, unless it was freed meanwhile, lies at `frame` now.
    pub fn place_map_page(&mut self, block: VirtualBlock, frame: &Frame, checksum: u64) -> Need<()> {
        let old = self.table.entry(block)?;
        if old.refcount == 0 || old.kind != BlockKind::MapPage {
            return Ok(());
        }
        let new = map_page_entry(&old, frame, checksum);
        self.table.patch(block, new)?;
        self.segments.sub_live(&old.frame, old.share());
        self.segments.add_live(&new.frame, new.share());
        Ok(())
    }

    /// What the summary of a part must say about the frames of a record.
    pub fn describe(&self, record: &Record) -> Result<Vec<(Location, Item, usize)>> {
        let mut blocks: Vec<Vec<(VirtualBlock, u128)>> =
            record.frames.iter().map(|f| Vec::with_capacity(f.blocks.into())).collect();
        let mut page: Vec<Option<VirtualBlock>> = vec![None; record.frames.len()];
        let mut put = |frame: u32, index: u8, block: VirtualBlock, fingerprint: u128| {
            let list = &mut blocks[frame as usize];
            list.resize(list.len().max(usize::from(index) + 1), (VirtualBlock::NONE, 0));
            list[usize::from(index)] = (block, fingerprint);
        };
        for op in &record.ops {
            match op {
                Op::Write { blocks, .. } => {
                    for b in blocks {
                        if let BlockRef::New { block, frame, index, fingerprint } = *b {
                            put(frame, index, block, fingerprint);
                        }
                    }
                }
                Op::Relocate(moves) => {
                    for m in moves {
                        if usize::from(record.frames[m.frame as usize].raw_len)
                            == usize::from(record.frames[m.frame as usize].blocks) * BLOCK_SIZE
                        {
                            put(m.frame, m.index, m.block, m.fingerprint);
                        } else {
                            page[m.frame as usize] = Some(m.block);
                        }
                    }
                }
                _ => {}
            }
        }
        let items = record.frames.iter().zip(blocks).zip(page).map(|((frame, blocks), page)| {
            let content = page.map_or(Content::Data(blocks), Content::MapPage);
            (frame.at, Item { offset: frame.at.offset, len: frame.at.len, content }, usize::from(frame.blocks))
        });
        Ok(items.collect())
    }
}

/// Counts the map pages that come into being with a record, at most. A page that is emptied and so removed by one operation may be needed
/// again by a later one, under another identity.
#[derive(Default)]
struct Created {
    /// Since their volume was last emptied somewhere.
    pages: HashSet<PageKey, rustc_hash::FxBuildHasher>,
    /// Before that.
    earlier: usize,
    emptied: Vec<VolumeId>,
}

impl Created {
    fn add(&mut self, page: PageKey) {
        self.pages.insert(page);
    }

    /// Any pages of the volume may be removed now.
    fn empty(&mut self, volume: VolumeId) {
        let before = self.pages.len();
        self.pages.retain(|page| page.0 != volume);
        self.earlier += before - self.pages.len();
        if !self.emptied.contains(&volume) {
            self.emptied.push(volume);
        }
    }

    /// All pages on the way to an LBA, if they may have been removed.
    fn whole_path(&mut self, volume: &VolumeRecord, lba: Lba) {
        if self.emptied.contains(&volume.id) {
            self.pages.extend((0..volume.levels).map(|l| (volume.id, l, page_index(lba.0, l))));
        }
    }

    fn count(&self) -> usize {
        self.earlier + self.pages.len()
    }
}

/// When a version expires, if it does.
pub(super) fn expiry(version: &VolumeRecord) -> Option<(u64, VolumeId)> {
    let expires_s = version.protection.expires_s;
    (expires_s > 0).then_some((expires_s, version.id))
}

/// LBAs from `lba` to the end of its leaf page, or to `end`.
fn leaf_rest(lba: u64, end: u64) -> usize {
    (MAP_FANOUT - lba as usize % MAP_FANOUT).min((end - lba) as usize)
}

/// The entry of a map page that lies at `frame` now.
pub fn map_page_entry(old: &BlockEntry, frame: &Frame, checksum: u64) -> BlockEntry {
    BlockEntry {
        frame: frame.at,
        codec: frame.codec,
        index: 0,
        frame_blocks: 1,
        raw_len: frame.raw_len,
        checksum,
        ..*old
    }
}

/// Takes the next page identity of a record and enters it into the table.
fn next_page(table: &mut BlockTable, pages: &mut impl Iterator<Item = VirtualBlock>) -> Option<VirtualBlock> {
    let block = pages.next()?;
    let entry = BlockEntry { refcount: 1, frame_blocks: 1, kind: BlockKind::MapPage, ..BlockEntry::default() };
    table.update(block, |e| *e = entry).ok()?;
    Some(block)
}
