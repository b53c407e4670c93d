//! Rebuild and catching up: columns of segments that were lost are computed from the others and written anew, on the disk that came
//! back or into the spare on others. `docs/design/0005-rebuild.md` has the invariants.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use rustc_hash::FxHashSet;

use super::Engine;
use super::cleaner::Purpose;
use super::commit::Draft;
use super::pace::control::Class;
use super::scrub::ERRORS_MANY;
use super::space::LeftTo;
use super::state::State;
use super::verify::{Check, LiveFrames, Verifier};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{ColumnMove, Op, Record, SegmentRecord};
use crate::planted::{self, Bug};
use crate::redundancy::array::{Extent, Member};
use crate::redundancy::requests::Requests;
use crate::report::Rebuild;
use crate::segment::table::{Segment, home, strays};
use crate::units::{ChunkIndex, DiskId};

/// Bytes of all columns of a segment read at once, about.
pub(super) const WINDOW: u64 = 2 << 20;
/// Memory that work on one segment takes, in windows: rows as they were read, put in order, on their way to disk.
const WINDOWS: u64 = 3;
/// Most segments worked on at the same time.
const AT_ONCE_MAX: usize = 12;
/// Segments done, for each that is worked on at the same time, before what is most urgent is looked for again.
const ROUND: usize = 8;
/// Pause between looks while something is left that cannot be done now.
const PAUSE: Duration = Duration::from_secs(2);
/// Free segments that work leaves to hosts which is not about what failed.
const SPREAD_MARGIN: u64 = 4;
/// Segments of which less is live are emptied: that moves less than a column has.
const LIVE_MIN: f64 = 0.15;

/// Why a segment is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It lacks columns, or some of them are to be elsewhere.
    Repair,
    /// Disks are to be filled evenly.
    Balance,
    /// It is to be written again in the present width.
    Restripe,
}

/// Why data moves when disks are filled evenly.
const SPREADING: &str = Rebuild::SPREADING;

/// A segment with columns to be written anew.
#[derive(Clone)]
pub(super) struct Degraded {
    pub(super) record: SegmentRecord,
    pub(super) extent: Arc<Extent>,
    /// Bit per column that must be computed.
    pub(super) lost: u32,
    /// Bit per column that is to be written. None: all of it is to be written elsewhere, with more parity.
    pub(super) wanted: u32,
    /// Bit per wanted column that is there, but not what it should be: it goes to a fresh chunk, of the same disk if that has one.
    pub(super) bad: u32,
    /// Bit per wanted column that is whole, and is to be on another disk.
    pub(super) moving: u32,
    /// Why.
    pub(super) kind: Kind,
}

impl Degraded {
    /// Failures it survives.
    fn left(&self) -> usize {
        usize::from(self.record.parity).saturating_sub(self.lost.count_ones() as usize)
    }

    /// Parity to be written.
    fn wanted_parity(&self) -> u32 {
        self.wanted & !((1 << self.record.data) - 1)
    }

    /// Columns to be written whose content has to be computed, since nothing gives it.
    fn missing(&self) -> u32 {
        self.wanted & (self.lost | self.bad)
    }

    /// Bytes to be written, about.
    fn bytes(&self) -> u64 {
        match self.wanted.count_ones() {
            0 => self.record.live,
            columns => self.record.live / u64::from(self.record.data.max(1)) * u64::from(columns),
        }
    }
}

/// The disks at one moment.
struct View {
    members: Vec<Arc<Member>>,
    absent: u128,
    /// The set of each disk, when segments may lie in several.
    sets: Option<BTreeMap<DiskId, u16>>,
}

impl View {
    fn of(engine: &Engine) -> Self {
        let array = &engine.array;
        let sets = array.is_mixed().then(|| array.sets());
        Self { members: array.members(), absent: array.absent(), sets }
    }

