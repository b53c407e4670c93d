use super::*;
use crate::disk::test_support::{Memory, VirtualEnv, filled};

const BLOCK: usize = 4096;

fn new() -> (Arc<VirtualEnv>, Arc<FaultDisk>) {
    let env = Arc::new(VirtualEnv::default());
    (env.clone(), FaultDisk::new(Memory::new(16 * BLOCK), env))
}

fn is_failed<T: std::fmt::Debug>(result: DiskResult<T>) {
    assert!(matches!(result, Err(DiskError::Failed(_))), "{result:?}");
}

#[test]
fn a_failed_disk_answers_nothing_and_comes_back_with_its_content() {
    let (env, disk) = new();
    env.run(async {
        disk.write(0, vec![filled(BLOCK, 5)], true).await.unwrap();
        disk.fail();
        assert!(disk.is_failed());
        is_failed(disk.read(0, BLOCK).await);
        is_failed(disk.write(0, vec![filled(BLOCK, 6)], false).await);
        is_failed(disk.flush().await);
        is_failed(disk.discard(0, 4096).await);
        disk.restore();
        assert!(!disk.is_failed());
        assert!(disk.read(0, BLOCK).await.unwrap().iter().all(|b| *b == 5));
        disk.flush().await.unwrap();
    });
    let expected = FaultCounters {
        reads: 2,
        writes: 2,
        flushes: 2,
        discards: 1,
        bytes_read: BLOCK as u64,
        bytes_written: BLOCK as u64,
        injected: 4,
    };
    assert_eq!(disk.counters(), expected);
}

#[test]
fn read_errors_leave_writes_alone() {
    let (env, disk) = new();
    env.run(async {
        disk.set_read_errors(true);
        disk.write(0, vec![filled(BLOCK, 5)], false).await.unwrap();
        disk.flush().await.unwrap();
        let result = disk.read(0, BLOCK).await;
        assert!(matches!(result, Err(DiskError::Medium(_))), "{result:?}");
        disk.set_read_errors(false);
        disk.read(0, BLOCK).await.unwrap();
    });
    assert_eq!(disk.counters().injected, 1);
}

#[test]
fn requests_are_late_by_the_delay() {
    let (env, disk) = new();
    disk.set_delay(Duration::from_millis(30));
    env.run(async {
        let (a, b) = futures::join!(disk.read(0, BLOCK), disk.flush());
        a.unwrap();
        b.unwrap();
    });
    assert_eq!(env.now(), Duration::from_millis(30));
    disk.set_delay(Duration::ZERO);
    env.run(disk.read(0, BLOCK)).unwrap();
    assert_eq!(env.now(), Duration::from_millis(30));
}

#[test]
fn requests_under_way_fail_with_the_disk() {
    let (env, disk) = new();
    disk.set_delay(Duration::from_millis(30));
    let pending = disk.clone();
    env.run(async {
        let write = pending.write(0, vec![filled(BLOCK, 7)], false);
        env.sleep(Duration::from_millis(10)).await;
        disk.fail();
        disk.restore();
        is_failed(write.await);
        assert!(disk.read(0, BLOCK).await.unwrap().iter().all(|b| *b == 0));
    });
}
