//! Rings that threads lend: by themselves, and with disks that read there.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Wake, Waker};

use futures::future::join_all;
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::tests::{GRAIN, against_model, new_file, temp};
use super::*;
use crate::env::lent::{LentRing, Waiting, borrow, under_way};

thread_local! {
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

fn push(entry: &squeue::Entry) -> bool {
    // SAFETY: entries refer to no memory, or are a disk's; then the ring is waited in until it is empty.
    RING.with_borrow_mut(|ring| unsafe { ring.as_mut().unwrap().submission().push(entry) }.is_ok())
}

/// A thread's ring of `entries`; false where the system has none.
fn make_ring(entries: u32) -> bool {
    RING.set(IoUring::new(entries).ok());
    RING.with_borrow(Option::is_some)
}

fn wait_for(count: usize) -> Vec<cqueue::Entry> {
    RING.with_borrow_mut(|ring| {
        let ring = ring.as_mut().unwrap();
        ring.submit_and_wait(count).unwrap();
        ring.completion().collect()
    })
}

struct Noted(u32, Sender<(u32, i32)>);

impl Waiting for Noted {
    fn complete(self: Box<Self>, result: i32) {
        self.1.send((self.0, result)).unwrap();
    }

    fn abandon(self: Box<Self>) {
        self.1.send((self.0, i32::MIN)).unwrap();
    }
}

fn nop(_: &mut Noted) -> squeue::Entry {
    opcode::Nop::new().build()
}

#[test]
fn what_is_borrowed_is_answered_on_the_thread_that_lends() {
    if !make_ring(4) {
        return;
    }
    let (send, noted) = channel();
    let new = |n| Box::new(Noted(n, send.clone()));
    assert_eq!(borrow(new(0), nop).unwrap_err().0, 0, "nothing is lent");
    let ring = LentRing::new(push);
    for n in 1..=4 {
        assert!(borrow(new(n), nop).is_ok());
    }
    assert_eq!(borrow(new(5), nop).unwrap_err().0, 5, "it is full");
    assert_eq!(under_way(), 4);
    std::thread::spawn(|| assert_eq!(under_way(), 0)).join().unwrap();
    let completions = wait_for(4);
    assert!(completions.iter().all(LentRing::concerns) && noted.try_recv().is_err());
    completions.iter().for_each(|completion| ring.complete(completion));
    let mut got: Vec<_> = noted.try_iter().collect();
    got.sort_unstable();
    assert_eq!((got, under_way()), (vec![(1, 0), (2, 0), (3, 0), (4, 0)], 0));
    // Handed in twice, it is nobody's.
    ring.complete(&completions[0]);
    assert!(noted.try_recv().is_err());
}

#[test]
fn completions_of_the_lender_are_left_alone() {
    if !make_ring(4) {
        return;
    }
    let (send, noted) = channel();
    let ring = LentRing::new(push);
    assert!(borrow(Box::new(Noted(1, send)), nop).is_ok());
    // The same number as that of the request, without the mark.
    assert!(push(&opcode::Nop::new().build().user_data(0)));
    assert!(push(&opcode::Nop::new().build().user_data(1 << 63)));
    let completions = wait_for(3);
    let (ours, others): (Vec<_>, Vec<_>) = completions.into_iter().partition(LentRing::concerns);
    others.iter().for_each(|completion| ring.complete(completion));
    assert_eq!((others.len(), noted.try_recv().is_err(), under_way()), (2, true, 1));
    ring.complete(&ours[0]);
    assert_eq!((noted.try_recv(), under_way()), (Ok((1, 0)), 0));
}

#[test]
fn a_ring_is_lent_again_after_it_was_taken_back() {
    if !make_ring(1) {
        return;
    }
    drop(LentRing::new(push));
    let _ring = LentRing::new(push);
    assert!(std::panic::catch_unwind(|| LentRing::new(push)).is_err());
}

/// Runs `work` on a thread that lends a ring of `entries` to the disks, as the queues of ublk do: it polls, and waits in its ring in between.
fn on_a_lending_thread(entries: u32, work: impl FnOnce() -> BoxFuture<()> + Send + 'static) {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let thread = std::thread::spawn(move || {
        if !make_ring(entries) {
            return;
        }
        let ring = LentRing::new(push);
        let mut work = Some(work());
        let count = Arc::new(Count(AtomicUsize::new(1)));
        let waker = Waker::from(count.clone());
        while work.is_some() || under_way() > 0 {
            if count.0.swap(0, Ordering::SeqCst) > 0
                && let Some(task) = &mut work
                && task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
            {
                work = None;
            }
            let completions = wait_for(0);
            completions.iter().for_each(|completion| ring.complete(completion));
            std::thread::yield_now();
        }
    });
    thread.join().unwrap();
}

