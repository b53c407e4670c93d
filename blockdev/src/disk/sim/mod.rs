//! The simulated disk: sparse memory behind a volatile write cache, driven by a [`SimEnv`], with a written fault
//! budget.
//!
//! It is as unkind as a real disk may be: requests complete in any order, a read overlapping a write in flight may see
//! any mix of its sectors, the content of a discarded range is whatever it likes, and what a power cut leaves of
//! unflushed writes is drawn per sector. Everything follows from the seeds of the disk and of the environment.
//!
//! It is stricter than real disks about its callers: a request that breaks the contract of [`Disk`] (alignment, range)
//! panics, because in a simulation that is a bug of the code under test, not a condition it should handle.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::{AlignedBuf, Disk, DiskError, DiskGeometry, DiskResult, IO_ALIGN};
use crate::env::sim::TimerTarget;
use crate::env::{BoxFuture, Rng, SimEnv};

mod faults;
mod media;
mod trigger;
use faults::Dice;
pub use faults::{FaultBudget, FaultCounts, FaultRate};
use media::{Media, PAGE, SECTOR, Tear, copy_sectors};
pub use trigger::{CrashPlan, CrashTrigger};

/// Requests a simulated disk was given, refused ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes asked for by reads.
    pub bytes_read: u64,
    /// Bytes given by writes.
    pub bytes_written: u64,
}

/// A simulated disk. It keeps its content while environments come and go; a request needs an attached one.
///
/// The usual life in a crash test: [`SimDisk::attach`], workload, [`SimEnv::kill_all_tasks`], [`SimDisk::crash`] (left
/// out when only the process dies), [`SimDisk::attach`] to a new environment, recovery, verification.
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    size: u64,
    state: Mutex<State>,
}

struct State {
    env: Weak<SimEnv>,
    media: Media,
    dice: Dice,
    /// Latencies, tearing and races; apart from the dice, so that a fault budget does not shift them.
    rng: Rng,
    in_flight: BTreeMap<u64, Request>,
    next_token: u64,
    /// Why every request fails, when the disk has failed.
    failed: Option<String>,
    stalled: bool,
    /// Requests whose time came while the disk was stalled.
    held: Vec<u64>,
    trigger: Option<Arc<CrashTrigger>>,
    counters: DiskCounters,
    ops: u64,
}

struct Request {
    /// Why it fails whatever happens to the disk meanwhile.
    refused: Option<String>,
    work: Work,
}

enum Work {
    Read { offset: u64, len: usize, early: Option<DiskResult<Bytes>>, reply: oneshot::Sender<DiskResult<Bytes>> },
    Write { landing: u64, data: Vec<Bytes>, durable: bool, reply: oneshot::Sender<DiskResult<()>> },
    Flush { limit: u64, reply: oneshot::Sender<DiskResult<()>> },
    Discard { offset: u64, len: u64, reply: oneshot::Sender<DiskResult<()>> },
}

/// What becomes of the cache and of the writes in flight, each an offset and its data: [`Media::cut_link`],
/// [`Media::cut_power`].
type Cut = fn(&mut Media, Vec<(u64, Vec<Bytes>)>, &mut Rng);

/// A finished request whose answer is still to be sent, without locks held.
enum Answer {
    Data(oneshot::Sender<DiskResult<Bytes>>, DiskResult<Bytes>),
    Done(oneshot::Sender<DiskResult<()>>, DiskResult<()>),
}

impl Answer {
    fn send(self) {
        // Nobody listens when the caller has dropped its future, which does not cancel the request.
        match self {
            Self::Data(reply, result) => drop(reply.send(result)),
            Self::Done(reply, result) => drop(reply.send(result)),
        }
    }
}

impl SimDisk {
    /// An empty disk of `size` bytes, a multiple of [`IO_ALIGN`].
    ///
    /// # Panics
    /// When `size` is not such a multiple.
    pub fn new(name: impl Into<String>, size: u64, seed: u64, budget: FaultBudget) -> Arc<Self> {
        let name = name.into();
        assert!(size.is_multiple_of(IO_ALIGN as u64), "sim disk {name}: size {size} is not a multiple of {IO_ALIGN}");
        let mut rng = Rng::new(seed);
        let state = State::new(Media::default(), Dice::new(budget, rng.fork()), rng);
        Arc::new(Self { shared: Arc::new(Shared { name, size, state: Mutex::new(state) }) })
    }

