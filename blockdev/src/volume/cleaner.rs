//! The cleaner: copies what is live out of segments that are mostly dead, so that they can be reused.
//!
//! Victims are chosen by benefit over cost (Rosenblum and Ousterhout, "The design and implementation of a log-structured file
//! system", 1992): (1 - u) * age / (1 + u). Blocks move by changing the block table only. Pages of a metadata segment are
//! not copied but made dirty: the next checkpoint writes them elsewhere. A segment with something unreadable is set aside.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustc_hash::FxHashMap;

use super::Engine;
use super::checkpoint::Awaited;
use super::commit::Draft;
use super::frame::Effort;
use super::pace::control::Class;
use super::space::{LeftTo, Space};
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::{BlockEntry, BlockKind};
use crate::format::part::{Content, Item};
use crate::format::record::{Move, Op, Record, SegmentRecord, Stream};
use crate::units::{SegmentId, VirtualBlock};

/// Segments fuller than this are not worth cleaning.
const LIVE_MAX: f64 = 0.95;
/// Bytes of a segment that takes long to empty.
const LARGE: u64 = 64 << 20;
/// Segments cleaned at the same time.
const AT_ONCE: usize = 4;
/// Blocks moved by one record.
const MOVE_BLOCKS: usize = 128;
/// Segments cleaned before a checkpoint gives them back: where hosts are about to need them, and at most.
const ROUND: usize = 4;
/// See [`ROUND`].
const ROUND_MAX: usize = 64;
/// Rounds that move something and gain nothing, one after another, before cleaning rests: a gain of a few percent of a segment each takes several to show.
const FRUITLESS_MAX: u32 = 16;
/// First and longest rest. It ends by itself, as what kept cleaning from gaining may have passed with nobody noticing.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));
/// Longest pause between looks at the free space.
const PAUSE: Duration = Duration::from_secs(2);

/// A block to be moved, and its fingerprint.
type Live = (VirtualBlock, u128, BlockEntry);
/// One that could be read, with its content.
type Good = (VirtualBlock, u128, BlockEntry, Bytes);

/// What segments are emptied for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Free segments.
    Room,
    /// What is live is to lie elsewhere.
    Elsewhere,
    /// What is live is to take less.
    Tighter,
}

impl Purpose {
    /// Who may count on what is left free.
    fn left(self) -> LeftTo {
        if self == Self::Room { LeftTo::Checkpoints } else { LeftTo::Others }
    }

    fn class(self, engine: &Engine) -> Class {
        if self == Self::Tighter { Class::Upkeep } else { engine.cleaning() }
    }

    /// What is moved anyway is compressed as well as there is time for.
    fn effort(self, engine: &Engine) -> Effort {
        match self {
            Self::Tighter => Effort::High,
            Self::Room if engine.recompresses() && engine.space().need() < 0.5 => Effort::High,
            _ => Effort::Usual,
        }
    }
}

/// Tells cleaning that gains something from moving data about for ever, as in a pool that holds more than it has room for since drives went.
#[derive(Default)]
struct Gain {
    /// What others did when it was last looked at: disks that came and went, host operations, columns written anew.
    others: (u64, u64, u64),
    /// Most segments that were free since then.
    free: u64,
    /// Live bytes at that time.
    live: u64,
    /// Rounds since then, or since the last rest, that moved something.
    fruitless: u32,
    /// When the rest ends, and how long it is; none when there was none since then.
    rest: Option<(Duration, Duration)>,
}

impl Gain {
    /// Looks at the state before a round; false when it is time to rest.
    fn is_worth_a_round(&mut self, engine: &Engine) -> bool {
        let now = engine.env.now();
        let free = engine.space().free_segments;
        let rebuilt = engine.counters.rebuilt.load(Ordering::Relaxed);
        let (seqno, live) = {
            let state = engine.state.read();
            (state.seqno.0, state.segments.live())
        };
        let others = (engine.array.changes(), seqno, rebuilt);
        let freed = live + u64::from(engine.array.geometry.chunk_size) <= self.live;
        if others != self.others || free > self.free || freed {
            *self = Self { others, free, live, ..Self::default() };
        }
        if self.fruitless >= FRUITLESS_MAX {
            let pause = self.rest.map_or(REST.0, |(_, last)| (2 * last).min(REST.1));
            (self.fruitless, self.rest) = (0, Some((now + pause, pause)));
        }
        self.rest.is_none_or(|(until, _)| now >= until)
    }
}