    /// What a sealed segment lacks.
    fn look(&self, s: &Segment, parity: usize) -> Option<Degraded> {
        let r = &s.record;
        let lost = s.extent.lost_columns(self.absent);
        let stray = self.sets.as_ref().map_or(0, |sets| strays(r, sets));
        let (mut wanted, mut moving) = (0, 0);
        for (i, (disk, _)) in r.columns.iter().enumerate() {
            let Some(member) = self.members.iter().find(|m| m.id == *disk) else { continue };
            let bit = 1 << i;
            if lost & bit == 0 {
                moving |= if member.is_leaving() { bit } else { stray & bit };
            } else if member.is_settled() || member.online().is_none() && member.is_given_up() {
                wanted |= bit;
            }
        }
        wanted |= moving;
        // It was written when there were too few disks for the tolerance.
        let thin = usize::from(r.parity) < parity;
        let extent = s.extent.clone();
        (r.live > 0 && (wanted != 0 || thin)).then(|| Degraded {
            record: r.clone(),
            extent,
            lost,
            wanted,
            bad: 0,
            moving,
            kind: Kind::Repair,
        })
    }
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its columns are whole, or it is empty.
    Done,
    /// It is no longer what it was; what is left to do shows at the next look.
    Changed,
    /// No disk has room for a column.
    NoRoom,
    /// Something in it cannot be read; all else was moved out.
    Damaged,
    /// Not looked at: enough was done in this round.
    Later,
}

/// Room for columns at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    changes: u64,
    free: u64,
    used: u64,
}

/// How far the work is that began when something was found to do.
#[derive(Clone, Debug)]
pub struct Progress {
    cause: String,
    total: u64,
    left: u64,
    started: Duration,
    waiting: u64,
}

/// What a disk looked like when writing to it began.
struct Target {
    member: Arc<Member>,
    returns: u64,
}

impl Target {
    /// Whether what was written since is still there.
    fn is_steady(&self) -> bool {
        self.member.is_settled() && self.member.returns() == self.returns
    }
}

impl Engine {
    /// The task that gives segments their redundancy back.
    pub(super) async fn rebuild_loop(self: Arc<Self>) {
        let mut aside: FxHashSet<u64> = FxHashSet::default();
        let mut changes = self.array.changes();
        let (mut stuck, mut settling) = (None, None);
        loop {
            if self.array.changes() != changes {
                // A disk that came back may have what could not be read.
                aside.clear();
                self.state.write().table.forget_lost();
                self.mending_wanted.store(true, Ordering::Release);
                changes = self.array.changes();
            }
            if self.mending_wanted.swap(false, Ordering::AcqRel)
                && let Err(e) = self.mend_volumes().await
            {
                tracing::warn!(pool = self.name, error = %e, "volumes that take no writes could not be looked at");
            }
            if self.array.give_up_overdue(self.config.failed_grace, self.config.missing_grace) {
                self.checkpoints.lock().await.forced = true;
            }
            match self.rebuild_round(&mut aside, &mut stuck, &mut settling).await {
                Ok(true) => {}
                Ok(false) => self.wait_for_rebuild().await,
                Err(e) => {
                    if e.kind() != ErrorKind::NoSpace && e.kind() != ErrorKind::Unavailable {
                        tracing::error!(pool = self.name, error = %e, "rebuilding was interrupted");
                    }
                    self.wait_for_rebuild().await;
                }
            }
            if self.is_dead() {
                return;
            }
        }
    }

    /// Waits until there may be something to do.
    async fn wait_for_rebuild(&self) {
        let wanted = self.array.changed.notified();
        let idle = self.rebuild.lock().is_none() && self.array.closed() == 0 && !self.has_hurt_open_segments();
        let idle = idle && !self.is_unsettled();
        if idle {
            wanted.await;
        } else {
            let timer = self.env.sleep(PAUSE);
            tokio::pin!(wanted);
            futures::future::select(wanted, timer).await;
        }
    }

