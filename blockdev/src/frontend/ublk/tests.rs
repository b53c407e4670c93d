use super::*;
use crate::units::Uuid;

fn uuid(byte: u8) -> Uuid {
    Uuid([byte; 16])
}

#[test]
fn an_owner_tells_pool_and_volume() {
    let owner = Owner::new(uuid(1), 7);
    assert_eq!(owner.volume_of(uuid(1)), Some(7));
    assert_eq!(owner.volume_of(uuid(2)), None);
    assert_ne!(owner, Owner::new(uuid(1), 8));
    assert_ne!(owner, Owner::new(uuid(2), 7));
    // What others leave there.
    assert_eq!(Owner(0).volume_of(uuid(1)), None);
    assert!(owner.is_ashlar() && !Owner(0).is_ashlar() && !Owner(7 << 32 | 7).is_ashlar());
    assert_eq!(Owner::new(uuid(3), u32::MAX).volume_of(uuid(3)), Some(u32::MAX));
}

#[test]
fn shapes_the_driver_would_refuse_are_refused_in_words() {
    let good = Shape::for_processors(2);
    assert_eq!((good.queues, good.check().is_ok()), (2, true));
    assert_eq!(Shape::for_processors(0).queues, 1);
    assert_eq!(Shape::for_processors(500).queues, 4);
    for (bad, word) in [
        (Shape { queues: 0, ..good }, "queues"),
        (Shape { queues: 65, ..good }, "queues"),
        (Shape { depth: 0, ..good }, "requests"),
        (Shape { depth: 1025, ..good }, "requests"),
        (Shape { logical_block: 1024, ..good }, "logical block"),
    ] {
        let error = bad.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn the_block_layer_is_told_what_the_engine_does_best() {
    let geometry = super::super::Geometry { size: 10 << 30, block_size: 4096, optimal_io: 128 << 10, read_only: false };
    let told = control::parameters(&geometry, 512, false);
    assert_eq!((told.basic.logical_bs_shift, told.basic.physical_bs_shift, told.basic.io_min_shift), (9, 12, 12));
    assert_eq!((told.basic.io_opt_shift, told.basic.dev_sectors), (17, (10 << 30) / 512));
    assert_eq!(told.basic.attrs & (sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA | sys::UBLK_ATTR_READ_ONLY), 0);
    // Where answered writes outlive this process hosts send flushes, and say of single writes that they are to be durable.
    let cached = control::parameters(&geometry, 512, true).basic.attrs;
    assert_eq!(cached, sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA);
    assert_eq!((told.discard.discard_granularity, told.discard.max_discard_segments), (4096, 1));
    assert!(told.discard.max_discard_sectors.is_multiple_of(8) && told.discard.max_write_zeroes_sectors > 1 << 22);
    let told = control::parameters(&super::super::Geometry { read_only: true, ..geometry }, 4096, false);
    assert_eq!((told.basic.logical_bs_shift, told.basic.attrs), (12, sys::UBLK_ATTR_READ_ONLY));
}

#[test]
fn memory_holds_the_longest_request() {
    assert_eq!(memory(0).available_permits() as u64 * BLOCK_BYTES, u64::from(MAX_TRANSFER));
    assert_eq!(memory(16 << 20).available_permits(), 4096);
    assert!(memory(u64::MAX).available_permits() <= Semaphore::MAX_PERMITS);
}

#[test]
fn errors_of_the_driver_keep_their_kind() {
    let kind = |code: i32| from_ublk(&UblkError::OtherError(-code), "x").kind();
    assert_eq!(kind(libc::EBUSY), ErrorKind::Busy);
    assert_eq!(kind(libc::EPERM), ErrorKind::Unavailable);
    assert_eq!(kind(libc::ENODEV), ErrorKind::NotFound);
    assert_eq!(kind(libc::EOPNOTSUPP), ErrorKind::Unsupported);
    assert_eq!(from_ublk(&UblkError::QueueIsDown, "x").kind(), ErrorKind::Io);
}

#[test]
fn who_has_a_file_open_is_found() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(opened_by(file.as_file()), None, "this process does not count");
    let directory = tempfile::tempdir().unwrap();
    let other_name = directory.path().join("other");
    std::fs::hard_link(file.path(), &other_name).unwrap();
    let mut other = std::process::Command::new("sleep")
        .arg("600")
        .stdin(std::fs::File::open(&other_name).unwrap())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    let found = loop {
        // Until it has become another program it may carry this one's name.
        match opened_by(file.as_file()) {
            Some(found) if found.contains("sleep") || Instant::now() > until => break Some(found),
            None if Instant::now() > until => break None,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(found, Some(format!("{} (sleep)", other.id())));
}
