use futures::future::join_all;

use super::*;
use crate::disk::test_support::{Memory, VirtualEnv, filled};

const BLOCK: usize = 4096;

/// The virtual time `requests` take on a disk with this throttle.
fn time<F: Future>(throttle: Throttle, requests: impl FnOnce(Arc<ThrottledDisk>) -> F) -> Duration {
    let env = Arc::new(VirtualEnv::default());
    let disk = ThrottledDisk::new(Memory::new(64 * BLOCK), env.clone(), throttle);
    env.run(async { drop(requests(disk).await) });
    env.now()
}

async fn reads(disk: Arc<ThrottledDisk>, count: u64) {
    for result in join_all((0..count).map(|i| disk.read(i * BLOCK as u64, BLOCK))).await {
        result.unwrap();
    }
}

#[test]
fn unlimited_takes_no_time() {
    assert_eq!(time(Throttle::default(), |d| reads(d, 50)), Duration::ZERO);
    let zero = Throttle { bytes_per_s: Some(0), requests_per_s: Some(0), latency: Duration::ZERO };
    assert_eq!(time(zero, |d| reads(d, 50)), Duration::ZERO);
}

#[test]
fn bandwidth_is_shared_by_all_requests() {
    let throttle = Throttle { bytes_per_s: Some(10 * BLOCK as u64), ..Throttle::default() };
    assert_eq!(time(throttle, |d| reads(d, 50)), Duration::from_secs(5));
    let mixed = |d: Arc<ThrottledDisk>| async move {
        let write = d.write(0, vec![filled(5 * BLOCK, 1), filled(5 * BLOCK, 1)], true);
        let (a, b, c) = futures::join!(d.read(0, 10 * BLOCK), write, d.flush());
        a.unwrap();
        b.unwrap();
        c.unwrap();
    };
    assert_eq!(time(throttle, mixed), Duration::from_secs(2));
}

#[test]
fn requests_per_second_bound_small_requests() {
    let throttle = Throttle { bytes_per_s: Some(1 << 30), requests_per_s: Some(100), latency: Duration::ZERO };
    assert_eq!(time(throttle, |d| reads(d, 50)), Duration::from_millis(500));
}

#[test]
fn latency_is_spent_side_by_side() {
    let throttle = Throttle { latency: Duration::from_millis(7), ..Throttle::default() };
    assert_eq!(time(throttle, |d| reads(d, 50)), Duration::from_millis(7));
    let one_by_one = |d: Arc<ThrottledDisk>| async move {
        for _ in 0..3 {
            d.flush().await.unwrap();
            d.discard(0, 4096).await.unwrap();
        }
    };
    assert_eq!(time(throttle, one_by_one), Duration::from_millis(42));
}

#[test]
fn idle_time_gives_no_credit() {
    let throttle = Throttle { requests_per_s: Some(10), ..Throttle::default() };
    let env = Arc::new(VirtualEnv::default());
    let disk = ThrottledDisk::new(Memory::new(64 * BLOCK), env.clone(), throttle);
    env.run(env.sleep(Duration::from_secs(100)));
    env.run(reads(disk.clone(), 10));
    assert_eq!(env.now(), Duration::from_secs(101));
    disk.set(Throttle::default());
    assert_eq!(disk.throttle(), Throttle::default());
    env.run(reads(disk, 10));
    assert_eq!(env.now(), Duration::from_secs(101));
}

#[test]
fn a_dropped_request_still_happens() {
    let throttle = Throttle { latency: Duration::from_secs(1), ..Throttle::default() };
    let env = Arc::new(VirtualEnv::default());
    let disk = ThrottledDisk::new(Memory::new(64 * BLOCK), env.clone(), throttle);
    env.run(async {
        drop(disk.write(0, vec![filled(BLOCK, 9)], false));
        assert!(disk.read(0, BLOCK).await.unwrap().iter().all(|b| *b == 9));
    });
}