/// Segments that are no victims, by incarnation: until which checkpoint.
#[derive(Default)]
struct Aside(FxHashMap<u64, u64>);

impl Aside {
    fn contains(&self, incarnation: u64) -> bool {
        self.0.contains_key(&incarnation)
    }

    fn until(&mut self, incarnation: u64, checkpoint: u64) {
        self.0.insert(incarnation, checkpoint);
    }

    fn no_longer(&mut self, incarnation: u64) {
        self.0.remove(&incarnation);
    }

    /// The newest checkpoint is this one.
    fn look(&mut self, newest: u64) {
        self.0.retain(|_, checkpoint| *checkpoint > newest);
    }
}

impl Engine {
    /// The task that cleans when free segments run low.
    pub(super) async fn clean_loop(self: Arc<Self>) {
        let (mut aside, mut gain) = (Aside::default(), Gain::default());
        loop {
            let wanted = self.cleaner_wanted.notified();
            let timer = self.env.sleep(PAUSE);
            tokio::pin!(wanted);
            futures::future::select(wanted, timer).await;
            if self.is_dead() {
                return;
            }
            if let Err(e) = self.clean_until_enough(&mut aside, &mut gain).await {
                if e.kind() != ErrorKind::NoSpace && e.kind() != ErrorKind::Unavailable {
                    tracing::error!(pool = self.name, error = %e, "cleaning stopped");
                }
                if self.is_dead() {
                    return;
                }
            }
        }
    }

    async fn clean_until_enough(self: &Arc<Self>, aside: &mut Aside, gain: &mut Gain) -> Result<()> {
        if !self.space().is_low() || !self.gives_back() {
            return Ok(());
        }
        self.is_cleaning.store(true, Ordering::Release);
        let result = self.clean_rounds(aside, gain).await;
        self.is_cleaning.store(false, Ordering::Release);
        result
    }

    async fn clean_rounds(self: &Arc<Self>, aside: &mut Aside, gain: &mut Gain) -> Result<()> {
        let mut under_way: Option<Awaited> = None;
        let mut at = self.env.now();
        let mut count_time = || {
            let passed = self.env.now().saturating_sub(at);
            at += passed;
            self.counters.cleaner_us.fetch_add(passed.as_micros() as u64, Ordering::Relaxed);
        };
        while !self.space().is_enough() && self.gives_back() && gain.is_worth_a_round(self) {
            let cleaned = self.clean_round(aside, gain).await?;
            count_time();
            let before = self.space().free_segments;
            // One at a time. What it gives back is what was emptied before it began.
            if let Some(checkpoint) = under_way.take() {
                checkpoint.await?;
            }
            let checkpoint = self.begin_checkpoint();
            if cleaned > 0 && !self.space().is_urgent() {
                under_way = Some(checkpoint);
                continue;
            }
            checkpoint.await?;
            if cleaned == 0 && self.space().free_segments <= before {
                break;
            }
        }
        if let Some(checkpoint) = under_way {
            checkpoint.await?;
        }
        count_time();
        Ok(())
    }

    /// Whether checkpoints give segments back. While somebody reads one no segment comes back: cleaning would only use up what is free.
    pub(super) fn gives_back(&self) -> bool {
        self.pins.load(Ordering::Acquire) == 0 && !self.is_dead()
    }

