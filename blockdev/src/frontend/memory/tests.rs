use futures::FutureExt as _;

use super::*;

/// The result of a device's future, which must be ready at once.
fn now<T>(future: BoxFuture<T>) -> T {
    future.now_or_never().expect("a memory device never waits")
}

fn extents(device: &MemoryDevice, offset: u64, len: u64, max: usize) -> Vec<(u64, u64, bool)> {
    now(device.block_status(offset, len, max)).unwrap().into_iter().map(|e| (e.offset, e.len, e.mapped)).collect()
}

#[test]
fn unwritten_ranges_read_as_zeroes_and_written_bytes_come_back() {
    let device = MemoryDevice::new(10_000);
    assert_eq!(now(device.read(0, 10_000)).unwrap(), vec![0; 10_000]);
    now(device.write(4000, Bytes::from_static(b"within one page, and then some more"), false)).unwrap();
    assert_eq!(now(device.read(4000, 35)).unwrap(), &b"within one page, and then some more"[..]);
    let whole = now(device.read(0, 10_000)).unwrap();
    assert!(whole[..4000].iter().chain(&whole[4035..]).all(|b| *b == 0));
    assert_eq!(device.mapped_bytes(), BLOCK_BYTES, "bytes 4000 to 4035 lie in the first page");
    now(device.write(4090, Bytes::from_static(b"across a page border"), false)).unwrap();
    assert_eq!(now(device.read(4090, 20)).unwrap(), &b"across a page border"[..]);
    assert_eq!(device.mapped_bytes(), 2 * BLOCK_BYTES);
}

