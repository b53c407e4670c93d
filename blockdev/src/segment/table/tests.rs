use super::*;

/// A segment that is being filled counts before anything live is in it: a guarantee that is raised, or sets that are no longer mixed, must hold for what
/// comes to lie there.
#[test]
fn open_segments_count_before_they_hold_anything() {
    let geometry = PoolGeometry {
        chunk_size: 256 << 10,
        strip_size: 64 << 10,
        catalogue_size: 64 << 10,
        log_extent_size: 64 << 10,
        log_extents: 4,
    };
    let record = SegmentRecord {
        id: SegmentId(1),
        incarnation: 1,
        stream: Stream::Data,
        data: 1,
        parity: 1,
        columns: vec![(DiskId(0), ChunkIndex(0)), (DiskId(1), ChunkIndex(0))],
        sealed: false,
        written: 0,
        live: 0,
        last_part: Location::default(),
        stale_columns: 0,
        damaged: false,
    };
    let disks = || (0..2).map(|i| (DiskId(i), 16 << 20));
    let table = |record| SegmentTable::new(geometry, disks(), vec![record], 2);
    let apart = BTreeMap::from([(DiskId(0), 0), (DiskId(1), 1)]);
    let together = BTreeMap::from([(DiskId(0), 0), (DiskId(1), 0)]);
    let open = table(record.clone());
    assert!(open.has_less_parity(2) && !open.has_less_parity(1));
    assert!(open.straddles(&apart) && !open.straddles(&together));
    let empty = table(SegmentRecord { sealed: true, ..record.clone() });
    assert!(!empty.has_less_parity(2) && !empty.straddles(&apart));
    let live = table(SegmentRecord { sealed: true, live: 1, ..record });
    assert!(live.has_less_parity(2) && live.straddles(&apart));
}
