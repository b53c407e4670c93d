//! A time limit for the answers of a disk; see `docs/design/0023-disks-that-do-not-answer.md`.

use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Disk, DiskError, DiskGeometry, DiskResult};
use crate::env::{BoxFuture, Env};

#[cfg(test)]
mod tests;

/// What is overdue is looked at again after this part of the limit.
const AGAIN: u32 = 8;

/// Told since when a request has been unanswered, each time that was found.
type Watcher = Box<dyn Fn(Duration) + Send + Sync>;

/// A [`Disk`] that passes requests on to another one, and notices when it does not answer.
///
/// A request that is unanswered for the limit, and still is an eighth of the limit later, makes the disk overdue. Whoever watches is told, and may
/// give the disk up: then everything that waits is answered with [`DiskError::Failed`], as is every later request. A disk that nobody watches is given up at
/// once. Discards have no limit.
pub struct TimeoutDisk {
    inner: Arc<dyn Disk>,
    env: Arc<dyn Env>,
    limit: Option<Duration>,
    me: Weak<Self>,
    watcher: OnceLock<Watcher>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Requests that have not ended.
#[derive(Default)]
struct Waiting {
    places: Vec<Option<Unanswered>>,
    free: Vec<usize>,
    /// Somebody looks after them.
    looked_after: bool,
    /// Why the disk is not used any more.
    given_up: Option<String>,
    /// When the newest request began that was answered: it worked then, or later.
    answered: Option<Duration>,
    /// Since when the request was unanswered that was asked about last.
    asked_about: Option<Duration>,
}

struct Unanswered {
    since: Duration,
    /// It has no limit.
    patient: bool,
    /// Found overdue, and woken: is there really no answer?
    asked: bool,
    /// There was none.
    confirmed: bool,
    waker: Option<Waker>,
}

impl TimeoutDisk {
    /// Wraps `inner`, which has `limit` to answer; any time without one.
    pub fn new(inner: Arc<dyn Disk>, env: &Arc<dyn Env>, limit: Option<Duration>) -> Arc<Self> {
        let env = env.clone();
        let (watcher, waiting) = (OnceLock::new(), Arc::default());
        Arc::new_cyclic(|me| Self { inner, env, limit, me: me.clone(), watcher, waiting })
    }

    /// A disk that is in order again: the same one, unless it was given up.
    pub fn renewed(self: &Arc<Self>) -> Arc<Self> {
        match self.waiting.lock().given_up {
            None => self.clone(),
            Some(_) => Self::new(self.inner.clone(), &self.env, self.limit),
        }
    }

    /// Whether it is around this disk.
    pub fn is_around(&self, inner: &Arc<dyn Disk>) -> bool {
        Arc::ptr_eq(&self.inner, inner)
    }

    /// Whether both are around the same disk.
    pub fn is_around_the_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether the other is this very one.
    pub fn is(&self, other: &Arc<dyn Disk>) -> bool {
        std::ptr::addr_eq(self, Arc::as_ptr(other))
    }

