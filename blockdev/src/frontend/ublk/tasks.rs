//! Requests that are done on the thread of their queue. Most are answered without waiting for anything, from memory; giving one to another
//! thread and the answer back costs more than doing it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Work that ends with the result for the driver.
pub(super) type Task = Pin<Box<dyn Future<Output = i32> + Send>>;

/// Where it is said that the work of a tag can go on; from any thread.
pub(super) trait Rouse: Send + Sync + 'static {
    /// The work of `tag` can go on.
    fn rouse(&self, tag: u16);
}

/// Says once between two looks that the work of a tag can go on.
struct Bell<R> {
    to: Arc<R>,
    tag: u16,
    rung: AtomicBool,
}

impl<R: Rouse> Wake for Bell<R> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.to.rouse(self.tag);
        }
    }
}

/// A place for the work of one tag. A bell is used by one task after another: one that comes late is taken for the next's, which then looks for
/// nothing.
struct Seat<R> {
    bell: Arc<Bell<R>>,
    waker: Waker,
    task: Option<Task>,
}

/// The work of a queue, by tag.
pub(super) struct Tasks<R> {
    seats: Vec<Seat<R>>,
    waiting: usize,
}

impl<R: Rouse> Tasks<R> {
    /// Room for tags below `depth`.
    pub(super) fn new(depth: u16, to: &Arc<R>) -> Self {
        let seat = |tag| {
            let bell = Arc::new(Bell { to: Arc::clone(to), tag, rung: AtomicBool::new(false) });
            Seat { waker: Waker::from(Arc::clone(&bell)), bell, task: None }
        };
        Self { seats: (0..depth).map(seat).collect(), waiting: 0 }
    }

    /// How many wait for something.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Begins the work of a tag that has none: the result if it did not have to wait.
    pub(super) fn begin(&mut self, tag: u16, task: Task) -> Option<i32> {
        let seat = self.seats.get_mut(usize::from(tag))?;
        debug_assert!(seat.task.is_none(), "tag {tag} is taken");
        seat.task = Some(task);
        self.waiting += 1;
        self.go_on(tag)
    }

    /// Goes on with the work of a tag: the result if that ended it. Work that panics ends with an I/O error.
    pub(super) fn go_on(&mut self, tag: u16) -> Option<i32> {
        let seat = self.seats.get_mut(usize::from(tag))?;
        // Before the look: what rings during it is not missed.
        seat.bell.rung.store(false, Ordering::SeqCst);
        let task = seat.task.as_mut()?;
        let mut context = Context::from_waker(&seat.waker);
        let result = match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut context))) {
            Ok(Poll::Pending) => return None,
            Ok(Poll::Ready(result)) => result,
            Err(_) => -libc::EIO,
        };
        // What the task holds goes before it is answered. A value that panics when it is dropped is not ours to mend.
        let _ = catch_unwind(AssertUnwindSafe(|| seat.task = None));
        self.waiting -= 1;
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Noted(Mutex<Vec<u16>>);

    impl Rouse for Noted {
        fn rouse(&self, tag: u16) {
            self.0.lock().push(tag);
        }
    }

    fn waits_for(answer: oneshot::Receiver<i32>) -> Task {
        Box::pin(async move { answer.await.unwrap_or(-1) })
    }

    #[test]
    fn what_need_not_wait_ends_at_once() {
        let mut tasks = Tasks::new(2, &Arc::new(Noted::default()));
        assert_eq!(tasks.begin(1, Box::pin(async { 512 })), Some(512));
        assert_eq!((tasks.waiting(), tasks.go_on(1)), (0, None));
    }

    #[test]
    fn what_waits_goes_on_when_it_is_roused_by_another_thread() {
        let noted = Arc::new(Noted::default());
        let mut tasks = Tasks::new(8, &noted);
        let ((first, one), (second, two)) = (oneshot::channel(), oneshot::channel());
        assert_eq!((tasks.begin(3, waits_for(one)), tasks.begin(5, waits_for(two))), (None, None));
        assert_eq!((tasks.waiting(), noted.0.lock().len()), (2, 0));
        std::thread::spawn(move || second.send(7)).join().unwrap().unwrap();
        assert_eq!(std::mem::take(&mut *noted.0.lock()), [5]);
        assert_eq!((tasks.go_on(5), tasks.waiting()), (Some(7), 1));
        drop(first);
        assert_eq!((tasks.go_on(3), tasks.waiting()), (Some(-1), 0));
        // The next work of the same tag.
        let (third, three) = oneshot::channel();
        assert_eq!(tasks.begin(5, waits_for(three)), None);
        noted.0.lock().clear();
        third.send(9).unwrap();
        assert_eq!((noted.0.lock().clone(), tasks.go_on(5)), (vec![5], Some(9)));
    }

    #[test]
    fn a_bell_is_heard_once_between_two_looks_and_never_missed() {
        let noted = Arc::new(Noted::default());
        let mut tasks = Tasks::new(1, &noted);
        let mut looks = 0;
        // Rings while it is looked at, twice.
        let task = std::future::poll_fn(move |context| {
            looks += 1;
            context.waker().wake_by_ref();
            context.waker().wake_by_ref();
            if looks == 3 { Poll::Ready(looks) } else { Poll::Pending }
        });
        assert_eq!((tasks.begin(0, Box::pin(task)), noted.0.lock().len()), (None, 1));
        assert_eq!((tasks.go_on(0), noted.0.lock().len()), (None, 2));
        assert_eq!((tasks.go_on(0), noted.0.lock().len()), (Some(3), 3));
        // It rang for work that has ended.
        assert_eq!((tasks.go_on(0), tasks.waiting()), (None, 0));
    }

    #[test]
    fn work_that_panics_is_an_error_of_its_own_request_only() {
        let mut tasks = Tasks::new(2, &Arc::new(Noted::default()));
        let (send, answer) = oneshot::channel();
        assert_eq!(tasks.begin(0, waits_for(answer)), None);
        assert_eq!(tasks.begin(1, Box::pin(async { panic!("a fault of ours") })), Some(-libc::EIO));
        send.send(1).unwrap();
        assert_eq!((tasks.go_on(0), tasks.begin(1, Box::pin(async { 2 }))), (Some(1), Some(2)));
    }
}