    /// Cleans as many segments as one checkpoint is to give back; says how many.
    async fn clean_round(self: &Arc<Self>, aside: &mut Aside, gain: &mut Gain) -> Result<usize> {
        let moved = || self.counters.cleaner_moved.load(Ordering::Relaxed);
        let moved_before = moved();
        aside.look(*self.checkpointed.borrow());
        let (mut cleaned, mut has_room, mut failed) = (0, true, Ok(()));
        let mut under_way = FuturesUnordered::new();
        // What those under way may still move.
        let mut moving = 0;
        loop {
            let space = self.space();
            let most = if space.is_urgent() { ROUND } else { ROUND_MAX };
            let is_over = cleaned >= most || cleaned >= ROUND && space.is_enough() || !has_room || failed.is_err();
            // Those under way may take long: what is empty is not to wait for them.
            if is_over && space.is_urgent() && space.segment >= LARGE && space.emptied > space.checkpoint {
                self.ask_for_segments();
            }
            if under_way.len() < AT_ONCE && !is_over && self.gives_back() {
                let victim =
                    self.choose_victim(aside).filter(|v| self.has_room_to_empty(v, moving, LeftTo::Checkpoints));
                if let Some(victim) = victim {
                    aside.until(victim.incarnation, u64::MAX);
                    if !self.back_pressure.begin(&victim) {
                        // Somebody else empties it.
                        aside.until(victim.incarnation, *self.checkpointed.borrow() + 1);
                        continue;
                    }
                    cleaned += 1;
                    moving += victim.live;
                    let engine = self.clone();
                    under_way.push(async move {
                        let result = engine.clean_segment(&victim, Purpose::Room).await;
                        (victim, result)
                    });
                    continue;
                }
            }
            let Some((victim, result)) = under_way.next().await else { break };
            moving -= victim.live;
            self.back_pressure.end(&victim);
            match result {
                Ok(true) if self.is_emptied(&victim) => {
                    self.counters.cleaner_segments.fetch_add(1, Ordering::Relaxed);
                    self.counters.cleaner_cleaned.fetch_add(space.segment, Ordering::Relaxed);
                    // Pages of a metadata segment are written elsewhere by the next checkpoint. One that is under way may have begun before.
                    let next = *self.checkpointed.borrow() + 1 + u64::from(self.checkpoints.try_lock().is_err());
                    aside.until(victim.incarnation, next);
                }
                // Others took the room. The checkpoint gives back what was emptied so far.
                Err(e) if e.kind() == ErrorKind::NoSpace => {
                    aside.no_longer(victim.incarnation);
                    cleaned -= 1;
                    has_room = false;
                }
                // The others are not given up in the middle of a commit.
                Err(e) => failed = Err(e),
                Ok(_) => {
                    tracing::warn!(segment = victim.id.0, "a segment has blocks that cannot be read; it is set aside");
                }
            }
        }
        gain.fruitless += u32::from(cleaned > 0 || moved() != moved_before);
        failed.map(|()| cleaned)
    }

    /// Whether cleaning left nothing behind. Metadata segments empty with the next checkpoint.
    pub(super) fn is_emptied(&self, victim: &SegmentRecord) -> bool {
        let state = self.state.read();
        let live = state
            .segments
            .get(victim.id)
            .filter(|s| s.record.incarnation == victim.incarnation)
            .map_or(0, |s| s.record.live);
        live == 0 || victim.stream == Stream::Meta
    }

    /// Whether all that is live in a segment can be moved: one that is half moved would hold its space, and that of the copies as well.
    /// `moving` is what is on its way already.
    pub(super) fn has_room_to_empty(&self, victim: &SegmentRecord, moving: u64, left: LeftTo) -> bool {
        let space = self.space();
        // Pages are not copied, only written once more by the next checkpoint.
        let bytes = if victim.stream == Stream::Meta { 0 } else { victim.live };
        self.has_room_to_move(&space, bytes + moving, victim.live + moving, left)
    }

    /// Whether so many bytes can be moved, which makes about as many bytes of pages dirty at most. What fits into the segments that are open
    /// takes no other, and makes room.
    fn has_room_to_move(&self, space: &Space, bytes: u64, dirty: u64, left: LeftTo) -> bool {
        let segment = self.certain(space.segment).max(1);
        let rest = bytes.saturating_sub(self.open_room(Stream::Cold));
        if left == LeftTo::Checkpoints {
            if rest == 0 {
                let fits = || space.dirty + dirty <= self.open_room(Stream::Meta);
                return space.free_segments > space.checkpoint || fits();
            }
            // It gives back twice what it takes.
            if rest <= segment / 2 && space.free_segments > space.checkpoint + 1 {
                return true;
            }
        }
        space.free_segments >= space.left_to(left) + rest.div_ceil(segment)
    }

    /// Bytes that fit into the open segment of a stream.
    pub(super) fn open_room(&self, stream: Stream) -> u64 {
        let state = self.state.read();
        let is_of =
            |id: &SegmentId| state.segments.get(*id).is_some_and(|s| s.record.stream == stream && !s.record.sealed);
        let open = self.appenders.read();
        open.iter().filter(|(id, a)| is_of(id) && !self.is_hurt(a)).map(|(_, a)| a.room()).max().unwrap_or(0)
    }