    /// Lets `watcher` decide from now on what happens when the disk is overdue. Only the first one counts. It is called without locks
    /// held, from any thread, and must not block.
    pub fn watch(&self, watcher: impl Fn(Duration) + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// The limit.
    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Whether it has answered a request that was made since a time, or a little before.
    pub fn has_answered_since(&self, time: Duration) -> bool {
        self.waiting.lock().answered.is_some_and(|answered| answered >= time)
    }

    /// Whether nobody has asked this before of a request that has been unanswered since a time.
    pub fn is_first_question(&self, since: Duration) -> bool {
        self.waiting.lock().asked_about.replace(since) != Some(since)
    }

    /// Gives the disk up: what waits, and what comes, fails with this reason.
    pub fn give_up(&self, why: &str) {
        let wakers: Vec<Waker> = {
            let mut waiting = self.waiting.lock();
            waiting.given_up.get_or_insert_with(|| why.to_owned());
            waiting.places.iter_mut().flatten().filter_map(|request| request.waker.take()).collect()
        };
        self.inner.abandon(why);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn start<T: Send + 'static>(
        &self,
        patient: bool,
        request: impl FnOnce(&dyn Disk) -> BoxFuture<DiskResult<T>>,
    ) -> BoxFuture<DiskResult<T>> {
        let Some(limit) = self.limit else { return request(&*self.inner) };
        let unanswered = Unanswered { since: self.env.now(), patient, asked: false, confirmed: false, waker: None };
        let (place, unattended) = {
            let mut waiting = self.waiting.lock();
            if let Some(why) = &waiting.given_up {
                let refused = DiskError::Failed(format!("{}: not used any more: {why}", self.name()));
                return Box::pin(std::future::ready(Err(refused)));
            }
            let unattended = !std::mem::replace(&mut waiting.looked_after, true);
            (waiting.add(unanswered), unattended)
        };
        let place = Place { waiting: self.waiting.clone(), at: Some(place) };
        if unattended {
            let attendance = Attendance { waiting: self.waiting.clone(), ended: false };
            self.env.spawn(Box::pin(look_after(self.me.clone(), self.env.clone(), limit, attendance)));
        }
        Box::pin(Timed { inner: request(&*self.inner), place })
    }

    /// Looks for what is overdue. Says when to look again; None when nothing waits any more.
    fn look(&self, limit: Duration) -> Option<Duration> {
        let now = self.env.now();
        let (wakers, overdue, next) = {
            let mut waiting = self.waiting.lock();
            let mut wakers = Vec::new();
            let mut overdue: Option<Duration> = None;
            let mut next: Option<Duration> = None;
            for request in waiting.places.iter_mut().flatten().filter(|request| !request.patient) {
                let age = now.saturating_sub(request.since);
                if age < limit {
                    next = Some(next.map_or(limit - age, |at| at.min(limit - age)));
                    continue;
                }
                next = Some(next.map_or(limit / AGAIN, |at| at.min(limit / AGAIN)));
                if std::mem::take(&mut request.confirmed) {
                    overdue = Some(overdue.map_or(request.since, |since| since.min(request.since)));
                }
                // What is confirmed now says nothing about the next look.
                request.asked = true;
                wakers.extend(request.waker.take());
            }
            waiting.looked_after = next.is_some();
            (wakers, overdue, next)
        };
        wakers.into_iter().for_each(Waker::wake);
        if let Some(since) = overdue {
            match self.watcher.get() {
                Some(watcher) => watcher(since),
                None => self.give_up(&unanswered_for(now.saturating_sub(since))),
            }
        }
        next
    }
}

/// What is said of a disk that did not answer.
pub fn unanswered_for(age: Duration) -> String {
    format!("it has not answered for {} s", age.as_secs())
}

/// Somebody looks after a disk, until this is dropped: also by a panic of whoever watches it.
struct Attendance {
    waiting: Arc<Mutex<Waiting>>,
    /// It was said already, at the moment in which nothing waited any more.
    ended: bool,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        if !self.ended {
            self.waiting.lock().looked_after = false;
        }
    }
}

/// The timer of one disk: runs while requests wait, and does not keep the disk from being closed.
async fn look_after(disk: Weak<TimeoutDisk>, env: Arc<dyn Env>, limit: Duration, mut attendance: Attendance) {
    let mut pause = limit;
    loop {
        env.sleep(pause).await;
        let Some(disk) = disk.upgrade() else { return };
        let Some(next) = disk.look(limit) else {
            attendance.ended = true;
            return;
        };
        // So short a pause is no look at all.
        pause = next.max(limit / (2 * AGAIN));
    }
}

impl Waiting {
    fn add(&mut self, request: Unanswered) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[at] = Some(request);
        at
    }
}

/// The place of a request among those that wait, until it is dropped.
struct Place {
    waiting: Arc<Mutex<Waiting>>,
    /// None once it was left: another request may have it.
    at: Option<usize>,
}

impl Place {
    /// Frees the place. What was there, a waker, is to be dropped without the lock: it may be the last to hold a task.
    fn leave(&mut self, answered: bool) -> Option<Unanswered> {
        let at = self.at.take()?;
        let mut waiting = self.waiting.lock();
        let request = waiting.places[at].take()?;
        waiting.free.push(at);
        if answered {
            waiting.answered = waiting.answered.max(Some(request.since));
        }
        Some(request)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.leave(false));
    }
}

/// A request.
struct Timed<T> {
    inner: BoxFuture<DiskResult<T>>,
    place: Place,
}

impl<T> Future for Timed<T> {
    type Output = DiskResult<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(answer) = self.inner.as_mut().poll(context) {
            drop(self.place.leave(true));
            return Poll::Ready(answer);
        }
        let waker = Some(context.waker().clone());
        let Some(at) = self.place.at else { return Poll::Pending };
        let mut waiting = self.place.waiting.lock();
        if let Some(why) = &waiting.given_up {
            return Poll::Ready(Err(DiskError::Failed(why.clone())));
        }
        let before = waiting.places[at].as_mut().and_then(|request| {
            request.confirmed = request.asked;
            std::mem::replace(&mut request.waker, waker)
        });
        drop(waiting);
        drop(before);
        Poll::Pending
    }
}

impl Disk for TimeoutDisk {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn geometry(&self) -> DiskGeometry {
        self.inner.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        self.start(false, |disk| disk.read(offset, len))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, durable: bool) -> BoxFuture<DiskResult<()>> {
        self.start(false, |disk| disk.write(offset, data, durable))
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        self.start(false, |disk| disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        self.start(true, |disk| disk.discard(offset, len))
    }

    fn abandon(&self, why: &str) {
        self.give_up(why);
    }
}
