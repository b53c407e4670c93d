use super::*;
use crate::disk::{Disk, MemoryDisk};
use crate::env::sim::SimScope;
use crate::format::layout::PoolGeometry;
use crate::format::record::Record;
use crate::redundancy::array::Member;
use crate::report::Tolerance;
use crate::units::Uuid;

const OURS: Uuid = Uuid([1; 16]);
const THEIRS: Uuid = Uuid([2; 16]);
const EPOCH: Epoch = Epoch(1 << 32 | 7);

fn array(scope: &SimScope) -> Arc<DiskArray> {
    array_of(scope, 2)
}

fn array_of(scope: &SimScope, disks: u16) -> Arc<DiskArray> {
    let geometry = PoolGeometry {
        chunk_size: 256 << 10,
        strip_size: 64 << 10,
        catalogue_size: 64 << 10,
        log_extent_size: 64 << 10,
        log_extents: 4,
    };
    let member = |i: u16| {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(format!("d{i}"), 4 << 20));
        Member::new(DiskId(i), Uuid([i as u8; 16]), 4 << 20, Some(disk), false)
    };
    Arc::new(DiskArray::new(scope.env(), geometry, Tolerance::Single, (0..disks).map(member).collect()))
}

/// Writes entries of one empty record each, from the first on, to the first slots.
async fn write(array: &Arc<DiskArray>, pool: Uuid, entries: u64) {
    let log = Log::new(array.clone(), pool, EPOCH, BTreeMap::new(), 1);
    for number in 1..=entries {
        let mut record = Vec::new();
        Record { number, ..Record::default() }.encode(&mut record);
        log.write(&[], &[], &[&record], || panic!("the log is full")).await.unwrap();
    }
}

async fn replayed(array: &DiskArray, pool: Uuid) -> replay::Replay {
    replay::read(array, (pool, EPOCH), 1, 1, 0).await.unwrap()
}

#[test]
fn entries_of_another_pool_with_the_same_epoch_are_not_replayed() {
    let scope = SimScope::new(1);
    let work = async {
        let array = array(&scope);
        write(&array, THEIRS, 3).await;
        assert_eq!(replayed(&array, THEIRS).await.entries.len(), 3);
        let found = replayed(&array, OURS).await;
        assert!(found.entries.is_empty() && found.extents.is_empty());
        assert_eq!(found.next_extent, 1);

        // Ours over the first of theirs: what follows it fits in every number, and is not ours.
        write(&array, OURS, 1).await;
        let found = replayed(&array, OURS).await;
        assert_eq!(found.entries.iter().map(|e| (e.pool, e.number)).collect::<Vec<_>>(), [(OURS, 1)]);
        assert_eq!((found.extents.len(), found.next_extent), (1, 2));
        assert!(replayed(&array, THEIRS).await.entries.is_empty());
    };
    scope.run_until(work, 1_000_000).unwrap();
}

/// All copies of an extent lie in one resiliency set: failures in several sets never take all of them.
#[test]
fn copies_of_an_extent_lie_in_one_set() {
    let scope = SimScope::new(2);
    let work = async {
        let array = array_of(&scope, 7);
        let sets: Vec<(DiskId, u16)> = (0..7).map(|i| (DiskId(i), i % 3)).collect();
        array.set_sets(&sets);
        let log = Log::new(array.clone(), OURS, EPOCH, BTreeMap::new(), 1);
        let mut seen = std::collections::BTreeSet::new();
        for number in 1..=9 {
            let mut record = Vec::new();
            Record { number, ..Record::default() }.encode(&mut record);
            log.write(&[], &[], &[&record], || panic!("the log is full")).await.unwrap();
            log.rotate();
        }
        for mirrors in log.inner.lock().extents.values() {
            let of: std::collections::BTreeSet<u16> = mirrors.iter().map(|(disk, _)| disk.0 % 3).collect();
            assert_eq!((mirrors.len(), of.len()), (2, 1), "{mirrors:?}");
            seen.extend(of);
        }
        assert_eq!(seen.len(), 3, "the sets do not take turns");
    };
    scope.run_until(work, 1_000_000).unwrap();
}