    /// Whether sets are mixed still, or a guarantee is still to be raised.
    fn is_unsettled(&self) -> bool {
        self.array.is_mixed() || self.array.guaranteed() != self.array.tolerance()
    }

    /// Whether redundancy is being restored, or has been and that is not on record yet.
    pub fn is_restoring(&self) -> bool {
        self.rebuild.lock().as_ref().is_some_and(|p| p.cause != SPREADING)
    }

    /// How far rebuilding is; none when there is nothing to do.
    pub fn rebuild_progress(&self) -> Option<Rebuild> {
        let Some(progress) = self.rebuild.lock().clone() else {
            // What was asked for may not have begun yet.
            let cause = SPREADING.into();
            let (total, done, waiting, bytes_per_second, eta_s) = (0, 0, 0, 0, None);
            return self.is_balancing().then_some(Rebuild { cause, total, done, waiting, bytes_per_second, eta_s });
        };
        let elapsed = (self.env.now().saturating_sub(progress.started)).as_secs_f64();
        let done = progress.total.saturating_sub(progress.left);
        let rate = done as f64 / elapsed.max(0.001);
        let moving = done > 0 && progress.waiting < progress.left.max(1);
        Some(Rebuild {
            cause: progress.cause,
            total: progress.total,
            done,
            waiting: progress.waiting,
            bytes_per_second: rate as u64,
            eta_s: moving.then(|| (progress.left as f64 / rate) as u64),
        })
    }

    /// Works on the segments that have the least redundancy left. False when nothing is left that can be done now.
    async fn rebuild_round(
        self: &Arc<Self>,
        aside: &mut FxHashSet<u64>,
        stuck: &mut Option<Room>,
        settling: &mut Option<(u64, u64)>,
    ) -> Result<bool> {
        let found = self.degraded(aside);
        if found.is_empty() && self.has_hurt_open_segments() {
            // A checkpoint closes them; then their turn comes.
            self.checkpoints.lock().await.forced = true;
            self.checkpoint().await?;
            return Ok(!self.has_hurt_open_segments());
        }
        self.set_aside.store(aside.len(), Ordering::Relaxed);
        let left: u64 = found.iter().map(Degraded::bytes).sum();
        let room = self.room();
        if !found.is_empty() && *stuck == Some(room) {
            // None of them found room, and there is no more than there was.
            self.note_progress(left, left, self.rebuild_cause());
            return Ok(false);
        }
        let mut found = found;
        if found.is_empty() {
            if self.forget_empty_disks().await? {
                return Ok(true);
            }
            found = self.unbalanced(aside);
            if !found.is_empty() {
                // What was left behind counts no more.
                self.keep_on_record().await?;
                found = self.unbalanced(aside);
            }
        }
        let balancing = found.first().is_some_and(|d| d.kind != Kind::Repair);
        let left: u64 = found.iter().map(Degraded::bytes).sum();
        if found.is_empty() {
            if self.rebuild.lock().is_some() {
                // What was restored counts once a crash does not undo it.
                self.keep_on_record().await?;
            }
            self.end_progress();
            // Sets that are no longer mixed, and a guarantee that can be raised, wait for a checkpoint.
            let now = (self.state.read().segments.version, self.array.changes());
            if self.is_unsettled() && *settling != Some(now) {
                self.checkpoints.lock().await.close_segments = true;
                self.keep_on_record().await?;
                *settling = Some((self.state.read().segments.version, self.array.changes()));
            }
            return Ok(false);
        }
        let cause = if balancing { SPREADING.into() } else { self.rebuild_cause() };
        self.note_progress(left, 0, cause);
        // Segments that a checkpoint sealed have all their columns on stable storage, on the disks that were there.
        self.checkpoints.lock().await.forced = true;
        self.checkpoint().await?;
        let at_once = self.segments_at_once();
        let (begun, most) = (AtomicUsize::new(0), ROUND * at_once);
        let (mut left, mut waiting, mut progress, mut failure) = (left, 0, false, None);
        let jobs = found.into_iter().map(|d| async {
            // What finds no room does not keep those behind it from their turn.
            if begun.fetch_add(1, Ordering::Relaxed) >= most {
                return (d, Ok(Outcome::Later));
            }
            let outcome = self.restore(&d).await;
            if matches!(outcome, Ok(Outcome::NoRoom)) {
                begun.fetch_sub(1, Ordering::Relaxed);
            }
            (d, outcome)
        });
        let mut jobs = futures::stream::iter(jobs).buffer_unordered(at_once);
        // All are waited for: one that is dropped half way would leave stripes unwritten and chunks taken.
        while let Some((d, outcome)) = jobs.next().await {
            match outcome {
                Ok(Outcome::Done) => {
                    left -= d.bytes().min(left);
                    progress = true;
                }
                Ok(Outcome::Changed | Outcome::Later) => progress = true,
                Ok(Outcome::NoRoom) => waiting += d.bytes(),
                Ok(Outcome::Damaged) => {
                    tracing::warn!(
                        segment = d.record.id.0,
                        "a segment has blocks that cannot be read; it is set aside"
                    );
                    d.extent.damaged.store(true, Ordering::Release);
                    aside.insert(d.record.incarnation);
                    progress = true;
                }
                Err(e) => failure = Some(e),
            }
            self.set_left(left, waiting);
        }
        drop(jobs);
        if balancing && !progress {
            self.stop_balancing();
        }
        *stuck = (!progress && waiting > 0).then_some(room);
        match failure {
            Some(e) => Err(e),
            None => Ok(progress && !self.is_dead()),
        }
    }

