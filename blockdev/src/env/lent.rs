//! The io_uring of a thread that waits in it anyhow, lent to whoever works on that thread: what is asked there is answered there, and no other
//! thread is woken. `docs/design/0014-reads-of-a-thread.md` says when and why.

use std::cell::RefCell;
use std::marker::PhantomData;

use io_uring::{cqueue, squeue};
use slab::Slab;

/// Marks entries of borrowers in the user data; the rest of it is their number. Lenders have other user data of their own.
const MARK: u64 = 3 << 62;

/// Who waits for a completion. It owns what its entry refers to.
pub trait Waiting: Send {
    /// Takes the kernel's result: bytes, or a negative error number.
    fn complete(self: Box<Self>, result: i32);

    /// The lender goes, and the kernel has not answered. What the entry refers to must never be given back; nobody needs to wait any longer.
    fn abandon(self: Box<Self>);
}

/// Puts an entry into the submission queue of the calling thread's ring; false when that is full.
pub type Push = fn(&squeue::Entry) -> bool;

struct Lent {
    push: Push,
    waiting: Slab<Box<dyn Waiting>>,
}

thread_local! {
    static LENT: RefCell<Option<Lent>> = const { RefCell::new(None) };
}

/// The calling thread's ring is lent for as long as this lives.
///
/// The lender submits what was pushed, hands in every completion, and goes on with that until nothing is [`under_way`] before it drops this. What is there
/// then is abandoned.
pub struct LentRing {
    /// Bound to its thread.
    _thread: PhantomData<*const ()>,
}

impl LentRing {
    /// Lends the ring that `push` fills.
    ///
    /// # Panics
    /// When the thread has lent one already.
    pub fn new(push: Push) -> Self {
        LENT.with_borrow_mut(|lent| {
            assert!(lent.is_none(), "a thread lends one ring");
            *lent = Some(Lent { push, waiting: Slab::new() });
        });
        Self { _thread: PhantomData }
    }

    /// Whether a completion belongs to a borrower and is to be handed in.
    pub fn concerns(completion: &cqueue::Entry) -> bool {
        completion.user_data() & MARK == MARK
    }

    /// Gives a completion to who waits for it. What is nobody's is left alone.
    pub fn complete(&self, completion: &cqueue::Entry) {
        if !Self::concerns(completion) {
            return;
        }
        let key = (completion.user_data() & !MARK) as usize;
        // Not held while it is told, as it may borrow again.
        let waiting = LENT.with_borrow_mut(|lent| lent.as_mut().and_then(|lent| lent.waiting.try_remove(key)));
        if let Some(waiting) = waiting {
            waiting.complete(completion.result());
        }
    }
}

impl Drop for LentRing {
    fn drop(&mut self) {
        let Some(Lent { waiting, .. }) = LENT.take() else { return };
        if !waiting.is_empty() {
            tracing::warn!(requests = waiting.len(), "requests that got no answer are waited for no longer");
        }
        waiting.into_iter().for_each(|(_, request)| request.abandon());
    }
}

/// Requests of borrowers in the calling thread's ring.
pub fn under_way() -> usize {
    // A thread that is ending lends nothing any more.
    LENT.try_with(|lent| lent.borrow().as_ref().map_or(0, |lent| lent.waiting.len())).unwrap_or(0)
}

/// Puts a request into the ring that the calling thread lends: `entry` makes what the kernel is given. Gives the request back where
/// none is lent, or it is full. The request must stay where it is in memory, and the entry valid, until it is completed.
///
/// # Errors
/// The request.
pub fn borrow<W: Waiting + 'static>(
    mut request: Box<W>,
    entry: impl FnOnce(&mut W) -> squeue::Entry,
) -> Result<(), Box<W>> {
    LENT.with_borrow_mut(|lent| {
        let Some(Lent { push, waiting }) = lent.as_mut() else { return Err(request) };
        let place = waiting.vacant_entry();
        let user_data = place.key() as u64 | MARK;
        if !push(&entry(&mut request).user_data(user_data)) {
            return Err(request);
        }
        place.insert(request);
        Ok(())
    })
}
