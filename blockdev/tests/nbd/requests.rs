//! Requests and replies, simple and structured.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::error::ErrorKind;
use blockdev::frontend::BlockDevice as _;
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::Limits;
use blockdev::frontend::nbd::wire::{chunk, command, command_flag as flag, state};

use crate::client::{Answer, Client};
use crate::lab::{Lab, Probe, Random, Setup, now};

const MIB: u64 = 1 << 20;

/// Errors of the protocol.
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

#[test]
fn every_request_does_its_work_with_either_kind_of_reply() {
    for structured in [false, true] {
        let probe = Probe::new(MIB + 100);
        let lab = Lab::new(&[("a", probe.clone())]);
        let mut client = Client::open(&lab.socket(), "a", structured);
        assert_eq!(client.write(MIB, &[7; 100]).errno, 0);
        assert_eq!(client.read(MIB - 2, 102).data[..4], [0, 0, 7, 7]);
        assert_eq!(client.request(command::WRITE, flag::FUA, 10, 3, b"fua").errno, 0);
        assert_eq!(probe.fua_writes.load(Ordering::SeqCst), 1);
        assert_eq!(client.request(command::FLUSH, 0, 0, 0, &[]).errno, 0);
        assert_eq!(client.request(command::FLUSH, flag::FUA, 0, 0, &[]).errno, 0);
        assert_eq!(probe.flushes.load(Ordering::SeqCst), 2);
        assert_eq!(client.write(0, &[9; 16384]).errno, 0);
        assert_eq!(client.request(command::TRIM, 0, 0, 4096, &[]).errno, 0);
        assert_eq!(probe.flushes.load(Ordering::SeqCst), 2);
        assert_eq!(client.request(command::TRIM, flag::FUA, 4096, 4096, &[]).errno, 0);
        assert_eq!(probe.flushes.load(Ordering::SeqCst), 3, "a trim with FUA is durable");
        assert_eq!(client.request(command::WRITE_ZEROES, flag::NO_HOLE, 8192, 100, &[]).errno, 0);
        assert_eq!(client.request(command::WRITE_ZEROES, flag::FAST_ZERO | flag::FUA, 8292, 100, &[]).errno, 0);
        assert_eq!(probe.fua_writes.load(Ordering::SeqCst), 2);
        let expected = [vec![0; 8392], vec![9; 16384 - 8392]].concat();
        assert_eq!(client.read(0, 16384).data, expected);
        for command in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(client.request(command, 0, 0, 0, &[]).errno, 0, "nothing of {command}");
        }
    }
}

#[test]
fn wrong_requests_get_the_documented_errors_and_the_connection_goes_on() {
    for structured in [false, true] {
        let lab = Lab::new(&[("a", Arc::new(MemoryDevice::new(64 * MIB)))]);
        let mut client = Client::open(&lab.socket(), "a", structured);
        let end = 64 * MIB;
        let mut errno = |command, flags, offset, len: u32| {
            let payload = vec![1; if command == command::WRITE { len as usize } else { 0 }];
            client.request(command, flags, offset, len, &payload).errno
        };
        assert_eq!(errno(command::READ, 0, end, 1), EINVAL);
        assert_eq!(errno(command::READ, 0, u64::MAX, 2), EINVAL);
        assert_eq!(errno(command::WRITE, 0, end - 1, 2), ENOSPC);
        assert_eq!(errno(command::WRITE, 0, end - 4096, 1 << 20), ENOSPC);
        assert_eq!(errno(command::WRITE_ZEROES, 0, end, 1), ENOSPC);
        assert_eq!(errno(command::WRITE_ZEROES, 0, 0, u32::MAX), ENOSPC);
        assert_eq!(errno(command::TRIM, 0, end, 1), EINVAL);
        assert_eq!(errno(command::READ, 0, 0, (32 << 20) + 1), EINVAL);
        assert_eq!(errno(command::WRITE, 0, 0, (32 << 20) + 1), EINVAL);
        assert_eq!(errno(command::READ, flag::REQ_ONE, 0, 1), EINVAL);
        assert_eq!(errno(command::WRITE, flag::NO_HOLE, 0, 1), EINVAL);
        assert_eq!(errno(command::WRITE_ZEROES, 1 << 5, 0, 1), EINVAL);
        assert_eq!(errno(command::FLUSH, 0, 1, 0), EINVAL);
        assert_eq!(errno(5, 0, 0, 1), EINVAL, "CACHE is not offered");
        assert_eq!(errno(99, 0, 0, 1), EINVAL);
        assert_eq!(errno(command::BLOCK_STATUS, 0, 0, 0), EINVAL);
        if !structured {
            assert_eq!(errno(command::BLOCK_STATUS, 0, 0, 4096), EINVAL);
        }
        assert_eq!(errno(command::WRITE, 0, 0, 32 << 20), 0, "the largest write");
        assert_eq!(client.read(0, 32 << 20).data, vec![1; 32 << 20]);
    }
}

