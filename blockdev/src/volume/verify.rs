//! Comparing what rows of a segment hold with the checksums of everything live in them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::Engine;
use crate::codec::{self, Codec};
use crate::env::{Env, compute};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::page::{BlockEntry, BlockKind, DIRECTORY_PAGE_SIZE, Location, TABLE_FANOUT, TABLE_PAGE_SIZE};
use crate::format::part::{Content, Item, Part};
use crate::format::record::SegmentRecord;
use crate::map::Need;
use crate::redundancy::rows::Rows;
use crate::units::{BLOCK_SIZE, SegmentId, VirtualBlock};

/// What stored bytes must be.
enum Expected {
    /// A frame whose blocks have these checksums, by index.
    Blocks(Codec, u16, Vec<(u8, u64)>),
    /// A frame of so many blocks, of which the summary alone tells: nobody knows its codec, nor which of them are live.
    Unlisted(usize, Vec<(u8, u64)>),
    /// A frame with this checksum.
    Page(Codec, u16, u64),
    /// The summary of a part of this use of a segment.
    Summary(SegmentId, u64),
}

/// Stored bytes of a segment and what they must be.
pub(super) struct Check {
    /// Where they begin in the data space.
    pub(super) offset: u32,
    /// How many.
    pub(super) len: u16,
    expected: Expected,
}

impl Check {
    /// Whether it is about something live.
    pub(super) fn is_listed(&self) -> bool {
        !matches!(self.expected, Expected::Unlisted(..))
    }

    fn end(&self) -> u32 {
        self.offset + u32::from(self.len)
    }

    /// Whether stored bytes are what they must be; `raw` is room to uncompress them.
    pub(super) fn passes(&self, stored: &[u8], raw: &mut Vec<u8>) -> bool {
        let decode = |codec, raw_len: usize, raw: &mut Vec<u8>| {
            raw.resize(raw_len, 0);
            codec::decompress(codec, stored, raw).is_ok()
        };
        let have = |raw: &[u8], sums: &[(u8, u64)]| {
            sums.iter().all(|(index, sum)| {
                let start = usize::from(*index) * BLOCK_SIZE;
                raw.get(start..start + BLOCK_SIZE).is_some_and(|block| checksum(block) == *sum)
            })
        };
        match &self.expected {
            Expected::Summary(segment, incarnation) => {
                Part::decode(stored).is_ok_and(|p| p.segment == *segment && p.incarnation == *incarnation)
            }
            Expected::Page(codec, raw_len, sum) => decode(*codec, (*raw_len).into(), raw) && checksum(raw) == *sum,
            Expected::Blocks(codec, raw_len, sums) => decode(*codec, (*raw_len).into(), raw) && have(raw, sums),
            Expected::Unlisted(blocks, sums) => [Codec::Raw, Codec::Lz4, Codec::Zstd]
                .into_iter()
                .any(|codec| decode(codec, blocks * BLOCK_SIZE, raw) && have(raw, sums)),
        }
    }
}

/// What is known of the live content of a segment.
pub(super) enum LiveFrames {
    /// What all of it must be.
    All(Vec<Check>),
    /// Some of what refers to it cannot be read. Frames of data are compared with the summaries then, whether they are live or not.
    Part {
        /// What is known.
        checks: Vec<Check>,
        /// There are pages of which nothing tells what they must be.
        blind: bool,
    },
    /// A summary cannot be read.
    NoSummary,
}

/// Takes a segment's rows one after another and checks what is complete.
pub(super) struct Verifier {
    /// In order of their offsets.
    checks: std::vec::IntoIter<Check>,
    next: Option<Check>,
    /// Data space from `base` on that later checks need.
    carried: Vec<u8>,
    base: u32,
}

impl Verifier {
    pub fn new(mut checks: Vec<Check>) -> Self {
        checks.sort_unstable_by_key(|c| c.offset);
        let mut checks = checks.into_iter();
        Self { next: checks.next(), checks, carried: Vec::new(), base: 0 }
    }

    /// Whether nothing is left to be checked.
    pub fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// Takes the next rows; gives back the checks that something in them did not pass.
    pub async fn feed(&mut self, env: &Arc<dyn Env>, rows: Rows) -> Result<Vec<Check>> {
        let (mut data, base) = (std::mem::take(&mut self.carried), self.base);
        let (bad, data, end) = {
            let mut due = Vec::new();
            let end = base + data.len() as u32 + rows.data_len() as u32;
            while let Some(check) = self.next.take_if(|c| c.end() <= end) {
                due.push(check);
                self.next = self.checks.next();
            }
            let job = move || {
                data.extend_from_slice(&rows.data_space());
                let mut raw = Vec::new();
                let stored = |c: &Check| (c.offset - base) as usize..(c.end() - base) as usize;
                due.retain(|c| !data.get(stored(c)).is_some_and(|s| c.passes(s, &mut raw)));
                (due, data)
            };
            let stopped = || Error::new(ErrorKind::Unavailable, "the pool is stopped");
            let (bad, data) = compute(env, job).await.ok_or_else(stopped)?;
            (bad, data, end)
        };
        let keep = self.next.as_ref().map_or(end, |c| c.offset.min(end));
        self.carried = data[(keep - base) as usize..].to_vec();
        self.base = keep;
        Ok(bad)
    }
}