    /// A disk of the same content, cache and writes in flight, whose future follows from `seed`: to look at several
    /// outcomes of one crash, or to compare before and after. It has the budget that is left, is not attached, and has
    /// no crash trigger.
    pub fn duplicate(&self, seed: u64) -> Arc<Self> {
        let state = self.lock();
        let mut rng = Rng::new(seed);
        let mut dice = state.dice.clone();
        dice.rng = rng.fork();
        let mut copy = State::new(state.media.clone(), dice, rng);
        copy.failed.clone_from(&state.failed);
        copy.next_token = state.next_token;
        copy.ops = state.ops;
        copy.counters = state.counters;
        for (&token, request) in &state.in_flight {
            if let Work::Write { landing, data, durable, .. } = &request.work {
                let (reply, _) = oneshot::channel();
                let work = Work::Write { landing: *landing, data: data.clone(), durable: *durable, reply };
                copy.in_flight.insert(token, Request { refused: request.refused.clone(), work });
            }
        }
        let shared = Shared { name: self.shared.name.clone(), size: self.shared.size, state: Mutex::new(copy) };
        Arc::new(Self { shared: Arc::new(shared) })
    }

    /// Lets `env` drive this disk from now on. Requests of an earlier environment are forgotten: they never complete,
    /// and those of its writes that were in flight reach the disk in part, in whole or not at all, as when a process
    /// dies.
    pub fn attach(&self, env: &Arc<SimEnv>) {
        let mut state = self.lock();
        state.forget_requests(Media::cut_link);
        state.env = Arc::downgrade(env);
    }