#[test]
fn ranges_beyond_the_end_are_refused() {
    let device = MemoryDevice::new(8192);
    let kind = |r: Result<()>| r.unwrap_err().kind();
    assert_eq!(kind(now(device.write(8192, Bytes::from_static(b"x"), false))), ErrorKind::InvalidArgument);
    assert_eq!(kind(now(device.write(u64::MAX, Bytes::from_static(b"xy"), false))), ErrorKind::InvalidArgument);
    assert_eq!(kind(now(device.discard(0, 8193))), ErrorKind::InvalidArgument);
    assert_eq!(kind(now(device.write_zeroes(1, u64::MAX, false))), ErrorKind::InvalidArgument);
    assert_eq!(kind(now(device.read(8000, 193)).map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind(now(device.block_status(0, 8193, 9)).map(drop)), ErrorKind::InvalidArgument);
    now(device.write(8192, Bytes::new(), false)).unwrap();
}

#[test]
fn discard_gives_whole_pages_back_and_leaves_partial_ones_alone() {
    let device = MemoryDevice::new(5 * BLOCK_BYTES + 100);
    now(device.write(0, vec![7; 5 * BLOCK_SIZE + 100].into(), false)).unwrap();
    now(device.discard(100, 2 * BLOCK_BYTES)).unwrap();
    assert_eq!(
        extents(&device, 0, 5 * BLOCK_BYTES + 100, 9),
        [(0, 4096, true), (4096, 4096, false), (8192, 12_388, true)]
    );
    assert_eq!(now(device.read(100, 10)).unwrap(), vec![7; 10]);
    assert_eq!(now(device.read(4096, 4096)).unwrap(), vec![0; 4096]);
    now(device.discard(5 * BLOCK_BYTES, 100)).unwrap();
    assert_eq!(extents(&device, 5 * BLOCK_BYTES, 100, 9), [(20_480, 100, false)], "a last page cut short is whole");
    now(device.discard(5, 10)).unwrap();
    assert_eq!(now(device.read(0, 20)).unwrap(), vec![7; 20]);
}

#[test]
fn write_zeroes_zeroes_partial_pages_too() {
    let device = MemoryDevice::new(4 * BLOCK_BYTES);
    now(device.write(0, vec![9; 4 * BLOCK_SIZE].into(), false)).unwrap();
    now(device.write_zeroes(4000, 4192 + 96, false)).unwrap();
    let whole = now(device.read(0, 4 * BLOCK_SIZE)).unwrap();
    assert!(whole[..4000].iter().chain(&whole[8288..]).all(|b| *b == 9));
    assert!(whole[4000..8288].iter().all(|b| *b == 0));
    assert_eq!(extents(&device, 0, 4 * BLOCK_BYTES, 9), [(0, 4096, true), (4096, 4096, false), (8192, 8192, true)]);
}

#[test]
fn block_status_is_exact_over_large_holes_and_keeps_to_its_limits() {
    let device = MemoryDevice::new(1 << 50);
    let far = 3 << 40;
    now(device.write(far, vec![1; 8192].into(), false)).unwrap();
    now(device.write(far + 16_384, vec![1; 1].into(), false)).unwrap();
    assert_eq!(
        extents(&device, 0, 1 << 50, 100),
        [
            (0, far, false),
            (far, 8192, true),
            (far + 8192, 8192, false),
            (far + 16_384, 4096, true),
            (far + 20_480, (1 << 50) - far - 20_480, false)
        ]
    );
    assert_eq!(extents(&device, far + 10, 100, 100), [(far + 10, 100, true)]);
    assert_eq!(extents(&device, far - 10, 100, 1), [(far - 10, 10, false)]);
    assert_eq!(extents(&device, far + 8000, 1000, 2), [(far + 8000, 192, true), (far + 8192, 808, false)]);
    assert_eq!(extents(&device, 5, 0, 9), []);
    now(device.write_zeroes(0, 1 << 50, false)).unwrap();
    assert_eq!(extents(&device, 0, 1 << 50, 9), [(0, 1 << 50, false)]);
    assert_eq!(device.mapped_bytes(), 0);
}

#[test]
fn compare_and_write_writes_only_on_a_match() {
    let device = MemoryDevice::new(1 << 20);
    let word = |b: &'static [u8]| Bytes::from_static(b);
    assert!(now(device.compare_and_write(4094, word(&[0; 4]), word(b"abcd"))).unwrap());
    assert!(!now(device.compare_and_write(4094, word(b"abce"), word(b"wxyz"))).unwrap());
    assert_eq!(now(device.read(4094, 4)).unwrap(), &b"abcd"[..]);
    assert!(now(device.compare_and_write(4094, word(b"abc"), word(b"wxyz"))).is_err());
}

#[test]
fn resizing_cuts_off_and_tells_watchers() {
    let device = MemoryDevice::new(BLOCK_BYTES * 2);
    let mut sizes = device.watch_size();
    assert_eq!(*sizes.borrow_and_update(), 8192);
    now(device.write(0, vec![5; 8192].into(), false)).unwrap();
    device.resize(5000);
    assert!(sizes.has_changed().unwrap());
    assert_eq!(*sizes.borrow_and_update(), 5000);
    assert_eq!(device.geometry().size, 5000);
    assert!(now(device.read(0, 5001)).is_err());
    device.resize(8192);
    let whole = now(device.read(0, 8192)).unwrap();
    assert!(whole[..5000].iter().all(|b| *b == 5) && whole[5000..].iter().all(|b| *b == 0));
}

#[test]
fn a_read_only_device_refuses_every_change() {
    let device = MemoryDevice::new(8192);
    device.set_read_only(true);
    assert!(device.geometry().read_only);
    let data = || Bytes::from_static(&[0; 16]);
    for result in [
        now(device.write(0, data(), false)),
        now(device.discard(0, 4096)),
        now(device.write_zeroes(0, 4096, true)),
        now(device.compare_and_write(0, data(), data())).map(drop),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    assert_eq!(now(device.read(0, 16)).unwrap(), data());
}

#[test]
fn random_requests_agree_with_a_flat_buffer() {
    let size = 3 * REGION_BYTES as usize + 1234;
    let device = MemoryDevice::new(size as u64);
    let mut model = vec![0u8; size];
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for round in 0..2000 {
        let offset = random(size);
        let len = random(40_000).min(size - offset);
        match random(4) {
            0 => {
                now(device.write(offset as u64, vec![round as u8 | 1; len].into(), false)).unwrap();
                model[offset..offset + len].fill(round as u8 | 1);
            }
            1 => {
                now(device.write_zeroes(offset as u64, len as u64, false)).unwrap();
                model[offset..offset + len].fill(0);
            }
            2 => {
                now(device.discard(offset as u64, len as u64)).unwrap();
                let whole = whole_pages(offset as u64..(offset + len) as u64, size as u64);
                model[whole.start as usize..whole.end as usize].fill(0);
            }
            _ => assert_eq!(now(device.read(offset as u64, len)).unwrap(), model[offset..offset + len]),
        }
    }
    assert_eq!(now(device.read(0, size)).unwrap(), model);
    for (offset, len, mapped) in extents(&device, 0, size as u64, usize::MAX) {
        let bytes = &model[offset as usize..(offset + len) as usize];
        assert!(mapped || bytes.iter().all(|b| *b == 0));
    }
}