    /// What decides whether columns find room.
    fn room(&self) -> Room {
        let free = self.state.read().segments.free(&self.array);
        Room { changes: self.array.changes(), free, used: self.space().used }
    }

    /// How many segments are worked on at the same time: enough to keep all disks busy, within an eighth of the memory.
    pub(super) fn segments_at_once(&self) -> usize {
        let fit = self.config.memory / 8 / (WINDOW * WINDOWS);
        (self.array.online().len() / 2 + 2).min(fit as usize).clamp(2, AT_ONCE_MAX)
    }

    /// Segments that have columns to be written anew, most urgent first.
    fn degraded(&self, aside: &FxHashSet<u64>) -> Vec<Degraded> {
        let view = View::of(self);
        let state = self.state.read();
        let appenders = self.appenders.read();
        let parity = state.segments.width(&self.array).map_or(0, |w| w.parity);
        let open = |s: &Segment| !s.record.sealed || appenders.contains_key(&s.record.id);
        let looked = state.segments.iter().filter(|s| !aside.contains(&s.record.incarnation) && !open(s));
        let mut out: Vec<Degraded> = looked.filter_map(|s| view.look(s, parity)).collect();
        out.sort_by_key(|d| (d.left(), Reverse(d.record.live), d.record.incarnation));
        out
    }

    /// The same segment as it is now; none when nothing is to be done for it any more.
    fn look_again(&self, d: &Degraded) -> Option<Degraded> {
        let view = View::of(self);
        let state = self.state.read();
        let parity = state.segments.width(&self.array).map_or(0, |w| w.parity);
        let same = state.segments.get(d.record.id).filter(|s| s.record.incarnation == d.record.incarnation)?;
        if d.kind == Kind::Repair {
            return view.look(same, parity);
        }
        let whole = same.extent.lost_columns(view.absent) == 0 && same.record.columns == d.record.columns;
        (whole && same.record.live > 0).then(|| d.clone())
    }