#[test]
fn errors_of_the_device_reach_the_client() {
    let probe = Probe::new(MIB);
    let lab = Lab::new(&[("a", probe.clone())]);
    let (mut simple, mut structured) =
        (Client::open(&lab.socket(), "a", false), Client::open(&lab.socket(), "a", true));
    for (kind, errno) in [
        (ErrorKind::NoSpace, ENOSPC),
        (ErrorKind::ReadOnly, EPERM),
        (ErrorKind::InvalidArgument, EINVAL),
        (ErrorKind::Io, EIO),
        (ErrorKind::Corrupt, EIO),
        (ErrorKind::Unavailable, ESHUTDOWN),
        (ErrorKind::Fenced, ESHUTDOWN),
        (ErrorKind::Unsupported, ENOTSUP),
    ] {
        *probe.fail.lock() = Some(kind);
        for client in [&mut simple, &mut structured] {
            assert_eq!(client.read(0, 10).errno, errno);
            assert_eq!(client.write(0, b"x").errno, errno);
            assert_eq!(client.request(command::TRIM, flag::FUA, 0, 4096, &[]).errno, errno);
        }
        let answer = structured.request(command::BLOCK_STATUS, 0, 0, 4096, &[]);
        assert_eq!((answer.errno, answer.message.as_str()), (errno, "failed on demand"));
    }
    *probe.fail.lock() = None;
    assert_eq!(simple.write(0, b"x").errno, 0);
}

#[test]
fn a_read_only_device_refuses_writes_and_a_resized_one_shows_its_size() {
    let device = Arc::new(MemoryDevice::new(MIB));
    let lab = Lab::new(&[("a", device.clone())]);
    let mut client = Client::open(&lab.socket(), "a", true);
    device.set_read_only(true);
    assert_eq!(client.write(0, b"x").errno, EPERM);
    assert_eq!(client.request(command::TRIM, 0, 0, 4096, &[]).errno, EPERM);
    assert_eq!(client.request(command::WRITE_ZEROES, 0, 0, 4096, &[]).errno, EPERM);
    assert_eq!(client.request(command::FLUSH, 0, 0, 0, &[]).errno, 0);
    assert_eq!(client.read(0, 4).data, [0; 4]);
    device.set_read_only(false);
    device.resize(2 * MIB);
    assert_eq!(client.write(2 * MIB - 1, b"x").errno, 0);
    device.resize(MIB);
    assert_eq!(client.write(2 * MIB - 1, b"x").errno, ENOSPC);
}

#[test]
fn structured_reads_tell_holes_and_df_forbids_fragments() {
    let device = Arc::new(MemoryDevice::new(16 * MIB));
    let lab = Lab::new(&[("a", device.clone())]);
    now(device.write(MIB, vec![1; 4096].into(), false)).unwrap();
    now(device.write(2 * MIB, vec![2; 100].into(), false)).unwrap();
    let mut client = Client::open(&lab.socket(), "a", true);
    let (data, hole) = (u32::from(chunk::OFFSET_DATA), u32::from(chunk::OFFSET_HOLE));
    assert_eq!(client.read(0, 4096).parts, [(hole, 0, 4096)]);
    assert_eq!(client.read(1, 1).parts, [(hole, 1, 1)]);
    assert_eq!(client.read(MIB, 8192).parts, [(data, MIB, 8192)], "too short to be cut");
    let whole = client.read(100, 3 << 20);
    let cut = [
        (hole, 100, (1 << 20) - 100),
        (data, MIB, 4096),
        (hole, MIB + 4096, (1 << 20) - 4096),
        (data, 2 * MIB, 4096),
        (hole, 2 * MIB + 4096, (1 << 20) - 4096 + 100),
    ];
    assert_eq!(whole.parts, cut);
    let expected = now(device.read(100, 3 << 20)).unwrap();
    assert_eq!(whole.data, expected);
    let whole = client.request(command::READ, flag::DF, 100, 3 << 20, &[]);
    assert_eq!((whole.parts, whole.data), (vec![(data, 100, 3 << 20)], expected.to_vec()));
}

#[test]
fn block_status_is_the_devices_allocation() {
    let device = Arc::new(MemoryDevice::new(1 << 40));
    let lab = Lab::new(&[("a", device.clone())]);
    let mut random = Random(42);
    for _ in 0..200 {
        let at = random.below(4000) * 4096;
        now(device.write(at, vec![1; 4096].into(), false)).unwrap();
    }
    let mut client = Client::open(&lab.socket(), "a", true);
    let mut status = |flags, offset, len| client.request(command::BLOCK_STATUS, flags, offset, len, &[]).parts;
    let hole = u64::from(state::HOLE | state::ZERO);
    for (offset, len) in [(0, 16 << 20), (12_345, 7_777_777), (0, u32::MAX), ((1 << 40) - 4096, 4096)] {
        let extents = now(device.block_status(offset, len.into(), usize::MAX)).unwrap();
        let expected: Vec<_> = extents.iter().map(|e| (0, if e.mapped { 0 } else { hole }, e.len as u32)).collect();
        assert_eq!(status(0, offset, len), expected);
        assert_eq!(status(flag::REQ_ONE, offset, len), expected[..1]);
    }
}