    /// The sealed segment whose cleaning pays most; where next to nothing is free, the emptiest.
    fn choose_victim(&self, aside: &Aside) -> Option<SegmentRecord> {
        // Of a new segment: one that data has just been moved to is no victim for what did not fit at its end.
        let space = self.space();
        let segment = self.certain(space.segment);
        let scarce = space.free_segments < space.host_min();
        let state = self.state.read();
        let appenders = self.appenders.read();
        let newest = state.segments.next_incarnation;
        let worth = state.segments.worth(&self.array, segment);
        let score = |s: &SegmentRecord| {
            let u = s.live as f64 / worth(s) as f64;
            let age = if scarce { 1.0 } else { (newest - s.incarnation) as f64 };
            (u < LIVE_MAX).then(|| (1.0 - u) * age / (1.0 + u))
        };
        let candidates = state
            .segments
            .iter()
            .map(|s| &s.record)
            .filter(|s| s.sealed && s.live > 0 && !aside.contains(s.incarnation) && !appenders.contains_key(&s.id));
        let best = candidates.filter_map(|s| Some((score(s)?, s))).max_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, s)| s.clone())
    }

    /// Moves everything live out of a segment. False when something cannot be read; `NoSpace` when fewer segments than that would be left free.
    pub(super) async fn clean_segment(self: &Arc<Self>, victim: &SegmentRecord, purpose: Purpose) -> Result<bool> {
        let mut complete = true;
        let mut at = victim.last_part;
        while at.len > 0 {
            // Before the pass: the checkpoint that makes room waits for all passes.
            let turn = self.turn(purpose.class(self)).await;
            self.wait_for_log().await?;
            let pass = self.gate.enter();
            let Some(part) = self.read_part(victim.id, at.offset).await else {
                // That waits again, for each of its pieces.
                drop((pass, turn));
                return Ok(self.clean_by_table(victim, purpose).await? && complete);
            };
            complete &= self.clean_items(victim, &part.items, purpose).await?;
            at = part.previous;
        }
        Ok(complete)
    }

    /// The same without summaries.
    async fn clean_by_table(self: &Arc<Self>, victim: &SegmentRecord, purpose: Purpose) -> Result<bool> {
        let (items, mut complete) = self.items_by_table(victim.id).await?;
        for items in items.chunks(MOVE_BLOCKS) {
            let _turn = self.turn(purpose.class(self)).await;
            self.wait_for_log().await?;
            let _pass = self.gate.enter();
            complete &= self.clean_items(victim, items, purpose).await?;
        }
        Ok(complete)
    }

    async fn clean_items(self: &Arc<Self>, victim: &SegmentRecord, items: &[Item], purpose: Purpose) -> Result<bool> {
        let mut complete = true;
        let mut moving: Vec<Live> = Vec::new();
        for item in items {
            complete &= self.collect_live(victim.id, item, &mut moving).await?;
            while moving.len() >= MOVE_BLOCKS {
                let rest = moving.split_off(MOVE_BLOCKS);
                let batch = std::mem::replace(&mut moving, rest);
                complete &= self.move_blocks(batch, purpose).await?;
            }
        }
        if !moving.is_empty() {
            complete &= self.move_blocks(moving, purpose).await?;
        }
        Ok(complete)
    }

    /// Adds the blocks of a frame that are still there; makes metadata pages dirty. False when a page cannot be read.
    async fn collect_live(&self, segment: SegmentId, item: &Item, out: &mut Vec<Live>) -> Result<bool> {
        let here = |e: &BlockEntry| e.refcount > 0 && (e.frame.segment, e.frame.offset) == (segment, item.offset);
        let unreadable = |e: &Error| matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io);
        let touched = match &item.content {
            Content::Data(blocks) => {
                for (i, (block, fingerprint)) in blocks.iter().enumerate() {
                    if block.is_none() {
                        continue;
                    }
                    let entry = match self.with_state(|s| s.table.entry(*block)).await {
                        Err(e) if unreadable(&e) => return Ok(false),
                        other => other?,
                    };
                    if here(&entry) && usize::from(entry.index) == i && entry.kind == BlockKind::Data {
                        out.push((*block, *fingerprint, entry));
                    }
                }
                Ok(())
            }
            Content::MapPage(block) => {
                let touch = |s: &mut super::state::State| {
                    s.table.ensure(*block)?;
                    if !s.table.entry(*block).is_ok_and(|e| here(&e)) {
                        return Ok(());
                    }
                    s.maps.pages.get_mut(block.0).ok_or(crate::map::Miss::Map(*block))?;
                    Ok(s.table.touch(*block)?)
                };
                self.with_state_mut(touch).await
            }
            Content::TablePage(page) => {
                let first = VirtualBlock(page * crate::format::page::TABLE_FANOUT as u64);
                let touch = |s: &mut super::state::State| {
                    let pointer = s.table.pointer(*page)?;
                    if (pointer.at.segment, pointer.at.offset) == (segment, item.offset) {
                        s.table.touch(first)?;
                    }
                    Ok(())
                };
                self.with_state_mut(touch).await
            }
            Content::DirectoryPage(page) => {
                let touch = |s: &mut super::state::State| {
                    let root = s.table.roots.get(*page as usize).copied().unwrap_or_default();
                    if (root.at.segment, root.at.offset) == (segment, item.offset) {
                        s.table.directory.get_mut(*page).ok_or(crate::map::Miss::Directory(*page))?;
                    }
                    Ok(())
                };
                self.with_state_mut(touch).await
            }
        };
        match touched {
            Ok(()) => Ok(true),
            Err(e) if unreadable(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Blocks of some frames that are still there, as many as are moved at a time.
    pub(super) async fn live_of(&self, segment: SegmentId, items: &[Item]) -> Result<Vec<BlockEntry>> {
        let mut live = Vec::new();
        for item in items.iter().filter(|item| matches!(item.content, Content::Data(_))) {
            if live.len() >= MOVE_BLOCKS {
                break;
            }
            self.collect_live(segment, item, &mut live).await?;
        }
        Ok(live.into_iter().map(|(.., entry)| entry).collect())
    }

    /// Copies blocks to the cold stream. False when some could not be read.
    async fn move_blocks(self: &Arc<Self>, live: Vec<Live>, purpose: Purpose) -> Result<bool> {
        let entries: Vec<BlockEntry> = live.iter().map(|(_, _, e)| *e).collect();
        let content = self.fetch_blocks(&entries).await;
        let mut complete = true;
        let mut good: Vec<Good> = Vec::with_capacity(live.len());
        for ((block, fingerprint, entry), content) in live.into_iter().zip(content) {
            match content {
                Ok(data) => {
                    // The block table has the lower half.
                    let whole = if fingerprint >> 64 == 0 { crate::codec::fingerprint(&data) } else { fingerprint };
                    good.push((block, whole, entry, data));
                }
                Err(_) => complete = false,
            }
        }
        if good.is_empty() {
            return Ok(complete);
        }
        let effort = purpose.effort(self);
        let per_frame = effort.frame_blocks(&self.config);
        let frames = self.compress_moved(good.iter().map(|(.., data)| data.clone()).collect(), effort).await?;
        let bytes: usize = frames.iter().map(|f| f.stored.len()).sum();

        let mut committer = self.committer.lock().await;
        let space = self.space();
        let may = purpose != Purpose::Tighter || space.need() == 0.0 && self.gives_back();
        if !may || !self.has_room_to_move(&space, bytes as u64, bytes as u64, purpose.left()) {
            return Err(Error::new(ErrorKind::NoSpace, "no free segment is left for the cleaner"));
        }
        let mut moves = Vec::with_capacity(good.len());
        let mut contents = Vec::with_capacity(frames.len());
        for (n, group) in good.chunks(per_frame).enumerate() {
            contents.push(Content::Data(group.iter().map(|(block, fp, ..)| (*block, *fp)).collect()));
            for (i, (block, fingerprint, entry, _)) in group.iter().enumerate() {
                moves.push(Move {
                    block: *block,
                    from: (entry.frame.segment, entry.frame.offset),
                    frame: n as u32,
                    index: i as u8,
                    fingerprint: *fingerprint,
                });
            }
        }
        let mut draft = Draft::default();
        let committed = async {
            self.place_frames(&mut committer, Stream::Cold, &frames, contents, &mut draft)?;
            draft.record = Record { ops: vec![Op::Relocate(moves)], ..draft.record };
            self.commit(&mut committer, draft).await
        };
        if let Err(e) = committed.await {
            // Stripes that were filled, and segments that were opened, are in no record.
            self.fail(e.clone().context("cleaning"));
            return Err(e);
        }
        self.counters.cleaner_moved.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(complete)
    }
}