    /// Whether segments that are not closed yet lack columns that could be written.
    fn has_hurt_open_segments(&self) -> bool {
        let closed = self.array.closed();
        let waits = |m: &Arc<Member>| m.online().is_none() && !m.is_given_up();
        let bit = |id: DiskId| 1u128.checked_shl(id.0.into()).unwrap_or(0);
        let waiting = self.array.members().iter().filter(|m| waits(m)).fold(0, |bits, m| bits | bit(m.id));
        let state = self.state.read();
        state.segments.iter().any(|s| {
            let open = !s.record.sealed || self.appenders.read().contains_key(&s.record.id);
            let here = |c: usize| s.record.columns.get(c).is_some_and(|(disk, _)| waiting & bit(*disk) == 0);
            let lost = s.extent.lost_columns(closed);
            open && s.record.live > 0 && (0..s.record.columns.len()).any(|c| lost >> c & 1 == 1 && here(c))
        })
    }

    /// When nothing lies any more on disks that were given up, a checkpoint says so. True when it is to be looked at again.
    async fn forget_empty_disks(self: &Arc<Self>) -> Result<bool> {
        let waits = |m: &Arc<Member>| m.is_leaving() || m.online().is_none() && m.is_given_up() && !m.is_empty();
        let unused = |m: &&Arc<Member>| {
            let state = self.state.read();
            !state.segments.iter().any(|s| s.record.live > 0 && s.record.columns.iter().any(|(disk, _)| *disk == m.id))
        };
        let before = self.array.members().iter().filter(|m| waits(m)).filter(unused).count();
        if before == 0 || self.pins.load(Ordering::Acquire) > 0 {
            return Ok(false);
        }
        self.checkpoints.lock().await.forced = true;
        self.checkpoint().await?;
        let leaving =
            self.array.members().into_iter().find(|m| m.is_leaving() && !self.state.read().segments.is_used(m.id));
        match leaving {
            Some(member) if self.log.uses(member.id) => {}
            Some(member) if member.is_failing() => {
                {
                    let mut own = self.checkpoints.lock().await;
                    // It may have been kept after all.
                    if member.is_failing() && !self.state.read().segments.is_used(member.id) {
                        self.array.condemn(member.id);
                        own.forced = true;
                    }
                }
                self.checkpoint().await?;
            }
            Some(member) => self.drop_disk(&member).await?,
            None => {}
        }
        Ok(self.array.members().iter().any(waits))
    }

    fn end_progress(&self) {
        if let Some(p) = self.rebuild.lock().take() {
            let seconds = self.env.now().saturating_sub(p.started).as_secs();
            let aside = self.set_aside.load(Ordering::Relaxed);
            let (cause, bytes) = (p.cause, p.total);
            tracing::info!(
                pool = self.name,
                cause,
                bytes,
                seconds,
                aside,
                "all is where it should be, as far as that can be now"
            );
        }
    }

    fn note_progress(&self, left: u64, waiting: u64, cause: String) {
        match &mut *self.rebuild.lock() {
            Some(p) => {
                p.total = p.total.max(p.total - p.left.min(p.total) + left);
                (p.left, p.cause, p.waiting) = (left, cause, waiting);
            }
            progress => {
                tracing::info!(pool = self.name, bytes = left, cause, "moving data");
                let started = self.env.now();
                *progress = Some(Progress { cause, total: left, left, started, waiting });
            }
        }
    }

    fn set_left(&self, left: u64, waiting: u64) {
        if let Some(p) = &mut *self.rebuild.lock() {
            (p.left, p.waiting) = (left, waiting);
        }
    }

