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

#[test]
fn what_is_on_the_disk_rots_silently() {
    let (env, disk) = new();
    env.run(async {
        disk.write(0, vec![filled(16 * BLOCK, 5)], true).await.unwrap();
        let before = disk.counters();
        // Within a block, over the border of two, whole blocks, and on a disk that is gone.
        disk.corrupt(100, &[9; 512]).await.unwrap();
        disk.corrupt(3 * BLOCK as u64 - 1, &[7, 8]).await.unwrap();
        disk.corrupt(6 * BLOCK as u64, &[6; 2 * BLOCK]).await.unwrap();
        disk.fail();
        disk.corrupt(16 * BLOCK as u64 - 1, &[1]).await.unwrap();
        assert!(disk.beneath().read(0, BLOCK).await.is_ok());
        disk.restore();
        assert_eq!(disk.counters(), before, "it was noticed");
        let mut expected = vec![5; 16 * BLOCK];
        expected[100..612].fill(9);
        expected[3 * BLOCK - 1..=3 * BLOCK].copy_from_slice(&[7, 8]);
        expected[6 * BLOCK..8 * BLOCK].fill(6);
        expected[16 * BLOCK - 1] = 1;
        assert!(disk.read(0, 16 * BLOCK).await.unwrap() == expected);
        // Nothing is there beyond the end.
        for beyond in [16 * BLOCK as u64 - 1, u64::MAX] {
            assert!(matches!(disk.corrupt(beyond, &[1, 2]).await, Err(DiskError::Medium(_))), "{beyond}");
        }
        assert!(disk.read(0, 16 * BLOCK).await.unwrap() == expected);
    });
}
