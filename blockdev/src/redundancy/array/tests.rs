use super::*;
use crate::disk::IO_ALIGN;
use crate::disk::MemoryDisk;
use crate::env::sim::SimScope;
use crate::redundancy::requests::Requests;
use crate::units::Uuid;

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

fn members(count: u16) -> Vec<Member> {
    let size = geometry().chunk(1) + (1 << 20);
    let disk = |i| Arc::new(MemoryDisk::new(format!("/d/{i}"), size)) as Arc<dyn Disk>;
    (0..count).map(|i| Member::new(DiskId(i), Uuid([i as u8; 16]), size, Some(disk(i)), false)).collect()
}

#[test]
fn a_disk_that_was_given_up_and_emptied_is_not_missed() {
    let scope = SimScope::new(2);
    let array = DiskArray::new(scope.env(), geometry(), Tolerance::Single, members(4));
    let one = array.member(DiskId(1)).unwrap();
    array.fail(DiskId(1), "worn out");
    let (long, none) = (Duration::from_secs(60), Duration::ZERO);
    assert!(!array.give_up_overdue(long, none), "it failed a moment ago");
    assert_eq!(one.service(), Service::Away);
    assert!(array.give_up_overdue(none, long) && one.is_given_up());
    assert!(!array.give_up_overdue(none, none), "once is enough");
    assert_eq!(one.service(), Service::GivenUp);
    array.fail(DiskId(2), "worn out");
    assert!(array.check_quorum().is_err(), "what it held may still be needed");
    one.set_service(Service::Empty);
    array.check_quorum().unwrap();
    assert!(array.member(DiskId(1)).unwrap().info().reason.unwrap().contains("was rebuilt on the others"));
    // One that leaves serves, but gets nothing new; when it fails it is given up already.
    array.set_service(DiskId(3), Service::Leaving);
    let three = array.member(DiskId(3)).unwrap();
    assert!(three.is_settled() && !three.takes_data() && array.closed() == 0b1110 && array.absent() == 0b0110);
    array.set_service(DiskId(3), Service::Serving);
    assert!(three.takes_data() && three.service() == Service::Serving);
}

/// Whatever columns are lost, and whatever cannot be read besides, rows come back as they were written as long as parity reaches.
#[test]
fn rows_come_back_without_lost_columns() {
    let scope = SimScope::new(3);
    let env = scope.env();
    let run = async {
        let array = DiskArray::new(env.clone(), geometry(), Tolerance::Double, members(5));
        let columns = (0..5).map(|i| (DiskId(i), ChunkIndex(0))).collect();
        let extent = Extent {
            segment: SegmentId(1),
            incarnation: 1,
            data: 3,
            parity: 2,
            columns,
            stale: AtomicU32::new(0),
            suspect: AtomicU32::new(0),
            damaged: false.into(),
        };
        let strip = geometry().strip_size as usize;
        let mut data = vec![0; 2 * 3 * strip];
        crate::env::Rng::new(4).fill(&mut data);
        for (stripe, data) in data.chunks_exact(3 * strip).enumerate() {
            let parity = array.parity_of(data, 3, 2);
            array.write_stripe(&extent, stripe as u32, Bytes::copy_from_slice(data), parity).await.unwrap();
        }
        let whole: Vec<Bytes> = {
            let mut out = Vec::new();
            for column in 0..5 {
                out.push(array.read_column(&extent, column, 0, 2 * strip).await.unwrap());
            }
            out
        };
        for lost in (0u32..32).filter(|l| l.count_ones() <= 2) {
            let requests = if lost % 2 == 0 { Requests::whole() } else { Requests::new(IO_ALIGN) };
            let rows = array.read_rows(&extent, 0, 2 * strip, lost, &requests).await.unwrap();
            assert!(rows.data_space() == data, "without columns {lost:b}");
            assert_eq!(requests.ended().0 as usize % if lost % 2 == 0 { 1 } else { 2 * strip / IO_ALIGN }, 0);
            for column in (0..5).filter(|c| *c < 3 || lost >> c & 1 == 1) {
                assert!(rows.column(column) == Some(&whole[column]), "column {column} without {lost:b}");
            }
        }
        // A column written in short requests is the column.
        let (disk, chunk) = extent.columns[1];
        let turned: Vec<u8> = whole[1].iter().map(|byte| !byte).collect();
        for (content, most) in [(Bytes::from(turned), IO_ALIGN), (whole[1].clone(), 3 * IO_ALIGN)] {
            let (short, at) = (Requests::new(most), array.geometry.chunk(chunk.0));
            array.write_by(&short, disk, at, content.clone()).await.unwrap();
            assert_eq!(short.ended().0 as usize, (2 * strip).div_ceil(most));
            assert!(array.read_column(&extent, 1, 0, 2 * strip).await.unwrap() == content);
        }
        let requests = Requests::whole();
        assert!(array.read_rows(&extent, 0, strip, 0b10101, &requests).await.is_err(), "three are too many");
        // One is lost, another one does not answer.
        array.fail(DiskId(2), "gone");
        assert!(array.read_rows(&extent, 0, 2 * strip, 0b00001, &requests).await.unwrap().data_space() == data);
        assert!(array.read_rows(&extent, 0, strip, 0b01001, &requests).await.is_err());
    };
    scope.run_until(run, 1_000_000).unwrap();
}
