//! Scrub and healing: all of a segment is read and compared with its checksums and its parity, and columns that are not what they should be are
//! written anew elsewhere. `docs/design/0006-scrub-and-damage.md` has the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use rustc_hash::FxHashMap;

use super::Engine;
use super::load::ways_around;
use super::pace::control::Class;
use super::rebuild::{Degraded, Kind, Outcome, WINDOW};
use super::space::LeftTo;
use super::verify::{Check, LiveFrames, Verifier};
use crate::disk::Disk;
use crate::env::compute;
use crate::error::{Error, ErrorKind, Result};
use crate::format::catalogue::{ScrubRecord, Service};
use crate::format::label::Label;
use crate::format::layout::LABEL_SIZE;
use crate::format::record::SegmentRecord;
use crate::format::superblock::Superblock;
use crate::planted::{self, Bug};
use crate::redundancy::array::{Extent, Member};
use crate::report::Scrub;
use crate::units::{DiskId, SegmentId};

/// Looks at one segment, one after another, before what is left is given up as damaged.
const LOOKS: usize = 3;
/// Segments looked at, for each that is looked at at the same time, before other work has its turn.
const ROUND: usize = 4;
/// Longest pause between looks at the calendar.
const PAUSE: Duration = Duration::from_secs(60);
/// A suspect that found no room is looked at again after this time.
const RETRY: Duration = Duration::from_secs(30);
/// A damaged one after this time, unless disks come or go before.
const RETRY_DAMAGED: Duration = Duration::from_secs(3600);
/// Suspects looked at before other work has its turn.
const SUSPECTS: usize = 8;
/// From so many errors of late on a disk should be replaced.
pub(crate) const ERRORS_MANY: f64 = 8.0;

/// What reading all of a segment showed.
#[derive(Default)]
struct Findings {
    /// Bit per column that is not what it should be.
    bad: u32,
    /// Frames that nothing gives back.
    damaged: usize,
}

/// What became of a segment that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// As it should be, or no longer there; so many columns were written anew.
    Sound(u32),
    /// Something in it cannot be given back.
    Damaged,
    /// It is to be looked at again later: no disk has room, or it was never the same twice.
    Later,
}