#[test]
fn reads_on_a_thread_that_lends_its_ring_equal_those_elsewhere() {
    // A ring for all reads, and one that is full at once.
    for entries in [64, 2] {
        let (_dir, path) = temp();
        on_a_lending_thread(entries, move || {
            let disk = FileDisk::open(&path, new_file(4 << 20)).unwrap();
            Box::pin(async move { against_model(&disk, 7, 6).await })
        });
    }
}

#[test]
fn a_disk_dropped_with_reads_in_a_lent_ring_closes_with_the_last_of_them() {
    let (_dir, path) = temp();
    let (again, path) = (path.clone(), path);
    on_a_lending_thread(16, move || {
        let disk = FileDisk::open(&path, new_file(4 << 20)).unwrap();
        let reads: Vec<_> = (0..8).map(|i| disk.read(i * GRAIN, IO_ALIGN)).collect();
        // Nobody waits for four of them. The disk goes while this thread has all eight in its ring.
        let waited = join_all(reads.into_iter().skip(4));
        drop(disk);
        Box::pin(async move { assert!(waited.await.iter().all(|read| read.is_ok())) })
    });
    // Closed: its lock is free.
    FileDisk::open(&again, OpenOptions::default()).unwrap();
}

#[test]
fn a_read_past_a_truncated_end_is_an_error_in_a_lent_ring_too() {
    let (_dir, path) = temp();
    on_a_lending_thread(16, move || {
        let disk = FileDisk::open(&path, new_file(1 << 20)).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
        Box::pin(async move {
            assert!(disk.read(0, 8192).await.is_ok());
            assert!(matches!(disk.read(4096, 65536).await, Err(DiskError::Medium(_))), "it goes on in the shared ring");
            assert!(matches!(disk.read(65536, 4096).await, Err(DiskError::Medium(_))));
        })
    });
}

/// A dead drive must not keep its disk open for ever after the thread that read from it has gone.
#[test]
fn reads_that_get_no_answer_are_told_and_their_disk_closes() {
    let (_dir, path) = temp();
    let again = path.clone();
    let thread = std::thread::spawn(move || {
        if !make_ring(16) {
            return;
        }
        let (send, noted) = channel();
        let ring = LentRing::new(push);
        let disk = FileDisk::open(&path, new_file(1 << 20)).unwrap();
        // Nobody enters the ring: the kernel never answers.
        let (read, dropped) = (disk.read(0, IO_ALIGN), disk.read(0, 128 << 10));
        drop(dropped);
        assert!(borrow(Box::new(Noted(3, send)), nop).is_ok());
        drop(ring);
        assert_eq!((noted.try_recv(), under_way()), (Ok((3, i32::MIN)), 0));
        let told = crate::disk::test_support::block_on(read).unwrap_err();
        assert!(matches!(told, DiskError::Medium(_)), "{told}");
        // It is as good as before, and closes.
        assert!(crate::disk::test_support::block_on(disk.read(0, IO_ALIGN)).is_ok());
        drop(disk);
    });
    thread.join().unwrap();
    FileDisk::open(&again, OpenOptions::default()).unwrap();
}