impl Engine {
    /// Everything live in a sealed segment, perhaps live where that cannot be looked up, and its summaries.
    pub(super) async fn live_frames(&self, record: &SegmentRecord) -> Result<LiveFrames> {
        let (mut out, mut all, mut blind) = (Vec::new(), true, false);
        let mut at = record.last_part;
        while at.len > 0 {
            let _pass = self.gate.enter();
            let Some(part) = self.read_part(record.id, at.offset).await else { return Ok(LiveFrames::NoSummary) };
            let expected = Expected::Summary(record.id, record.incarnation);
            out.push(Check { offset: at.offset, len: at.len, expected });
            for item in &part.items {
                match self.with_state(|s| expected_of(s, record.id, item)).await {
                    Ok(Some(expected)) => out.push(Check { offset: item.offset, len: item.len, expected }),
                    Ok(None) => {}
                    Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io) => {
                        all = false;
                        match unlisted(item) {
                            Some(expected) => out.push(Check { offset: item.offset, len: item.len, expected }),
                            None => blind = true,
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
            at = part.previous;
        }
        Ok(if all { LiveFrames::All(out) } else { LiveFrames::Part { checks: out, blind } })
    }
}

impl Engine {
    /// Everything that the block table has in a segment: for one whose summaries cannot be read. Of fingerprints the lower half. Looks at all of
    /// the table; false when some of it cannot be read.
    pub(super) async fn items_by_table(&self, segment: SegmentId) -> Result<(Vec<Item>, bool)> {
        let unreadable = |e: &Error| matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io);
        let mut complete = true;
        let mut frames: BTreeMap<u32, Item> = BTreeMap::new();
        let mut add = |at: &Location, content: Content| {
            let new = Item { offset: at.offset, len: at.len, content };
            match frames.entry(at.offset) {
                Entry::Vacant(slot) => drop(slot.insert(new)),
                Entry::Occupied(mut slot) => {
                    if let (Content::Data(known), Content::Data(more)) = (&mut slot.get_mut().content, new.content) {
                        known.resize(known.len().max(more.len()), (VirtualBlock::NONE, 0));
                        let more = more.into_iter().enumerate().filter(|(_, (block, _))| !block.is_none());
                        more.for_each(|(i, block)| known[i] = block);
                    }
                }
            }
        };
        let (pages, roots) = {
            let state = self.state.read();
            (state.table.len / TABLE_FANOUT as u64, state.table.roots.clone())
        };
        for (directory, root) in
            roots.iter().enumerate().filter(|(_, root)| root.at.segment == segment && !root.is_none())
        {
            add(&root.at, Content::DirectoryPage(directory as u64));
        }
        for page in 0..pages {
            self.check_alive()?;
            let first = page * TABLE_FANOUT as u64;
            let _pass = self.gate.enter();
            let found = self
                .with_state(|s| {
                    let entry = |i| Ok((VirtualBlock(i), s.table.entry(VirtualBlock(i))?));
                    let here = |e: &BlockEntry| e.refcount > 0 && e.frame.segment == segment && e.frame.len > 0;
                    let entries = (first..first + TABLE_FANOUT as u64).map(entry).collect::<Need<Vec<_>>>()?;
                    let entries: Vec<_> = entries.into_iter().filter(|(_, e)| here(e)).collect();
                    Ok((s.table.pointer(page)?, entries))
                })
                .await;
            let (pointer, entries) = match found {
                Err(e) if unreadable(&e) => {
                    complete = false;
                    continue;
                }
                other => other?,
            };
            if pointer.at.segment == segment && !pointer.is_none() {
                add(&pointer.at, Content::TablePage(page));
            }
            for (block, e) in entries {
                let content = match e.kind {
                    BlockKind::MapPage => Content::MapPage(block),
                    BlockKind::Data => {
                        let mut blocks = vec![(VirtualBlock::NONE, 0); usize::from(e.index) + 1];
                        blocks[usize::from(e.index)] = (block, e.checksum.into());
                        Content::Data(blocks)
                    }
                };
                add(&e.frame, content);
            }
        }
        Ok((frames.into_values().collect(), complete))
    }
}

/// What the frame of an item was when it was written, as its summary tells; none for pages.
fn unlisted(item: &Item) -> Option<Expected> {
    let Content::Data(blocks) = &item.content else { return None };
    // The block table has the lower half.
    let sums = blocks.iter().enumerate().filter(|(_, (block, _))| !block.is_none());
    Some(Expected::Unlisted(blocks.len(), sums.map(|(i, (_, fp))| (i as u8, *fp as u64)).collect()))
}

/// What the frame of an item must be; none when nothing refers to it.
fn expected_of(s: &super::state::State, segment: SegmentId, item: &Item) -> Need<Option<Expected>> {
    let here = |at: &Location| (at.segment, at.offset) == (segment, item.offset);
    let live = |e: &BlockEntry| e.refcount > 0 && here(&e.frame);
    Ok(match &item.content {
        Content::Data(blocks) => {
            let mut sums = Vec::with_capacity(blocks.len());
            let mut frame = None;
            for (i, (block, _)) in blocks.iter().enumerate().filter(|(_, (block, _))| !block.is_none()) {
                let e = s.table.entry(*block)?;
                if live(&e) && e.kind == BlockKind::Data && usize::from(e.index) == i {
                    sums.push((e.index, e.checksum));
                    frame = Some((e.codec, e.raw_len));
                }
            }
            frame.map(|(codec, raw_len)| Expected::Blocks(codec, raw_len, sums))
        }
        Content::MapPage(block) => {
            let e = s.table.entry(*block)?;
            (live(&e) && e.kind == BlockKind::MapPage).then_some(Expected::Page(e.codec, e.raw_len, e.checksum))
        }
        Content::TablePage(page) => {
            let p = s.table.pointer(*page)?;
            here(&p.at).then_some(Expected::Page(p.codec, TABLE_PAGE_SIZE as u16, p.checksum))
        }
        Content::DirectoryPage(page) => {
            let p = s.table.roots.get(*page as usize).copied().unwrap_or_default();
            here(&p.at).then_some(Expected::Page(p.codec, DIRECTORY_PAGE_SIZE as u16, p.checksum))
        }
    })
}