impl Engine {
    /// The task that scrubs, heals what reads ran into, and judges disks by their errors.
    pub(super) async fn scrub_loop(self: Arc<Self>) {
        let mut changes = self.array.changes();
        // Suspects that found no room, and until when they wait.
        let mut later: FxHashMap<u64, Duration> = FxHashMap::default();
        let mut refused = BTreeMap::new();
        loop {
            let (suspected, wanted) = (self.array.suspected.notified(), self.scrub_wanted.notified());
            if self.array.changes() != changes {
                // A disk that came back may have what could not be read.
                changes = self.array.changes();
                later.clear();
                self.suspect_damaged();
            }
            self.judge_disks(&mut refused).await;
            let result = async {
                let more = self.heal_suspects(&mut later).await?;
                self.begin_scrub_if_due().await?;
                Ok::<_, Error>(self.scrub_some().await? || more)
            };
            match result.await {
                Ok(true) if !self.is_dead() => continue,
                Err(e) if !matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::Unavailable) => {
                    tracing::error!(pool = self.name, error = %e, "scrubbing was interrupted");
                }
                _ => {}
            }
            if self.is_dead() {
                return;
            }
            let timer = self.env.sleep(if later.is_empty() { PAUSE } else { RETRY });
            tokio::pin!(suspected, wanted, timer);
            futures::future::select(futures::future::select(suspected, wanted), timer).await;
            if self.is_dead() {
                return;
            }
        }
    }

    /// Begins a scrub; goes on with the one that is running, if there is one.
    pub async fn start_scrub(self: &Arc<Self>) -> Result<Scrub> {
        self.check_writable()?;
        if !self.scrub.lock().is_running() {
            {
                let mut own = self.checkpoints.lock().await;
                own.forced = true;
                // What is being filled has its turn as well; in a pool that is nearly full the room is worth more.
                let space = self.space();
                own.close_segments = !space.is_low();
            }
            self.checkpoint().await?;
            let end = self.state.read().segments.next_incarnation;
            let begun_s = self.env.wall_clock_s().max(1);
            self.scrub_runs.fetch_add(1, Ordering::AcqRel);
            *self.scrub.lock() = ScrubRecord { begun_s, next: 0, end, ..ScrubRecord::default() };
            tracing::info!(pool = self.name, "scrub began");
            self.scrub_roots().await?;
            self.keep_on_record().await?;
        }
        self.scrub_wanted.notify_one();
        Ok(self.scrub_progress())
    }

    /// Ends a scrub before it is through.
    pub async fn stop_scrub(self: &Arc<Self>) -> Result<Scrub> {
        self.check_writable()?;
        {
            let mut scrub = self.scrub.lock();
            if scrub.is_running() {
                scrub.ended_s = self.env.wall_clock_s().max(1);
            }
        }
        self.keep_on_record().await?;
        Ok(self.scrub_progress())
    }

    /// How far the newest scrub is.
    pub fn scrub_progress(&self) -> Scrub {
        let s = *self.scrub.lock();
        let (mut total, mut left) = (0, 0);
        for segment in self.state.read().segments.iter() {
            let r = &segment.record;
            if r.incarnation < s.end {
                total += r.live;
                left += if r.incarnation >= s.next { r.live } else { 0 };
            }
        }
        let complete = !s.is_running() && s.next >= s.end;
        Scrub {
            running: s.is_running(),
            // A new pool has nothing to look at.
            begun_s: (s.begun_s > 0 && s.end > 0).then_some(s.begun_s),
            ended_s: (s.ended_s > 0 && s.end > 0).then_some(s.ended_s),
            complete,
            total,
            done: if complete { total } else { total - left },
            repaired: s.repaired,
            damaged: s.damaged,
        }
    }

    pub(super) async fn keep_on_record(self: &Arc<Self>) -> Result<()> {
        self.checkpoints.lock().await.forced = true;
        self.checkpoint().await
    }

    async fn begin_scrub_if_due(self: &Arc<Self>) -> Result<()> {
        let interval = self.config.scrub_interval.as_secs();
        let scrub = *self.scrub.lock();
        let due =
            interval > 0 && !scrub.is_running() && self.env.wall_clock_s() >= scrub.begun_s.saturating_add(interval);
        if due { self.start_scrub().await.map(drop) } else { Ok(()) }
    }

    /// Looks at the next segments of the running scrub. False when there is none.
    async fn scrub_some(self: &Arc<Self>) -> Result<bool> {
        let (scrub, run) = (*self.scrub.lock(), self.scrub_runs.load(Ordering::Acquire));
        if !scrub.is_running() {
            return Ok(false);
        }
        // It may be stopped, and another one begun.
        let same = |s: &ScrubRecord| s.is_running() && self.scrub_runs.load(Ordering::Acquire) == run;
        let at_once = (self.segments_at_once() / 2).max(1);
        let mut due: Vec<(u64, SegmentId)> = {
            let state = self.state.read();
            let all = state.segments.iter().map(|s| (s.record.incarnation, s.record.id));
            all.filter(|(incarnation, _)| (scrub.next..scrub.end).contains(incarnation)).collect()
        };
        due.sort_unstable();
        let last = due.len() <= ROUND * at_once;
        due.truncate(ROUND * at_once);
        let looks = due
            .into_iter()
            .map(|(incarnation, id)| async move { (incarnation, self.look_into(id, incarnation).await) });
        let mut looks = futures::stream::iter(looks).buffered(at_once);
        let mut failure = None;
        // All are waited for: one that is dropped half way would leave chunks taken.
        while let Some((incarnation, look)) = looks.next().await {
            let mut scrub = self.scrub.lock();
            if !same(&scrub) {
                continue;
            }
            match look {
                Ok(look) => {
                    if failure.is_none() {
                        scrub.next = incarnation + 1;
                    }
                    match look {
                        Look::Sound(columns) => scrub.repaired += u64::from(columns),
                        Look::Damaged => scrub.damaged += 1,
                        Look::Later => {}
                    }
                }
                Err(e) => failure = Some(e),
            }
        }
        drop(looks);
        if let Some(e) = failure {
            return Err(e);
        }
        if last {
            let ended = {
                let mut scrub = self.scrub.lock();
                let ended = same(&scrub);
                if ended {
                    scrub.next = scrub.end;
                    scrub.ended_s = self.env.wall_clock_s().max(1);
                }
                ended.then_some(*scrub)
            };
            if let Some(s) = ended {
                tracing::info!(pool = self.name, repaired = s.repaired, damaged = s.damaged, "scrub ended");
                self.keep_on_record().await?;
            }
        }
        Ok(true)
    }

    /// Looks at segments in which a read did not find what it should, at some of them: says whether there are perhaps more.
    async fn heal_suspects(self: &Arc<Self>, later: &mut FxHashMap<u64, Duration>) -> Result<bool> {
        let (now, mut looked) = (self.env.now(), 0);
        later.retain(|_, until| *until > now);
        let suspects = || -> Vec<(u64, SegmentId, bool)> {
            let state = self.state.read();
            let appenders = self.appenders.read();
            let suspect = state.segments.iter().filter(|s| s.extent.suspect.load(Ordering::Acquire) != 0);
            let open = |r: &SegmentRecord| !r.sealed || appenders.contains_key(&r.id);
            suspect.map(|s| (s.record.incarnation, s.record.id, open(&s.record))).collect()
        };
        let space = self.space();
        if suspects().iter().any(|(.., open)| *open) && !space.is_low() {
            let mut own = self.checkpoints.lock().await;
            (own.forced, own.close_segments) = (true, true);
            drop(own);
            self.checkpoint().await?;
        }
        for (incarnation, id, open) in suspects() {
            if open || later.contains_key(&incarnation) || self.is_dead() {
                continue;
            }
            let pause = match self.look_into(id, incarnation).await? {
                Look::Sound(_) => None,
                Look::Later => Some(RETRY),
                Look::Damaged => Some(RETRY_DAMAGED),
            };
            later.extend(pause.map(|pause| (incarnation, now + pause)));
            looked += 1;
            if looked >= SUSPECTS {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What could not be read may be there again.
    fn suspect_damaged(&self) {
        for s in self.state.read().segments.iter().filter(|s| s.extent.damaged.load(Ordering::Acquire)) {
            s.extent.suspect.fetch_or(1, Ordering::AcqRel);
        }
    }

    /// Reads all of a sealed segment, and writes anew what is not as it should be.
    async fn look_into(self: &Arc<Self>, id: SegmentId, incarnation: u64) -> Result<Look> {
        let mut repaired = 0;
        for _ in 0..LOOKS {
            self.check_alive()?;
            let Some((record, extent)) = self.sealed_segment(id, incarnation) else { return Ok(Look::Sound(repaired)) };
            // Before it is read: what is found in the meantime counts again.
            let suspect = extent.suspect.swap(0, Ordering::AcqRel);
            let Some(found) = self.survey(&record, &extent).await? else { continue };
            if found.damaged == 0 && found.bad == 0 {
                if extent.damaged.swap(false, Ordering::AcqRel) {
                    tracing::info!(segment = id.0, "all of a segment can be read again");
                    self.want_mending();
                }
                // All of it is sound, and reading it ran into something again: looking at once would find the same for ever.
                let again = extent.suspect.load(Ordering::Acquire) != 0;
                return Ok(if again { Look::Later } else { Look::Sound(repaired) });
            }
            tracing::warn!(
                segment = id.0,
                bad = found.bad,
                damaged = found.damaged,
                "a segment is not what it should be"
            );
            // A checkpoint that has it sealed has all its columns on stable storage.
            self.keep_on_record().await?;
            let lost = extent.lost_columns(self.array.absent()) | found.bad;
            let (wanted, bad, moving, kind) = (found.bad, found.bad, 0, Kind::Repair);
            let d = Degraded { record, extent: extent.clone(), lost, wanted, bad, moving, kind };
            let within = found.damaged == 0 && lost.count_ones() <= u32::from(d.record.parity);
            let mut outcome = if within { self.rewrite_columns(&d).await? } else { Outcome::Damaged };
            // Each frame by itself finds its way, and its room.
            if outcome == Outcome::Damaged
                || outcome == Outcome::NoRoom && self.has_room_to_empty(&d.record, 0, LeftTo::Others)
            {
                outcome = self.empty_segment(&d).await?;
            }
            match outcome {
                Outcome::Done => repaired += found.bad.count_ones(),
                Outcome::Changed | Outcome::Later => {}
                Outcome::NoRoom | Outcome::Damaged => {
                    let damaged = outcome == Outcome::Damaged || found.damaged > 0;
                    // So that it is looked at again.
                    extent.suspect.fetch_or(suspect | found.bad | 1, Ordering::AcqRel);
                    if damaged {
                        extent.damaged.store(true, Ordering::Release);
                        self.keep_on_record().await?;
                    }
                    return Ok(if damaged { Look::Damaged } else { Look::Later });
                }
            }
        }
        if let Some((_, extent)) = self.sealed_segment(id, incarnation) {
            extent.suspect.fetch_or(1, Ordering::AcqRel);
        }
        Ok(Look::Later)
    }

    /// A segment in use that is complete on disk.
    fn sealed_segment(&self, id: SegmentId, incarnation: u64) -> Option<(SegmentRecord, Arc<Extent>)> {
        let state = self.state.read();
        let s = state.segments.get(id).filter(|s| s.record.incarnation == incarnation && s.record.live > 0)?;
        let complete = s.record.sealed && !self.appenders.read().contains_key(&id);
        complete.then(|| (s.record.clone(), s.extent.clone()))
    }

    /// Reads all columns of a segment and compares; none when it is no longer what it was.
    async fn survey(&self, record: &SegmentRecord, extent: &Arc<Extent>) -> Result<Option<Findings>> {
        let mut found = Findings::default();
        let checks = {
            let _turn = self.turn(Class::Upkeep).await;
            self.live_frames(record).await?
        };
        let (LiveFrames::All(checks) | LiveFrames::Part { checks, .. }) = checks else {
            return Ok(self.is_live(record).then_some(Findings { damaged: 1, ..found }));
        };
        let mut verifier = Verifier::new(checks);
        let (mut differ, mut hurt) = (Vec::new(), BTreeSet::new());
        let geometry = self.array.geometry;
        let (strip, stripe_size) = (u64::from(geometry.strip_size), extent.stripe_size(&geometry));
        let end = u64::from(record.written) / u64::from(stripe_size) * strip;
        let step = (WINDOW / record.columns.len() as u64 / strip).max(1) * strip;
        let mut row = 0;
        while row < end {
            self.check_alive()?;
            let turn = self.turn(Class::Upkeep).await;
            let len = turn.column_bytes(step, strip).min(end - row) as usize;
            let survey = {
                let _pass = self.gate.enter();
                if !self.is_live(record) {
                    return Ok(None);
                }
                let lost = extent.lost_columns(self.array.absent());
                self.array.survey_rows(extent, row, len, lost, &turn.requests).await
            };
            found.bad |= survey.unreadable;
            let Ok(rows) = survey.rows(extent, geometry.strip_size) else {
                found.damaged += 1;
                return Ok(Some(found));
            };
            let (first, own) = ((row / strip) as u32, rows.clone());
            let stopped = || Error::new(ErrorKind::Unavailable, "the pool is stopped");
            let parity = compute(&self.env, move || survey.parity_mismatches(&own)).await.ok_or_else(stopped)?;
            differ.extend((first..).zip(parity).filter(|(_, bits)| *bits != 0));
            for check in verifier.feed(&self.env, rows).await? {
                let Some(way) = self.way_around(record, extent, &check).await else { return Ok(None) };
                match way {
                    Some(avoid) => {
                        found.bad |= avoid;
                        hurt.extend(check.offset / stripe_size..=(check.offset + u32::from(check.len)) / stripe_size);
                    }
                    None => found.damaged += 1,
                }
            }
            row += len as u64;
        }
        found.damaged += usize::from(!verifier.is_done());
        if planted::active(Bug::ScrubNoParity) {
            differ.clear();
        }
        for (_, bits) in differ.into_iter().filter(|(stripe, _)| !hurt.contains(stripe)) {
            found.bad |= bits;
            // Both of two differ when data that nobody refers to has changed: nobody knows whose it was. With one it is as unclear.
            // Nor is one of two quite certain, since the other may have been computed after the change: it is counted, and no more.
            if bits.count_ones() < extent.parity as u32 {
                self.array.count_mismatch(extent, bits);
            }
        }
        Ok(Some(found))
    }

    /// Which columns must be left out to read a frame as it should be: the inner value is none when nothing helps. None when the segment is no
    /// longer what it was.
    async fn way_around(&self, record: &SegmentRecord, extent: &Extent, check: &Check) -> Option<Option<u32>> {
        let _pass = self.gate.enter();
        if !self.is_live(record) {
            return None;
        }
        let columns = self.array.columns_of(extent, check.offset, check.len.into());
        let mut raw = Vec::new();
        for avoid in std::iter::once(0).chain(ways_around(&columns, extent)) {
            let stored = self.array.read_avoiding(extent, check.offset, check.len.into(), avoid).await;
            if stored.is_ok_and(|stored| check.passes(&stored, &mut raw)) {
                // What is lost anyway is nobody's fault.
                let bad = avoid & !extent.lost_columns(self.array.absent());
                self.array.blame(extent, bad, check.offset);
                return Some(Some(bad));
            }
        }
        let passes = |stored: &[u8]| check.passes(stored, &mut Vec::new()).then_some(());
        Some(self.piece_together(extent, check.offset, check.len.into(), passes).await.map(|(_, avoid)| avoid))
    }

    /// Compares labels, superblocks and the catalogue of all disks with what they should be. What is not right is written again.
    async fn scrub_roots(self: &Arc<Self>) -> Result<()> {
        let (mut relabel, mut again) = (false, false);
        {
            let mut own = self.checkpoints.lock().await;
            for member in self.array.online() {
                let Some(disk) = member.online() else { continue };
                let labels = self.has_labels(&member, &disk).await;
                let root = self.has_root(&member, &disk, own.number).await;
                if !labels || !root {
                    tracing::warn!(disk = member.id.0, labels, root, "metadata of a disk is not what it should be");
                    self.array.blame_place(member.id, 0);
                }
                relabel |= !labels;
                again |= !root;
            }
            own.forced |= again;
        }
        if relabel {
            *self.labelled_changes.lock().await = u64::MAX;
            self.label_absent().await?;
        }
        if again { self.checkpoint().await } else { Ok(()) }
    }

    async fn has_labels(&self, member: &Member, disk: &Arc<dyn Disk>) -> bool {
        let mut good = true;
        for at in [0, self.array.geometry.tail(member.size)] {
            let label = disk.read(at, LABEL_SIZE).await.ok().and_then(|data| Label::decode(&data).ok());
            good &= label.is_some_and(|l| (l.pool, l.disk, l.epoch) == (self.uuid, member.uuid, self.epoch));
        }
        good
    }

    async fn has_root(&self, member: &Member, disk: &Arc<dyn Disk>, checkpoint: u64) -> bool {
        if member.last_checkpoint.load(Ordering::Relaxed) < checkpoint {
            // It was taken back just now.
            return true;
        }
        let geometry = &self.array.geometry;
        for base in [0, geometry.tail(member.size)] {
            let Ok(data) = disk.read(base + geometry.superblock(checkpoint), LABEL_SIZE).await else { return false };
            let Ok(root) = Superblock::decode(&data) else { return false };
            if (root.pool, root.checkpoint) != (self.uuid, checkpoint) {
                return false;
            }
            if base == 0 {
                let len = root.catalogue_len as usize;
                let data = disk.read(geometry.catalogue(checkpoint), len.next_multiple_of(4096)).await;
                let intact = |data: &[u8]| crate::format::checksum(data) == root.catalogue_checksum;
                if !data.is_ok_and(|data| data.get(..len).is_some_and(intact)) {
                    return false;
                }
            }
        }
        true
    }

    /// Begins to empty a disk that makes too many errors, if the others have room.
    async fn judge_disks(self: &Arc<Self>, refused: &mut BTreeMap<DiskId, u64>) {
        let limit = f64::from(self.config.error_limit);
        if limit <= 0.0 {
            return;
        }
        let now = self.env.now();
        let members = self.array.members();
        let changes = self.array.changes();
        let bad = |m: &&Arc<Member>| m.online().is_some() && !m.is_leaving() && m.errors_of_late(now) >= limit;
        let Some(member) = members.iter().filter(bad).find(|m| refused.get(&m.id) != Some(&changes)) else { return };
        let staying = self.most_in_a_set_without(member.id);
        // Not at the price of narrower extents.
        let width = self.state.read().segments.width(&self.array).map_or(0, |w| w.columns());
        let enough = staying >= width.max(crate::segment::table::disks_min(self.array.tolerance()));
        match if enough {
            self.empty_disk(member.id, Service::Failing).await
        } else {
            Err(Error::invalid("too few disks are left"))
        } {
            Ok(()) => tracing::error!(
                disk = member.id.0,
                "a disk makes too many errors: what lies on it is moved to the others, then it is declared failed"
            ),
            Err(e) => {
                tracing::warn!(disk = member.id.0, error = %e, "a disk makes too many errors, and is kept for now");
                // What refused others before holds still.
                let now = self.array.changes();
                refused.values_mut().filter(|at| **at == changes).for_each(|at| *at = now);
                refused.insert(member.id, now);
            }
        }
    }
}