    fn rebuild_cause(&self) -> String {
        let gone: Vec<String> = self
            .array
            .members()
            .iter()
            .filter(|m| m.online().is_none() && m.is_given_up() && !m.is_empty())
            .map(|m| m.id.to_string())
            .collect();
        let failing: Vec<String> =
            self.array.members().into_iter().filter(|m| m.is_failing()).map(|m| m.id.to_string()).collect();
        let declared = |m: &Arc<Member>| m.is_failing() && m.is_declared_failed();
        if self.array.members().iter().any(declared) {
            return format!("disk {} was declared failed", failing.join(", "));
        }
        if !failing.is_empty() {
            return format!("disk {} makes too many errors", failing.join(", "));
        }
        let leaving = self.array.members().into_iter().filter(|m| m.is_leaving());
        let leaving: Vec<String> = leaving.map(|m| m.id.to_string()).collect();
        if !leaving.is_empty() {
            return format!("disk {} is being removed", leaving.join(", "));
        }
        match gone.is_empty() {
            false => format!("disk {} is gone", gone.join(", ")),
            true if self.array.is_mixed() => "data moves to its resiliency set".into(),
            true if self.array.guaranteed().drives() < self.array.tolerance().drives() => {
                "the tolerance is raised".into()
            }
            true => "disks that came back catch up".into(),
        }
    }

    /// Gives one segment its columns back.
    async fn restore(self: &Arc<Self>, d: &Degraded) -> Result<Outcome> {
        // Disks may have gone and come since it was found, and a checkpoint may have given it back.
        let Some(d) = &self.look_again(d) else { return Ok(Outcome::Changed) };
        let share = d.record.live as f64 / f64::from(d.record.written.max(1));
        if d.wanted == 0 || d.kind != Kind::Repair {
            // Hosts come first where it is not about what failed, and while somebody reads a checkpoint nothing comes back.
            let space = self.space();
            let free =
                space.free_segments >= space.host_min() + SPREAD_MARGIN && self.pins.load(Ordering::Acquire) == 0;
            if !free {
                return Ok(Outcome::NoRoom);
            }
        }
        if d.wanted == 0
            || (share < LIVE_MIN || self.fits_no_set(d)) && self.has_room_to_empty(&d.record, 0, LeftTo::Others)
        {
            return self.empty_segment(d).await;
        }
        match self.rewrite_columns(d).await? {
            // Each frame by itself may still be had: reads try all ways to reconstruct it.
            Outcome::Damaged => self.empty_segment(d).await,
            Outcome::NoRoom if self.has_room_to_empty(&d.record, 0, LeftTo::Others) => self.empty_segment(d).await,
            outcome => Ok(outcome),
        }
    }

    /// Whether the set of a segment has too few disks for all of its columns.
    fn fits_no_set(&self, d: &Degraded) -> bool {
        let sets = self.array.sets();
        let set = home(&d.record, &sets);
        let here = self.array.members().iter().filter(|m| Some(m.set()) == set && m.takes_data()).count();
        self.array.is_mixed() && here < d.record.columns.len()
    }

    /// Writes the wanted columns anew, those that find room.
    pub(super) async fn rewrite_columns(self: &Arc<Self>, d: &Degraded) -> Result<Outcome> {
        let moves = self.reserve_targets(d);
        if moves.is_empty() {
            return Ok(Outcome::NoRoom);
        }
        let outcome = self.rewrite(d, &moves).await;
        if !matches!(outcome, Ok(Outcome::Done)) {
            // It did not come to lie on them.
            let mut state = self.state.write();
            moves.iter().filter(|m| m.from != m.to).for_each(|m| state.segments.unreserve(m.to));
        }
        outcome
    }

