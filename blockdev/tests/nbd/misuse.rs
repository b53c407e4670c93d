//! Clients that break off, stall, or lie.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blockdev::frontend::BlockDevice as _;
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::Limits;
use blockdev::frontend::nbd::wire::{OptionHeader, Request, command, option};

use crate::client::{Client, FLAGS};
use crate::lab::{Lab, Probe, Setup, now};

const MIB: u64 = 1 << 20;

fn hasty(limits: Limits) -> (Arc<Probe>, Lab) {
    let probe = Probe::new(64 * MIB);
    let lab = Lab::with(&[("a", probe.clone())], Setup { limits, ..Setup::default() });
    (probe, lab)
}

#[test]
fn unknown_client_flags_and_wrong_magic_end_the_connection() {
    let lab = Lab::new(&[("a", Arc::new(MemoryDevice::new(MIB)))]);
    assert!(Client::connect(&lab.socket(), 4).is_closed());
    let mut client = Client::connect(&lab.socket(), FLAGS);
    client.stream.write_all(b"GET / HTTP/1.1\r\nHost: nbd\r\n\r\n").unwrap();
    assert!(client.is_closed());
    let mut client = Client::open(&lab.socket(), "a", true);
    client.stream.write_all(&[0xAA; 100]).unwrap();
    assert!(client.is_closed());
}

#[test]
fn a_huge_option_is_refused_without_taking_memory() {
    let lab = Lab::new(&[("a", Arc::new(MemoryDevice::new(MIB)))]);
    let mut client = Client::connect(&lab.socket(), FLAGS);
    let header = OptionHeader { option: option::GO, len: u32::MAX };
    client.stream.write_all(&header.encode()).unwrap();
    let reply = client.take(20);
    assert_eq!(reply[12..16], [0x80, 0, 0, 9], "too big");
    assert!(client.is_closed());
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let (_, lab) = hasty(limits);
    let mut silent = UnixStream::connect(lab.socket()).unwrap();
    let mut slow = Client::connect(&lab.socket(), FLAGS);
    for byte in *b"IHAVEOPT" {
        if slow.stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(slow.is_closed());
    silent.read_to_end(&mut Vec::new()).unwrap();
    Lab::until("both are gone", || lab.server.connections() == 0);
}

#[test]
fn a_write_cut_off_in_its_payload_is_not_written() {
    let (probe, lab) = hasty(Limits::default());
    for len in [4096, 1 << 20] {
        let mut client = Client::open(&lab.socket(), "a", false);
        let header = Request { flags: 0, command: command::WRITE, cookie: 1, offset: 0, len };
        client.stream.write_all(&header.encode()).unwrap();
        client.stream.write_all(&vec![1; len as usize / 2]).unwrap();
        drop(client);
        Lab::until("it is gone", || lab.server.connections() == 0);
    }
    assert_eq!(probe.writes_started.load(Ordering::SeqCst), 0);
    assert_eq!(probe.memory.mapped_bytes(), 0);
}

#[test]
fn requests_in_flight_are_finished_though_the_client_is_gone() {
    let (probe, lab) = hasty(Limits::default());
    let mut client = Client::open(&lab.socket(), "a", false);
    probe.close_gate();
    client.send(command::WRITE, 0, 0, 4, b"done");
    Lab::until("it has started", || probe.writes_started.load(Ordering::SeqCst) == 1);
    drop(client);
    probe.open_gate();
    Lab::until("it is gone", || lab.server.connections() == 0);
    assert_eq!(now(probe.memory.read(0, 4)).unwrap(), &b"done"[..]);
}

#[test]
fn peers_that_stall_amid_a_message_are_dropped_and_idle_ones_are_not() {
    let limits = Limits { stall: Duration::from_millis(200), ..Limits::default() };
    let (probe, lab) = hasty(limits);
    now(probe.memory.write(0, vec![1; 32 << 20].into(), false)).unwrap();
    let mut idle = Client::open(&lab.socket(), "a", true);
    let mut in_header = Client::open(&lab.socket(), "a", true);
    in_header.stream.write_all(&[0x25, 0x60]).unwrap();
    let mut in_payload = Client::open(&lab.socket(), "a", true);
    let header = Request { flags: 0, command: command::WRITE, cookie: 1, offset: 0, len: 32 << 20 };
    in_payload.stream.write_all(&header.encode()).unwrap();
    let mut taking_nothing = Client::open(&lab.socket(), "a", true);
    taking_nothing.send(command::READ, 0, 0, 32 << 20, &[]);
    Lab::until("only the idle one is left", || lab.server.connections() == 1);
    assert!(in_header.is_closed() && in_payload.is_closed() && taking_nothing.is_closed());
    assert_eq!(idle.write(0, b"still here").errno, 0);
}

#[test]
fn a_slow_device_is_not_a_stalled_peer() {
    let limits = Limits { stall: Duration::from_millis(100), requests: 2, ..Limits::default() };
    let (probe, lab) = hasty(limits);
    let mut client = Client::open(&lab.socket(), "a", true);
    probe.close_gate();
    // Two at work, and more behind them that are not even begun.
    for offset in 0..6 {
        client.send(command::WRITE, 0, offset, 4, b"slow");
    }
    Lab::until("two have started", || probe.writes_started.load(Ordering::SeqCst) == 2);
    std::thread::sleep(Duration::from_millis(400));
    probe.open_gate();
    for _ in 0..6 {
        assert_eq!(client.receive(|_| None).errno, 0);
    }
}

#[test]
fn a_write_of_gigabytes_ends_the_connection() {
    let (probe, lab) = hasty(Limits::default());
    let mut client = Client::open(&lab.socket(), "a", true);
    let header = Request { flags: 0, command: command::WRITE, cookie: 1, offset: 0, len: u32::MAX };
    client.stream.write_all(&header.encode()).unwrap();
    assert!(client.is_closed());
    assert_eq!(probe.writes_started.load(Ordering::SeqCst), 0);
}

#[test]
fn a_disconnect_request_ends_after_the_requests_before_it() {
    let (probe, lab) = hasty(Limits::default());
    let mut client = Client::open(&lab.socket(), "a", true);
    probe.close_gate();
    client.send(command::WRITE, 0, 0, 4, b"last");
    client.send(command::DISC, 0, 0, 0, &[]);
    Lab::until("it has started", || probe.writes_started.load(Ordering::SeqCst) == 1);
    probe.open_gate();
    assert_eq!(client.receive(|_| None).errno, 0);
    assert!(client.is_closed());
}
