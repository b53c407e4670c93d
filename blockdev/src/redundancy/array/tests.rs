use super::*;
use crate::units::Uuid;
use crate::disk::MemoryDisk;
use crate::env::sim::SimScope;

fn geometry() -> PoolGeometry {
    PoolGeometry {
        chunk_size: 256 << 10,
        strip_size: 64 << 10,
        catalogue_size: 64 << 10,
        log_extent_size: 4 << 20,
        log_extents: 2,
    }
}

fn disk(name: &str) -> Option<Arc<dyn Disk>> {
    Some(Arc::new(MemoryDisk::new(name, 1 << 20)))
}

#[test]
fn lack_of_disks_names_each_that_is_gone_and_why() {
    let scope = SimScope::new(1);
    let member = |i: u16, disk, failed| Member::new(DiskId(i), Uuid([i as u8; 16]), 1 << 20, disk, failed);
    let members = vec![
        member(0, disk("/d/zero"), false),
        member(1, disk("/d/one"), false),
        member(2, disk("/d/two"), true),
        member(3, None, false),
    ];
    members[2].set_trouble("is an old copy");
    let array = DiskArray::new(scope.env(), geometry(), Tolerance::Double, members);
    array.check_quorum().unwrap();
    array.fail(DiskId(0), "unplugged");
    // A second failure says nothing new.
    array.fail(DiskId(0), "not open");
    let error = array.check_quorum().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let id = |i: u8| Uuid([i; 16]);
    assert_eq!(
        error.to_string(),
        format!(
            "3 of 4 disks are gone, more than the tolerance of 2: disk 0 ({}, /d/zero): unplugged; \
             disk 2 ({}, /d/two): is an old copy; disk 3 ({}): not found; \
             attach them and open the pool again, or restore its data from a backup",
            id(0),
            id(2),
            id(3)
        )
    );
    // Back again: what was wrong with it is forgotten.
    let replugged = disk("/d/elsewhere").unwrap();
    array.reinstate(DiskId(0), replugged);
    array.check_quorum().unwrap();
    array.fail(DiskId(1), "worn out");
    assert!(!array.check_quorum().unwrap_err().to_string().contains("disk 0"));
}