    /// Where the wanted columns are to be written: what is stale to the same chunk when its disk serves, the rest to chunks that are taken
    /// now. A column that finds no room is left out: the others need not wait for it.
    fn reserve_targets(&self, d: &Degraded) -> Vec<ColumnMove> {
        // Checkpoints and the cleaner need free segments to go on, and hosts for what they were told is taken.
        let least = self.space().left_to(LeftTo::Others);
        let mut state = self.state.write();
        let stale = d.extent.stale.load(Ordering::Acquire);
        let mut record = d.record.clone();
        let mut moves: Vec<ColumnMove> = Vec::new();
        for column in (0..record.columns.len()).filter(|c| d.wanted >> c & 1 == 1) {
            let from = record.columns[column];
            let member = self.array.member(from.0);
            let fits = |state: &mut State, at: &(DiskId, ChunkIndex)| {
                let fits = state.segments.free(&self.array) >= least;
                if !fits {
                    state.segments.unreserve(*at);
                }
                fits
            };
            let to = match member {
                Some(m) if m.takes_data() && d.bad >> column & 1 == 1 => {
                    let own = |state: &mut State| Some((from.0, state.segments.reserve(from.0)?));
                    let elsewhere = |state: &mut State| {
                        let disk = state.segments.target(&self.array, &record)?;
                        Some((disk, state.segments.reserve(disk)?))
                    };
                    // Rather not where errors are many.
                    let few = m.errors_of_late(self.env.now()) < ERRORS_MANY;
                    let at = match few {
                        true => own(&mut state).or_else(|| elsewhere(&mut state)),
                        false => elsewhere(&mut state).or_else(|| own(&mut state)),
                    };
                    at.filter(|at| fits(&mut state, at))
                }
                Some(m) if m.is_settled() && d.moving >> column & 1 == 0 => (stale >> column & 1 == 1).then_some(from),
                _ => {
                    let target = state.segments.target(&self.array, &record);
                    let at = target.and_then(|disk| Some((disk, state.segments.reserve(disk)?)));
                    at.filter(|at| fits(&mut state, at))
                }
            };
            if let Some(to) = to {
                record.columns[column] = to;
                moves.push(ColumnMove { column: column as u8, from, to });
            }
        }
        moves
    }

    /// Moves everything live out of a segment; its chunks come back with the next checkpoint.
    pub(super) async fn empty_segment(self: &Arc<Self>, d: &Degraded) -> Result<Outcome> {
        let complete = match self.clean_segment(&d.record, Purpose::Elsewhere).await {
            Err(e) if e.kind() == ErrorKind::NoSpace => return Ok(Outcome::NoRoom),
            other => other?,
        };
        let done = complete && self.is_emptied(&d.record) || !self.is_live(&d.record);
        Ok(if done { Outcome::Done } else { Outcome::Damaged })
    }