#[test]
fn replies_come_in_the_order_of_completion() {
    let probe = Probe::new(MIB);
    let lab = Lab::new(&[("a", probe.clone())]);
    let mut client = Client::open(&lab.socket(), "a", false);
    probe.close_gate();
    let slow = client.send(command::WRITE, 0, 0, 4, b"slow");
    let quick = client.send(command::FLUSH, 0, 0, 0, &[]);
    // The flush waits at the gate too, but a refused request does not.
    let refused = client.send(command::READ, 0, 2 * MIB, 4, &[]);
    assert_eq!(client.receive(|_| None).cookie, refused);
    probe.open_gate();
    let mut cookies = [client.receive(|_| None).cookie, client.receive(|_| None).cookie];
    cookies.sort_unstable();
    assert_eq!(cookies, [slow, quick]);
}

#[test]
fn a_deep_pipeline_is_answered_completely() {
    for structured in [false, true] {
        let device = Arc::new(MemoryDevice::new(MIB));
        let lab = Lab::new(&[("a", device.clone())]);
        let mut client = Client::open(&lab.socket(), "a", structured);
        let mut random = Random(7);
        let mut model = vec![0; MIB as usize];
        let mut reads = std::collections::HashMap::new();
        // Writes and reads never in flight together: their order is not defined.
        for round in 0..6 {
            let mut open = 0;
            for _ in 0..100 {
                let offset = random.below(MIB - 40_000);
                let len = 1 + random.below(40_000) as u32;
                if round % 2 == 0 {
                    let data = random.bytes(len as usize);
                    model[offset as usize..][..len as usize].copy_from_slice(&data);
                    assert_eq!(client.write(offset, &data).errno, 0);
                } else {
                    reads.insert(client.send(command::READ, 0, offset, len, &[]), (offset, len));
                    open += 1;
                }
                if open == 4 {
                    take(&mut client, &mut reads, &model, open);
                    open = 0;
                }
            }
            take(&mut client, &mut reads, &model, open);
        }
    }
}

fn take(client: &mut Client, reads: &mut std::collections::HashMap<u64, (u64, u32)>, model: &[u8], count: usize) {
    for _ in 0..count {
        let Answer { cookie, errno, data, .. } = client.receive(|cookie| reads.get(&cookie).copied());
        let (offset, len) = reads.remove(&cookie).unwrap();
        assert_eq!(errno, 0);
        assert!(data == model[offset as usize..][..len as usize]);
    }
}

#[test]
fn a_flush_on_one_connection_covers_the_other() {
    let probe = Probe::new(MIB);
    let lab = Lab::new(&[("a", probe.clone())]);
    let (mut one, mut two) = (Client::open(&lab.socket(), "a", true), Client::open(&lab.socket(), "a", false));
    assert_eq!(one.write(0, b"from one").errno, 0);
    assert_eq!(two.read(0, 8).data, b"from one");
    assert_eq!(two.request(command::FLUSH, 0, 0, 0, &[]).errno, 0);
    assert_eq!(probe.flushes.load(Ordering::SeqCst), 1, "the shared device is flushed");
}

#[test]
fn requests_in_flight_are_bounded() {
    let probe = Probe::new(64 * MIB);
    let limits = Limits { requests: 5, own_bytes: 64 << 10, ..Limits::default() };
    let lab = Lab::with(&[("a", probe.clone())], Setup { limits, ..Setup::default() });
    let mut client = Client::open(&lab.socket(), "a", false);
    probe.close_gate();
    let cookies: Vec<_> = (0..20).map(|_| client.send(command::READ, 0, 0, 512, &[])).collect();
    Lab::until("five reads have started", || probe.reads_started.load(Ordering::SeqCst) == 5);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(probe.reads_started.load(Ordering::SeqCst), 5);
    probe.open_gate();
    for _ in cookies {
        assert_eq!(client.receive(|_| Some((0, 512))).data.len(), 512);
    }
    assert_eq!(probe.reads_started.load(Ordering::SeqCst), 20);
}

#[test]
fn bytes_in_flight_are_bounded_over_all_connections() {
    let probe = Probe::new(64 * MIB);
    let limits = Limits { own_bytes: 0, connection_bytes: 32 << 20, shared_bytes: 48 << 20, ..Limits::default() };
    let lab = Lab::with(&[("a", probe.clone())], Setup { limits, ..Setup::default() });
    let mut one = Client::open(&lab.socket(), "a", false);
    let mut two = Client::open(&lab.socket(), "a", false);
    probe.close_gate();
    for _ in 0..3 {
        one.send(command::READ, 0, 0, 16 << 20, &[]);
        two.send(command::READ, 0, 0, 16 << 20, &[]);
    }
    Lab::until("three reads have started", || probe.reads_started.load(Ordering::SeqCst) == 3);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(probe.reads_started.load(Ordering::SeqCst), 3, "48 MiB in all");
    probe.open_gate();
    for client in [&mut one, &mut two] {
        for _ in 0..3 {
            assert_eq!(client.receive(|_| Some((0, 16 << 20))).data.len(), 16 << 20);
        }
    }
}
