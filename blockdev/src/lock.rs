//! Locks that are taken in one order only.
//!
//! A thread that waits for a lock while it holds another one must come after it in the order of [`Rank`], and must not hold the same one already: a
//! reader that asks again waits for a writer that waits for the reader. Builds with debug assertions refuse every attempt that breaks this, whether
//! or not somebody else happens to be waiting; so any test that comes by finds what would otherwise hang once in a while.

use std::ops::{Deref, DerefMut};

/// The order in which locks are taken; what is held may be followed by what comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Disks the pool was opened with.
    Candidates,
    /// Whether data is being spread.
    Balance,
    /// Committed state.
    State,
    /// Open ends of segments.
    Appenders,
    /// What is known of the number of segments.
    SegmentCounts,
    /// Volumes that take no writes.
    Broken,
    /// Fingerprints.
    Index,
    /// Records that wait for the log.
    LogQueue,
    /// Writes that outlive the process.
    Carry,
    /// How far background work is.
    Progress,
    /// Why the pool takes no writes.
    Failure,
    /// What is known of the disks that take no data.
    Closed,
    /// Disks.
    Members,
}

/// Tells the other locks of this thread, for as long as it lives.
struct Held {
    #[cfg(debug_assertions)]
    rank: Rank,
}

#[cfg(debug_assertions)]
mod held {
    use std::cell::RefCell;

    use super::{Held, Rank};

    thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    impl Held {
        #[track_caller]
        pub fn ask(rank: Rank) -> Self {
            HELD.with_borrow_mut(|held| {
                let highest = held.iter().max();
                assert!(
                    highest.is_none_or(|highest| *highest < rank),
                    "{rank:?} is waited for by who holds {held:?}: with somebody else in between both wait for ever"
                );
                held.push(rank);
            });
            Self { rank }
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                if let Some(at) = held.iter().rposition(|rank| *rank == self.rank) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(not(debug_assertions))]
impl Held {
    fn ask(_: Rank) -> Self {
        Self {}
    }
}

/// What a lock protects, until it is dropped.
pub struct Guard<G> {
    // Before `_held`: the lock is free before it counts as free.
    inner: G,
    _held: Held,
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.inner
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.inner
    }
}

/// A lock for one.
pub struct Mutex<T> {
    rank: Rank,
    inner: parking_lot::Mutex<T>,
}

impl<T> Mutex<T> {
    /// A lock with a place in the order.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: parking_lot::Mutex::new(value) }
    }

    /// Waits until nobody holds it.
    #[track_caller]
    pub fn lock(&self) -> Guard<parking_lot::MutexGuard<'_, T>> {
        let held = Held::ask(self.rank);
        Guard { inner: self.inner.lock(), _held: held }
    }
}

/// A lock for many readers or one writer.
pub struct RwLock<T> {
    rank: Rank,
    inner: parking_lot::RwLock<T>,
}

impl<T> RwLock<T> {
    /// A lock with a place in the order.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: parking_lot::RwLock::new(value) }
    }

    /// Waits until nobody writes, or waits to.
    #[track_caller]
    pub fn read(&self) -> Guard<parking_lot::RwLockReadGuard<'_, T>> {
        let held = Held::ask(self.rank);
        Guard { inner: self.inner.read(), _held: held }
    }

    /// Waits until nobody reads or writes.
    #[track_caller]
    pub fn write(&self) -> Guard<parking_lot::RwLockWriteGuard<'_, T>> {
        let held = Held::ask(self.rank);
        Guard { inner: self.inner.write(), _held: held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(work: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err()
    }

    #[test]
    fn locks_are_taken_in_order() {
        let (state, index) = (RwLock::new(Rank::State, 1), Mutex::new(Rank::Index, 2));
        for _ in 0..2 {
            let (a, b) = (state.read(), index.lock());
            assert_eq!(*a + *b, 3);
        }
        *state.write() += 1;
        // One that is free again no longer counts, in whatever order they were let go.
        let (a, b) = (state.read(), index.lock());
        drop(a);
        drop(b);
        assert_eq!(*state.read(), 2);
    }

    #[test]
    fn what_could_hang_is_refused() {
        let (state, index) = (RwLock::new(Rank::State, 1), Mutex::new(Rank::Index, 2));
        assert!(panics(|| {
            let _held = index.lock();
            drop(state.read());
        }));
        assert!(panics(|| {
            let _held = state.read();
            drop(state.read());
        }));
        // Nothing of that stays.
        drop((state.write(), index.lock()));
    }
}