    /// Computes columns, writes them, verifies everything, and commits their places.
    async fn rewrite(self: &Arc<Self>, d: &Degraded, moves: &[ColumnMove]) -> Result<Outcome> {
        let targets: Option<Vec<Target>> = moves
            .iter()
            .map(|m| {
                let member = self.array.member(m.to.0)?;
                Some(Target { returns: member.returns(), member })
            })
            .collect();
        let Some(targets) = targets.filter(|t| t.iter().all(Target::is_steady)) else { return Ok(Outcome::Changed) };
        let class = Class::Redundancy { left: d.left() };
        let checks = {
            let _turn = self.turn(class).await;
            self.live_frames(&d.record).await?
        };
        // Parity that is there is computed as well where that can be verified: what it protects is.
        let (checks, computed) = match checks {
            LiveFrames::All(checks) => (checks, d.lost | d.wanted_parity()),
            LiveFrames::Part { mut checks, blind } => {
                // What is computed takes the place of what may come back with a disk, so all of it must be known to be right: but for disks
                // that an administrator declared failed.
                let expected =
                    |c: usize| self.array.member(d.record.columns[c].0).is_some_and(|m| !m.is_declared_failed());
                let strict = (0..d.record.columns.len()).any(|c| d.missing() >> c & 1 == 1 && expected(c));
                if strict && blind {
                    return Ok(Outcome::Damaged);
                }
                if !strict {
                    checks.retain(Check::is_listed);
                }
                (checks, d.lost | if strict { d.wanted_parity() } else { 0 })
            }
            LiveFrames::NoSummary => return Ok(Outcome::Damaged),
        };
        let mut verifier = Verifier::new(checks);
        let geometry = self.array.geometry;
        let strip = u64::from(geometry.strip_size);
        let end = u64::from(d.record.written) / u64::from(d.extent.stripe_size(&geometry)) * strip;
        let step = (WINDOW / d.record.columns.len() as u64 / strip).max(1) * strip;
        let mut row = 0;
        while row < end {
            self.check_alive()?;
            let turn = self.turn(class).await;
            let len = turn.column_bytes(step, strip).min(end - row) as usize;
            let rows = {
                // As long as it is live inside a pass, neither its chunks nor those of its columns are given away.
                let _pass = self.gate.enter();
                if !self.is_live(&d.record) {
                    return Ok(Outcome::Changed);
                }
                let Ok(rows) = self.array.read_rows(&d.extent, row, len, computed, &turn.requests).await else {
                    return Ok(Outcome::Damaged);
                };
                let mut contents = Vec::with_capacity(moves.len());
                for m in moves {
                    let column = usize::from(m.column);
                    contents.push(match rows.column(column) {
                        Some(content) => content.clone(),
                        // Parity, as it is.
                        None => match self.parity_rows(&d.extent, column, row, len, &turn.requests).await {
                            Ok(content) => content,
                            Err(_) => return Ok(Outcome::Damaged),
                        },
                    });
                }
                let writes = moves.iter().zip(contents).map(|(m, content)| {
                    let (disk, chunk) = m.to;
                    self.array.write_by(&turn.requests, disk, geometry.chunk(chunk.0) + row, content)
                });
                if join_all(writes).await.iter().any(|w| w.is_err()) {
                    return Ok(Outcome::Changed);
                }
                rows
            };
            if !verifier.feed(&self.env, rows).await?.is_empty() && !planted::active(Bug::RebuildUnverified) {
                tracing::warn!(segment = d.record.id.0, row, "a checksum did not match while a column was rebuilt");
                return Ok(Outcome::Damaged);
            }
            row += len as u64;
        }
        let _turn = self.turn(class).await;
        if !verifier.is_done() {
            tracing::error!(segment = d.record.id.0, "a segment has frames behind its end");
            return Ok(Outcome::Damaged);
        }
        if !planted::active(Bug::RebuildNotFlushed) {
            self.array.flush().await?;
        }
        self.wait_for_log().await?;
        let mut committer = self.committer.lock().await;
        let _pass = self.gate.enter();
        if !targets.iter().all(Target::is_steady) || !self.is_live(&d.record) {
            return Ok(Outcome::Changed);
        }
        let op = Op::MoveColumns { segment: d.record.id, incarnation: d.record.incarnation, columns: moves.to_vec() };
        let record = Record { ops: vec![op], ..Record::default() };
        let committed = self.commit(&mut committer, Draft { record, ..Draft::default() }).await;
        if let Err(e) = committed {
            self.fail(e.clone().context("rebuilding"));
            return Err(e);
        }
        self.counters.rebuilt.fetch_add(end * moves.len() as u64, Ordering::Relaxed);
        Ok(Outcome::Done)
    }

    /// Bytes of a parity column as its disk has them; computed where it has none.
    async fn parity_rows(
        &self,
        extent: &Extent,
        column: usize,
        row: u64,
        len: usize,
        requests: &Requests,
    ) -> Result<Bytes> {
        if let Ok(content) = self.array.read_column_by(requests, extent, column, row, len).await {
            return Ok(content);
        }
        let lost = extent.lost_columns(self.array.absent()) | 1 << column;
        let rows = self.array.read_rows(extent, row, len, lost, requests).await?;
        rows.column(column).cloned().ok_or_else(|| Error::corrupt(format!("column {column} is not parity")))
    }

    /// Whether a segment is still in use as it was, and not about to be given back.
    pub(super) fn is_live(&self, record: &SegmentRecord) -> bool {
        let state = self.state.read();
        state.segments.get(record.id).is_some_and(|s| {
            s.record.incarnation == record.incarnation && s.record.live > 0 && s.record.columns == record.columns
        })
    }
}
