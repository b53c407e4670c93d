use super::*;
use crate::format::catalogue::DiskRecord;
use crate::format::layout::PoolGeometry;
use crate::units::{DiskId, Uuid};

fn label(id: u16, absent: u128) -> Label {
    Label {
        pool: Uuid([9; 16]),
        pool_name: "tank".into(),
        disk: Uuid([id as u8; 16]),
        id: DiskId(id),
        epoch: Epoch(1 << 32),
        tolerance: Tolerance::Single,
        geometry: PoolGeometry {
            chunk_size: 256 << 10,
            strip_size: 64 << 10,
            catalogue_size: 64 << 10,
            log_extent_size: 64 << 10,
            log_extents: 4,
        },
        size: 16 << 20,
        absent,
    }
}

fn absent(labels: &[(u16, u128)], services: &[Service]) -> u128 {
    let record = |(i, service): (usize, &Service)| DiskRecord {
        id: DiskId(i as u16),
        uuid: Uuid([i as u8; 16]),
        size: 16 << 20,
        last_checkpoint: 1,
        service: *service,
        declared: false,
        set: 0,
        errors: Default::default(),
        traffic: Default::default(),
    };
    let disks = services.iter().enumerate().map(record);
    let catalogue = Catalogue { disks: disks.collect(), ..Catalogue::default() };
    let labels: Vec<Label> = labels.iter().map(|(id, absent)| label(*id, *absent)).collect();
    absent_by_labels(&labels.iter().collect::<Vec<_>>(), &catalogue)
}

/// A disk that went keeps a label which calls others absent that have come back since: their copies of the log must not be left out for it.
#[test]
fn labels_of_disks_that_went_do_not_count() {
    use Service::{Away, Condemned, Serving};
    let serving = [Serving; 4];
    assert_eq!(absent(&[(0, 0), (1, 0)], &serving), 0);
    assert_eq!(absent(&[(0, 0b10), (1, 0), (2, 0b10)], &serving), 0b10);
    // Disk 2 went when 1 was away; 1 came back. Disk 0 knows.
    assert_eq!(absent(&[(0, 0b100), (1, 0b100), (2, 0b10)], &serving), 0b100);
    // Nobody knows who is right: both are left out.
    assert_eq!(absent(&[(1, 0b100), (2, 0b10)], &serving), 0b110);
    // A disk that was away, came back and knows of one that went afterwards counts.
    assert_eq!(absent(&[(1, 0b100), (2, 0b110)], &[Serving, Serving, Away, Serving]), 0b110);
    // Nobody labels a condemned disk, nor one that is not of the pool.
    assert_eq!(absent(&[(0, 0), (1, 0), (2, 0b10)], &[Serving, Serving, Condemned, Serving]), 0);
    assert_eq!(absent(&[(0, 0), (9, 0b1)], &serving), 0);
}
