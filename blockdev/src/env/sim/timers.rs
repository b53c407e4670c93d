//! Timers of the simulated environment: a heap of moments over a slab of what is to happen then.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::task::Waker;

/// Something that is told when a moment set with [`super::SimEnv::schedule`] has come.
pub(crate) trait TimerTarget: Send + Sync {
    /// The moment has come; `token` is what was given to `schedule`.
    fn fire(&self, token: u64);
}

/// What happens when a timer is due.
pub(super) enum Action {
    Wake(Waker),
    Tell(Arc<dyn TimerTarget>, u64),
}

/// Names a timer until it fired or was cancelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TimerKey {
    slot: u32,
    serial: u64,
}

struct Slot {
    serial: u64,
    action: Option<Action>,
}

/// Moments in nanoseconds; equal ones fire in the order they were added.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    next_serial: u64,
    /// Entries of `heap` whose action is gone.
    cancelled: usize,
}

impl Timers {
    pub fn add(&mut self, at_ns: u64, action: Action) -> TimerKey {
        let serial = self.next_serial;
        self.next_serial += 1;
        let filled = Slot { serial, action: Some(action) };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = filled;
                slot
            }
            None => {
                self.slots.push(filled);
                (self.slots.len() - 1) as u32
            }
        };
        self.heap.push(Reverse((at_ns, serial, slot)));
        TimerKey { slot, serial }
    }

    /// Makes the timer wake `waker` instead of the one it had. The old one comes back, to be dropped without locks
    /// held.
    pub fn set_waker(&mut self, key: TimerKey, waker: &Waker) -> Option<Action> {
        let slot = self.slots.get_mut(key.slot as usize).filter(|s| s.serial == key.serial)?;
        match &mut slot.action {
            Some(Action::Wake(old)) if !old.will_wake(waker) => slot.action.replace(Action::Wake(waker.clone())),
            _ => None,
        }
    }

    /// Cancels the timer if it has not fired. Its action comes back, to be dropped without locks held.
    pub fn cancel(&mut self, key: TimerKey) -> Option<Action> {
        let slot = self.slots.get_mut(key.slot as usize).filter(|s| s.serial == key.serial)?;
        let action = slot.action.take()?;
        self.cancelled += 1;
        if self.cancelled > 64 && self.cancelled > self.heap.len() / 2 {
            self.compact();
        }
        Some(action)
    }

    /// The moment of the earliest timer.
    pub fn next_ns(&mut self) -> Option<u64> {
        while let Some(&Reverse((at_ns, _, slot))) = self.heap.peek() {
            if self.slots[slot as usize].action.is_some() {
                return Some(at_ns);
            }
            self.heap.pop();
            self.cancelled -= 1;
            self.free.push(slot);
        }
        None
    }

    /// Takes the earliest timer that is due at `now_ns`.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<Action> {
        if self.next_ns()? > now_ns {
            return None;
        }
        let Reverse((_, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        self.slots[slot as usize].action.take()
    }

    /// Cancels every timer that tells a target. The actions come back, to be dropped without locks held.
    pub fn cancel_targets(&mut self) -> Vec<Action> {
        let mut out = Vec::new();
        for slot in &mut self.slots {
            if let Some(Action::Tell(..)) = slot.action {
                out.extend(slot.action.take());
            }
        }
        self.cancelled += out.len();
        out
    }

    /// Entries held, cancelled ones among them.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.heap.len().max(self.slots.len())
    }

    fn compact(&mut self) {
        let Self { heap, slots, free, .. } = self;
        heap.retain(|&Reverse((_, _, slot))| {
            let live = slots[slot as usize].action.is_some();
            if !live {
                free.push(slot);
            }
            live
        });
        self.cancelled = 0;
    }
}
