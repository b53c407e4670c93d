use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;

use super::*;
use crate::disk::test_support::filled;
use crate::disk::{FaultBudget, SimDisk};
use crate::env::SimScope;

const LIMIT: Duration = Duration::from_secs(8);

/// A simulated disk with a time limit, and where it runs.
fn disk() -> (SimScope, Arc<dyn Env>, Arc<SimDisk>, Arc<TimeoutDisk>) {
    let scope = SimScope::new(1);
    let env: Arc<dyn Env> = scope.env();
    let inner = SimDisk::new("d", 1 << 20, 1, FaultBudget::none());
    inner.attach(&scope);
    let timed = TimeoutDisk::new(inner.clone(), &env, Some(LIMIT));
    (scope, env, inner, timed)
}

fn run<T>(scope: &SimScope, course: impl Future<Output = T>) -> T {
    scope.run_until(course, 1_000_000).expect("ends")
}

#[test]
fn what_is_answered_passes_through() {
    let (scope, env, _, timed) = disk();
    run(&scope, async {
        for round in 0..20 {
            timed.write(4096, vec![filled(8192, round)], false).await.unwrap();
            timed.flush().await.unwrap();
            assert_eq!(timed.read(4096, 8192).await.unwrap(), filled(8192, round));
            timed.discard(0, 4096).await.unwrap();
            env.sleep(LIMIT / 3).await;
        }
    });
    let waiting = timed.waiting.lock();
    assert!(waiting.places.iter().all(Option::is_none), "what has ended is not waited for");
    assert_eq!((waiting.places.len(), waiting.given_up.is_some()), (1, false));
}

#[test]
fn nobody_watches_and_it_is_given_up() {
    let (scope, env, inner, timed) = disk();
    run(&scope, async {
        timed.write(0, vec![filled(4096, 1)], true).await.unwrap();
        inner.set_stalled(true);
        let begun = env.now();
        let (write, read, flush) =
            futures::join!(timed.write(0, vec![filled(4096, 2)], true), timed.read(0, 4096), timed.flush());
        let took = env.now() - begun;
        assert!(took >= LIMIT && took < LIMIT + LIMIT / 4, "{took:?}");
        for answer in [write, read.map(drop), flush] {
            assert!(
                matches!(&answer, Err(DiskError::Failed(why)) if why.contains("not answered for 9 s")),
                "{answer:?}"
            );
        }
        // From now on at once, and the disk below knows, too.
        let begun = env.now();
        assert!(matches!(timed.read(0, 4096).await, Err(DiskError::Failed(why)) if why.contains("not answered")));
        assert_eq!(env.now(), begun);
        assert!(inner.is_failed());
        // Opened anew it works.
        let renewed = timed.renewed();
        assert!(!Arc::ptr_eq(&renewed, &timed) && Arc::ptr_eq(&renewed, &renewed.renewed()));
        inner.restore();
        renewed.read(0, 4096).await.unwrap();
        assert!(timed.read(0, 4096).await.is_err(), "the old one stays out");
    });
}

#[test]
fn who_watches_decides() {
    let (scope, env, inner, timed) = disk();
    let told = Arc::new(AtomicU32::new(0));
    let (count, weak) = (told.clone(), Arc::downgrade(&timed));
    timed.watch(move |since| {
        assert!(since < LIMIT);
        if count.fetch_add(1, Ordering::Relaxed) == 4 {
            weak.upgrade().unwrap().give_up("enough");
        }
    });
    run(&scope, async {
        inner.set_stalled(true);
        let begun = env.now();
        assert!(matches!(timed.flush().await, Err(DiskError::Failed(why)) if why == "enough"));
        let took = env.now() - begun;
        assert!(took >= LIMIT + LIMIT / 2 && took < LIMIT * 2, "{took:?}");
    });
    assert_eq!(told.load(Ordering::Relaxed), 5);
}

#[test]
fn an_answer_that_nobody_has_looked_at_is_one() {
    let (scope, env, inner, timed) = disk();
    run(&scope, async {
        inner.set_stalled(true);
        let mut read = timed.read(0, 4096);
        assert!((&mut read).now_or_never().is_none());
        inner.set_stalled(false);
        // Whoever asked does something else for a long time.
        env.sleep(LIMIT * 5).await;
        read.await.unwrap();
        timed.flush().await.unwrap();
    });
}

#[test]
fn a_request_that_was_answered_and_kept_takes_nobody_elses_place() {
    let (scope, env, inner, timed) = disk();
    run(&scope, async {
        let mut first = timed.read(0, 4096);
        (&mut first).await.unwrap();
        inner.set_stalled(true);
        // It gets the place of the first.
        let second = timed.read(0, 4096);
        drop(first);
        let third = timed.read(4096, 4096);
        let begun = env.now();
        let (second, third) = futures::join!(second, third);
        assert!(second.is_err() && third.is_err() && env.now() - begun < LIMIT * 2);
    });
    let waiting = timed.waiting.lock();
    assert_eq!((waiting.places.len(), waiting.free.len()), (2, 2));
}

#[test]
fn discards_have_time_and_end_with_the_disk() {
    let (scope, env, inner, timed) = disk();
    run(&scope, async {
        inner.set_stalled(true);
        let discard = timed.discard(0, 4096);
        let later = env.sleep(LIMIT * 5);
        let (discard, _) = match futures::future::select(discard, later).await {
            futures::future::Either::Left(_) => panic!("answered"),
            futures::future::Either::Right((_, discard)) => (discard, ()),
        };
        let (discard, read) = futures::join!(discard, timed.read(0, 4096));
        assert!(discard.is_err() && read.is_err());
    });
}

#[test]
fn a_dropped_request_is_not_waited_for() {
    let (scope, env, inner, timed) = disk();
    run(&scope, async {
        inner.set_stalled(true);
        let mut read = timed.read(0, 4096);
        assert!((&mut read).now_or_never().is_none());
        drop(read);
        env.sleep(LIMIT * 5).await;
        inner.set_stalled(false);
        timed.read(0, 4096).await.unwrap();
    });
}

#[test]
fn without_a_limit_it_waits() {
    let (scope, env, inner, _) = disk();
    let timed = TimeoutDisk::new(inner.clone(), &env, None);
    run(&scope, async {
        inner.set_stalled(true);
        let read = timed.read(0, 4096);
        let read = match futures::future::select(read, env.sleep(Duration::from_secs(100_000))).await {
            futures::future::Either::Left(_) => panic!("answered"),
            futures::future::Either::Right((_, read)) => read,
        };
        inner.set_stalled(false);
        read.await.unwrap();
    });
}

#[test]
fn the_timer_does_not_keep_the_disk() {
    let (scope, _, inner, timed) = disk();
    run(&scope, async {
        timed.read(0, 4096).await.unwrap();
    });
    let weak = Arc::downgrade(&timed);
    drop(timed);
    assert!(weak.upgrade().is_none());
    assert_eq!(Arc::strong_count(&inner), 1);
}
