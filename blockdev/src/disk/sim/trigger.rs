//! Crash points: one counter over all disks of a pool that stops them all at a chosen write.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Where to crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPlan {
    /// The crash comes at the submission of this write or flush, counted from 1 over all disks that share the trigger.
    /// That request is in flight at the crash. `u64::MAX` only counts; 0 crashes before the first request.
    pub after_writes: u64,
}

impl CrashPlan {
    /// Never crashes, only counts: to learn how many crash points a workload has.
    pub const NEVER: Self = Self { after_writes: u64::MAX };
}

/// Counts the writes and flushes of all disks it is given to. Once it has fired, no request of theirs completes any
/// more, and what is submitted later does not reach them, until each disk was crashed or given another trigger.
pub struct CrashTrigger {
    plan: CrashPlan,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    count: u64,
    fired: bool,
    waiting: Vec<Waker>,
}

impl CrashTrigger {
    /// A trigger for the crash that `plan` describes.
    pub fn new(plan: CrashPlan) -> Arc<Self> {
        let state = State { fired: plan.after_writes == 0, ..State::default() };
        Arc::new(Self { plan, state: Mutex::new(state) })
    }

    /// Writes and flushes submitted so far, up to the crash.
    pub fn count(&self) -> u64 {
        self.state.lock().count
    }

    /// Whether it has fired.
    pub fn has_fired(&self) -> bool {
        self.state.lock().fired
    }

    /// Fires now, whatever the plan.
    pub fn fire(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.fired = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Completes once the trigger has fired.
    pub fn fired(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let trigger = self.clone();
        poll_fn(move |cx| {
            let mut state = trigger.state.lock();
            if state.fired {
                return Poll::Ready(());
            }
            if !state.waiting.iter().any(|w| w.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Counts one write or flush. False when it came too late to reach the disk.
    pub(super) fn pass(&self) -> bool {
        let reached = {
            let mut state = self.state.lock();
            if state.fired {
                return false;
            }
            state.count += 1;
            state.count >= self.plan.after_writes
        };
        if reached {
            self.fire();
        }
        true
    }
}