    /// Cuts the power: of all writes completed but not flushed, and of those in flight, an arbitrary subset persists,
    /// each possibly torn between sectors. Afterwards the disk has no environment and no crash trigger; the stall, if
    /// any, is over. A failed disk stays failed.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.lock();
        // One draw from the shared generator, so that disks do not shift each other's outcome.
        state.rng = rng.fork();
        state.forget_requests(Media::cut_power);
        state.env = Weak::new();
        state.trigger = None;
        state.stalled = false;
    }

    /// The disk loses its link: requests in flight and all later ones fail. It keeps power, so completed writes stay
    /// in its cache; those in flight reach it in part, in whole or not at all.
    pub fn fail(&self) {
        let answers = self.lock().fail(format!("sim disk {}: link lost", self.shared.name), Media::cut_link);
        answers.into_iter().for_each(Answer::send);
    }

    /// The disk loses its power: requests in flight and all later ones fail, and its cache persists as in
    /// [`SimDisk::crash`].
    pub fn fail_power(&self) {
        let answers = self.lock().fail(format!("sim disk {}: power lost", self.shared.name), Media::cut_power);
        answers.into_iter().for_each(Answer::send);
    }

    /// A failed disk comes back, with the content it had when it failed. Requests that are still under way, since it was given up, end before that:
    /// their writes reach it in part, in whole or not at all.
    pub fn restore(&self) {
        let answers = {
            let mut state = self.lock();
            let works = state.forget_requests(Media::cut_link);
            state.failed = None;
            state.stalled = false;
            works.into_iter().map(|work| work.refuse(format!("sim disk {}: given up", self.shared.name)))
        };
        answers.for_each(Answer::send);
    }

    /// Whether the disk has failed.
    pub fn is_failed(&self) -> bool {
        self.lock().failed.is_some()
    }

    /// While stalled, requests are accepted and do not complete. Afterwards those waiting complete in any order.
    pub fn set_stalled(&self, stalled: bool) {
        let mut state = self.lock();
        state.stalled = stalled;
        if let (false, Some(env)) = (stalled, state.env.upgrade()) {
            for token in std::mem::take(&mut state.held) {
                let latency = state.latency();
                env.schedule(latency, self.shared.clone(), token);
            }
        }
    }

    /// Changes every byte of the range, silently. Any offset and length within the disk.
    ///
    /// # Panics
    /// When the range is not within the disk.
    pub fn corrupt(&self, offset: u64, len: u64) {
        self.shared.check_within("corrupt", offset, len);
        let state = &mut *self.lock();
        state.media.corrupt(offset, len, &mut state.rng);
    }

    /// Makes the pages that hold the range unreadable ([`DiskError::Medium`]) until they are written again.
    ///
    /// # Panics
    /// When the range is not within the disk.
    pub fn damage(&self, offset: u64, len: u64) {
        self.shared.check_within("damage", offset, len);
        self.lock().media.damage(offset, len);
    }

    /// What reads would see now, without latency, faults or an environment.
    ///
    /// # Panics
    /// When the range is not within the disk.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        self.shared.check_within("peek", offset, len as u64);
        let state = self.lock();
        let mut out = vec![0; len];
        let mut at = 0;
        while at < len {
            let (page, from) = ((offset + at as u64) / PAGE as u64, (offset as usize + at) % PAGE);
            let count = (PAGE - from).min(len - at);
            if let Some(data) = state.media.peek(page) {
                out[at..at + count].copy_from_slice(&data[from..from + count]);
            }
            at += count;
        }
        out
    }

    /// Gives the disk a share in a crash trigger, or takes it away.
    pub fn set_crash_trigger(&self, trigger: Option<Arc<CrashTrigger>>) {
        self.lock().trigger = trigger;
    }

    /// What may still go wrong is decided by this budget from now on. Counts so far stay.
    pub fn set_budget(&self, budget: FaultBudget) {
        self.lock().dice.budget = budget;
    }

    /// Requests of all kinds so far.
    pub fn ops_count(&self) -> u64 {
        self.lock().ops
    }

    /// Requests by kind so far.
    pub fn counters(&self) -> DiskCounters {
        self.lock().counters
    }

    /// Faults the budget has caused so far.
    pub fn fault_counts(&self) -> FaultCounts {
        self.lock().dice.counts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    fn submit<T: Send + 'static>(
        &self,
        counts_for_crash: bool,
        work: impl FnOnce(&mut State, oneshot::Sender<DiskResult<T>>) -> Work,
    ) -> BoxFuture<DiskResult<T>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.ops += 1;
        let Some(env) = state.env.upgrade() else {
            let message = format!("sim disk {} is not attached to an environment", self.shared.name);
            return Box::pin(std::future::ready(Err(DiskError::Failed(message))));
        };
        let frozen = state.trigger.as_ref().is_some_and(|t| if counts_for_crash { !t.pass() } else { t.has_fired() });
        if frozen {
            return Box::pin(std::future::pending());
        }
        let mut answers = Vec::new();
        if state.dice.death(state.ops) {
            let cut = if state.rng.chance(1, 2) { Media::cut_link } else { Media::cut_power };
            answers = state.fail(format!("sim disk {}: died", self.shared.name), cut);
        }
        if state.dice.hang(state.ops) {
            state.stalled = true;
        }
        let (reply, receive) = oneshot::channel();
        let work = work(state, reply);
        let token = state.next_token;
        state.next_token += 1;
        state.in_flight.insert(token, Request { refused: state.failed.clone(), work });
        let latency = state.dice.stall().unwrap_or_else(|| state.latency());
        env.schedule(latency, self.shared.clone(), token);
        drop(guard);
        answers.into_iter().for_each(Answer::send);
        Box::pin(async move {
            match receive.await {
                Ok(result) => result,
                // The disk forgot the request: its host is dead, and whoever still waits here never learns more.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

impl Disk for SimDisk {
    fn name(&self) -> String {
        self.shared.name.clone()
    }

    fn geometry(&self) -> DiskGeometry {
        DiskGeometry { size: self.shared.size, sector_size: SECTOR as u32 }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        self.shared.check_aligned("read", offset, len as u64);
        let name = &self.shared.name;
        self.submit(false, |state, reply| {
            state.counters.reads += 1;
            state.counters.bytes_read += len as u64;
            // The bytes may be taken at any moment between submission and completion.
            let early = state.rng.chance(1, 2).then(|| state.read(name, offset, len));
            Work::Read { offset, len, early, reply }
        })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, durable: bool) -> BoxFuture<DiskResult<()>> {
        let len = data.iter().map(|piece| piece.len() as u64).sum();
        self.shared.check_aligned("write", offset, len);
        for piece in &data {
            self.shared.check_piece(offset, piece);
        }
        let size = self.shared.size;
        self.submit(true, |state, reply| {
            state.counters.writes += 1;
            state.counters.bytes_written += len;
            let landing = state.dice.landing(offset, len, size, PAGE as u64);
            Work::Write { landing, data, durable, reply }
        })
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        self.submit(true, |state, reply| {
            state.counters.flushes += 1;
            Work::Flush { limit: state.media.next_write(), reply }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        self.shared.check_aligned("discard", offset, len);
        self.submit(false, |state, reply| {
            state.counters.discards += 1;
            Work::Discard { offset, len, reply }
        })
    }

    fn abandon(&self, why: &str) {
        self.lock().failed.get_or_insert_with(|| format!("sim disk {}: given up: {why}", self.shared.name));
    }
}

impl Shared {
    fn check_within(&self, what: &str, offset: u64, len: u64) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.size),
            "sim disk {}: {what} of {len} bytes at {offset} is beyond its end at {}",
            self.name,
            self.size
        );
    }

    fn check_aligned(&self, what: &str, offset: u64, len: u64) {
        self.check_within(what, offset, len);
        assert!(
            offset.is_multiple_of(IO_ALIGN as u64) && len.is_multiple_of(IO_ALIGN as u64),
            "sim disk {}: {what} of {len} bytes at {offset} is not aligned to {IO_ALIGN}",
            self.name
        );
    }

    fn check_piece(&self, offset: u64, piece: &Bytes) {
        assert!(
            piece.is_empty()
                || piece.len().is_multiple_of(IO_ALIGN) && (piece.as_ptr() as usize).is_multiple_of(IO_ALIGN),
            "sim disk {}: write at {offset} has a piece of {} bytes not aligned to {IO_ALIGN}; use AlignedBuf",
            self.name,
            piece.len()
        );
    }
}

impl TimerTarget for Shared {
    fn fire(&self, token: u64) {
        let answer = self.state.lock().complete(&self.name, token);
        if let Some(answer) = answer {
            answer.send();
        }
    }
}

impl State {
    fn new(media: Media, dice: Dice, rng: Rng) -> Self {
        Self {
            env: Weak::new(),
            media,
            dice,
            rng,
            in_flight: BTreeMap::new(),
            next_token: 0,
            failed: None,
            stalled: false,
            held: Vec::new(),
            trigger: None,
            counters: DiskCounters::default(),
            ops: 0,
        }
    }

    fn latency(&mut self) -> Duration {
        let (low, high) =
            (self.dice.budget.latency_min.as_nanos() as u64, self.dice.budget.latency_max.as_nanos() as u64);
        let high = if self.rng.chance(1, 8) { high } else { low.max(high / 8) };
        Duration::from_nanos(self.rng.between(low, high))
    }

    fn read(&mut self, name: &str, offset: u64, len: usize) -> DiskResult<Bytes> {
        let mut out = AlignedBuf::zeroed(len);
        self.media.read(offset, &mut out).map_err(|at| {
            DiskError::Medium(format!("sim disk {name}: medium error at {at} in a read of {len} bytes at {offset}"))
        })?;
        for request in self.in_flight.values() {
            let Work::Write { landing, data, .. } = &request.work else { continue };
            let mut at = *landing;
            for new in data.iter().flat_map(|piece| piece.chunks(PAGE)) {
                if at >= offset && at - offset < len as u64 && request.refused.is_none() {
                    let mask = Tear::draw(1, &mut self.rng).mask(0, &mut self.rng);
                    let from = (at - offset) as usize;
                    copy_sectors(&mut out[from..from + PAGE], new, mask);
                }
                at += PAGE as u64;
            }
        }
        Ok(out.freeze())
    }

    fn complete(&mut self, name: &str, token: u64) -> Option<Answer> {
        if self.trigger.as_ref().is_some_and(|t| t.has_fired()) {
            return None;
        }
        if self.stalled {
            self.held.push(token);
            return None;
        }
        let Request { refused, work } = self.in_flight.remove(&token)?;
        if let Some(message) = refused {
            return Some(work.refuse(message));
        }
        Some(match work {
            Work::Read { offset, len, early, reply } => {
                Answer::Data(reply, early.unwrap_or_else(|| self.read(name, offset, len)))
            }
            Work::Write { landing, data, durable, reply } => {
                let fate = self.dice.write_fate();
                self.media.write(landing, &data, durable, fate, &mut self.dice);
                Answer::Done(reply, Ok(()))
            }
            Work::Flush { limit, reply } => {
                if self.dice.flush_failure() {
                    self.media.lose_cache(limit, &mut self.rng);
                    let message = format!("sim disk {name}: flush failed");
                    return Some(Answer::Done(reply, Err(DiskError::Failed(message))));
                }
                self.media.flush(limit, &mut self.dice);
                Answer::Done(reply, Ok(()))
            }
            Work::Discard { offset, len, reply } => {
                self.media.discard(offset, len, &mut self.rng);
                Answer::Done(reply, Ok(()))
            }
        })
    }

    /// Takes all requests out of flight. Their writes reach the media as `cut` does it.
    fn forget_requests(&mut self, cut: Cut) -> Vec<Work> {
        self.held.clear();
        let requests = std::mem::take(&mut self.in_flight).into_values();
        let (mut writes, mut works) = (Vec::new(), Vec::new());
        for Request { refused, mut work } in requests {
            match &mut work {
                Work::Write { landing, data, .. } if refused.is_none() => writes.push((*landing, std::mem::take(data))),
                Work::Discard { offset, len, .. } if refused.is_none() && self.rng.chance(1, 2) => {
                    self.media.discard(*offset, *len, &mut self.rng);
                }
                _ => {}
            }
            works.push(work);
        }
        cut(&mut self.media, writes, &mut self.rng);
        works
    }

    fn fail(&mut self, message: String, cut: Cut) -> Vec<Answer> {
        if self.failed.is_some() {
            return Vec::new();
        }
        let answers = self.forget_requests(cut).into_iter().map(|work| work.refuse(message.clone())).collect();
        self.failed = Some(message);
        answers
    }
}

impl Work {
    fn refuse(self, message: String) -> Answer {
        let error = DiskError::Failed(message);
        match self {
            Self::Read { reply, .. } => Answer::Data(reply, Err(error)),
            Self::Write { reply, .. } | Self::Flush { reply, .. } | Self::Discard { reply, .. } => {
                Answer::Done(reply, Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
