use std::sync::atomic::AtomicUsize;

use super::*;
use crate::env::compute;

const STEPS: u64 = 1_000_000;

type Log<T> = Arc<Mutex<Vec<T>>>;

/// Gives way once.
fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Some tasks that yield, sleep and compute; gives the order in which they passed their points.
fn order_of(seed: u64) -> (Vec<(u32, u32)>, u64, Duration) {
    let sim = SimScope::new(seed);
    let log: Log<(u32, u32)> = Arc::default();
    let left = Arc::new(tokio::sync::Semaphore::new(0));
    for task in 0..8u32 {
        let (env, log, left) = (sim.env(), log.clone(), left.clone());
        sim.spawn(Box::pin(async move {
            for point in 0..6 {
                match (task + point) % 3 {
                    0 => yield_now().await,
                    1 => env.sleep(Duration::from_micros(env.random_u64() % 50)).await,
                    _ => assert_eq!(compute(&env, move || point).await, Some(point)),
                }
                log.lock().push((task, point));
            }
            left.add_permits(1);
        }));
    }
    sim.run_until(async { left.acquire_many(8).await.map(drop) }, STEPS).unwrap().unwrap();
    let order = log.lock().clone();
    (order, sim.trace(), sim.now())
}

#[test]
fn the_seed_decides_the_order() {
    assert_eq!(order_of(11), order_of(11));
    let distinct: std::collections::HashSet<_> = (0..20).map(|seed| order_of(seed).0).collect();
    assert_eq!(distinct.len(), 20);
    let (order, _, _) = order_of(3);
    assert_eq!(order.len(), 48);
    for task in 0..8 {
        let points: Vec<u32> = order.iter().filter(|e| e.0 == task).map(|e| e.1).collect();
        assert_eq!(points, [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn every_ready_task_can_be_the_first() {
    let mut first = [0; 4];
    for seed in 0..200 {
        let sim = SimScope::new(seed);
        let log: Log<usize> = Arc::default();
        for task in 0..4 {
            let log = log.clone();
            if task % 2 == 0 {
                sim.spawn(Box::pin(async move { log.lock().push(task) }));
            } else {
                sim.compute(Box::new(move || log.lock().push(task)));
            }
        }
        let env = sim.env();
        sim.block_on(async { env.sleep(Duration::from_secs(1)).await });
        assert_eq!(log.lock().len(), 4);
        assert_eq!(sim.tasks(), 0);
        first[log.lock()[0]] += 1;
    }
    assert!(first.iter().all(|&n| n > 20), "{first:?}");
}

#[test]
fn timers_fire_in_order_and_time_jumps() {
    let sim = SimScope::new(5);
    let log: Log<u64> = Arc::default();
    for ms in [500, 20, 3_600_000, 100, 1] {
        let (env, log) = (sim.env(), log.clone());
        sim.spawn(Box::pin(async move {
            env.sleep(Duration::from_millis(ms)).await;
            assert!(env.now() >= Duration::from_millis(ms));
            log.lock().push(ms);
        }));
    }
    let env = sim.env();
    sim.block_on(async { env.sleep(Duration::from_secs(7200)).await });
    assert_eq!(*log.lock(), [1, 20, 100, 500, 3_600_000]);
    assert!(sim.now() >= Duration::from_secs(7200) && sim.now() < Duration::from_secs(7201));
    assert_eq!(sim.wall_clock_s(), SIM_EPOCH_S + 7200);
    assert!(sim.steps() < 100);
}

#[test]
fn timers_fire_between_steps_of_busy_tasks() {
    let sim = SimScope::new(6);
    let env = sim.env();
    sim.spawn(Box::pin(async {
        loop {
            yield_now().await;
        }
    }));
    sim.run_until(async { env.sleep(Duration::from_millis(1)).await }, STEPS).unwrap();
}

#[test]
fn cancelled_timers_neither_hold_time_nor_memory() {
    let sim = SimScope::new(7);
    let env = sim.env();
    sim.block_on(async {
        for _ in 0..10_000 {
            let far = env.sleep(Duration::from_secs(3600));
            let near = env.sleep(Duration::from_nanos(10));
            futures::future::select(far, near).await;
        }
    });
    assert!(sim.now() < Duration::from_secs(1));
    assert!(sim.core.state.lock().timers.len() < 1000);
    assert_eq!(
        sim.run_until(std::future::pending::<()>(), STEPS).unwrap_err(),
        SimStall::Deadlock { tasks: 0, steps: sim.steps(), now: sim.now() }
    );
}

#[test]
fn deadlock_is_told() {
    let sim = SimScope::new(8);
    sim.spawn(Box::pin(std::future::pending()));
    let stall = sim.run_until(std::future::pending::<()>(), STEPS).unwrap_err();
    assert!(matches!(stall, SimStall::Deadlock { tasks: 1, .. }));
    assert!(stall.to_string().starts_with("deadlock: no runnable task and no timer"), "{stall}");
}

#[test]
#[should_panic(expected = "simulation with seed 99: deadlock")]
fn block_on_names_the_seed() {
    SimScope::new(99).block_on(std::future::pending::<()>());
}

#[test]
fn livelock_is_told() {
    let sim = SimScope::new(9);
    let spin = async {
        loop {
            yield_now().await;
        }
    };
    assert!(matches!(sim.run_until(spin, 1000), Err(SimStall::StepLimit { steps: 1000, .. })));
}

#[test]
#[should_panic(expected = "from within the same environment")]
fn nested_runs_are_refused() {
    let sim = SimScope::new(10);
    sim.block_on(async { sim.block_on(async {}) });
}

/// Counts its drops, and uses the environment while being dropped.
struct Dropped(Arc<AtomicUsize>, Arc<dyn Env>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.spawn(Box::pin(async { panic!("spawned after the kill") }));
        self.1.compute(Box::new(|| panic!("work after the kill")));
    }
}

#[test]
fn kill_drops_all_tasks_and_nothing_runs_afterwards() {
    let sim = SimScope::new(12);
    let dropped = Arc::new(AtomicUsize::new(0));
    let ran = Arc::new(AtomicUsize::new(0));
    for i in 0..10u64 {
        let (env, ran, guard) = (sim.env(), ran.clone(), Dropped(dropped.clone(), sim.env()));
        sim.spawn(Box::pin(async move {
            let _guard = guard;
            env.sleep(Duration::from_millis(i)).await;
            ran.fetch_add(1, Ordering::Relaxed);
            env.sleep(Duration::from_secs(1)).await;
            ran.fetch_add(100, Ordering::Relaxed);
        }));
    }
    let env = sim.env();
    sim.block_on(async { env.sleep(Duration::from_micros(4500)).await });
    assert_eq!((ran.load(Ordering::Relaxed), sim.tasks()), (5, 10));
    sim.kill_all_tasks();
    assert_eq!((dropped.load(Ordering::Relaxed), sim.tasks()), (10, 0));
    sim.block_on(async { env.sleep(Duration::from_secs(10)).await });
    assert_eq!(ran.load(Ordering::Relaxed), 5);
    assert_eq!(sim.block_on(async { compute(&env, || 1).await }), None);
    drop(env);
    assert_eq!(Arc::strong_count(&sim.0), 1);
}

#[test]
fn a_task_can_kill_its_environment() {
    let sim = SimScope::new(13);
    let dropped = Arc::new(AtomicUsize::new(0));
    let (killer, guard) = (sim.0.clone(), Dropped(dropped.clone(), sim.env()));
    sim.spawn(Box::pin(async move {
        let _guard = guard;
        killer.kill_all_tasks();
        yield_now().await;
        panic!("ran after the kill");
    }));
    assert!(matches!(sim.run_until(std::future::pending::<()>(), STEPS), Err(SimStall::Deadlock { tasks: 0, .. })));
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn slots_are_reused_and_stale_wakers_do_not_wake_others() {
    let sim = SimScope::new(14);
    let stale: Log<Waker> = Arc::default();
    let env = sim.env();
    let (polls, counted) = (Arc::new(AtomicUsize::new(0)), 100);
    sim.block_on(async {
        for _ in 0..counted {
            let wakers = stale.clone();
            sim.spawn(Box::pin(std::future::poll_fn(move |cx| {
                wakers.lock().push(cx.waker().clone());
                Poll::Ready(())
            })));
            env.sleep(Duration::from_millis(1)).await;
        }
        let polls = polls.clone();
        sim.spawn(Box::pin(std::future::poll_fn(move |_| {
            polls.fetch_add(1, Ordering::Relaxed);
            Poll::Pending
        })));
        env.sleep(Duration::from_millis(1)).await;
        stale.lock().iter().for_each(Waker::wake_by_ref);
        env.sleep(Duration::from_millis(1)).await;
    });
    assert_eq!((stale.lock().len(), polls.load(Ordering::Relaxed)), (counted, 1));
    assert_eq!(sim.core.state.lock().slots.len(), 1);
}

#[test]
fn a_run_can_be_continued() {
    let sim = SimScope::new(15);
    let (send, receive) = tokio::sync::oneshot::channel();
    let env = sim.env();
    sim.spawn(Box::pin({
        let env = env.clone();
        async move {
            env.sleep(Duration::from_millis(5)).await;
            send.send(3).unwrap();
        }
    }));
    sim.block_on(async { env.sleep(Duration::from_millis(1)).await });
    assert_eq!(sim.block_on(receive), Ok(3));
}
