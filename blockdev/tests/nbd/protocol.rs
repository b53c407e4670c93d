//! The handshake, and the life of connections.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::Limits;
use blockdev::frontend::nbd::wire::{command, info, option, option_reply, transmission_flag as flag};

use crate::client::{Client, FLAGS, encode_option, info_data, meta_data, string};
use crate::lab::{Lab, Probe, Setup};

const MIB: u64 = 1 << 20;

fn two_exports() -> Lab {
    Lab::new(&[("a", Arc::new(MemoryDevice::new(MIB))), ("b", Arc::new(MemoryDevice::new(2 * MIB)))])
}

#[test]
fn export_name_with_and_without_padding() {
    let lab = two_exports();
    for (flags, padding) in [(3, 0), (1, 124), (0, 124)] {
        let mut client = Client::connect(&lab.socket(), flags);
        client.stream.write_all(&encode_option(option::EXPORT_NAME, b"b")).unwrap();
        let reply = client.take(10 + padding);
        assert_eq!(reply[..8], (2 * MIB).to_be_bytes());
        let flags = u16::from_be_bytes([reply[8], reply[9]]);
        assert_eq!(flags & flag::SEND_DF, 0, "no structured replies, no DF");
        assert!(reply[10..].iter().all(|b| *b == 0));
        assert_eq!(client.write(5, b"hello").errno, 0);
        assert_eq!(client.read(4, 7).data, b"\0hello\0");
    }
    let mut client = Client::connect(&lab.socket(), FLAGS);
    client.stream.write_all(&encode_option(option::EXPORT_NAME, b"missing")).unwrap();
    assert!(client.is_closed());
}

#[test]
fn options_are_answered_and_errors_do_not_end_the_handshake() {
    let lab = two_exports();
    let mut client = Client::connect(&lab.socket(), FLAGS);
    let list = client.option(option::LIST, &[]);
    let server = |name: &str| (option_reply::SERVER, string(name));
    assert_eq!(list, [server("a"), server("b"), (option_reply::ACK, vec![])]);
    assert_eq!(client.option_kind(option::LIST, b"x"), option_reply::ERR_INVALID);
    assert_eq!(client.option_kind(option::EXTENDED_HEADERS, &[]), option_reply::ERR_UNSUP);
    assert_eq!(client.option_kind(4711, b"whatever"), option_reply::ERR_UNSUP);
    assert_eq!(client.option_kind(option::STARTTLS, &[]), option_reply::ERR_POLICY);
    assert_eq!(client.option_kind(option::STRUCTURED_REPLY, b"x"), option_reply::ERR_INVALID);
    assert_eq!(client.option_kind(option::INFO, &info_data("c", &[])), option_reply::ERR_UNKNOWN);
    assert_eq!(
        client.option_kind(option::INFO, &info_data("", &[])),
        option_reply::ERR_UNKNOWN,
        "two exports, no default"
    );
    assert_eq!(client.option_kind(option::INFO, b"\0\0\0\x09a\0\0"), option_reply::ERR_INVALID);
    assert_eq!(client.option_kind(option::GO, &[]), option_reply::ERR_INVALID);
    let replies = client.option(option::INFO, &info_data("a", &[info::NAME, info::BLOCK_SIZE, 77]));
    assert_eq!(replies.len(), 4);
    let export = [&[0, 0][..], &MIB.to_be_bytes()].concat();
    assert_eq!(replies[0].1[..10], export);
    assert_eq!(replies[1], (option_reply::INFO, b"\0\x01a".to_vec()));
    assert_eq!(replies[2], (option_reply::INFO, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec()));
    assert_eq!(client.option_kind(option::ABORT, b"ignored"), option_reply::ACK);
    assert!(client.is_closed());
}

#[test]
fn the_only_export_is_the_default() {
    let lab = Lab::new(&[("only", Arc::new(MemoryDevice::new(MIB)))]);
    let mut client = Client::connect(&lab.socket(), FLAGS);
    let replies = client.option(option::GO, &info_data("", &[info::NAME]));
    assert_eq!(replies[1], (option_reply::INFO, b"\0\x01only".to_vec()));
    assert_eq!(client.read(0, 8).data, [0; 8]);
}

#[test]
fn metadata_contexts_are_listed_and_selected() {
    let lab = two_exports();
    let mut client = Client::connect(&lab.socket(), FLAGS);
    let all = meta_data("a", &[]);
    assert_eq!(client.option_kind(option::LIST_META_CONTEXT, &all), option_reply::ERR_INVALID, "not structured yet");
    assert_eq!(client.option_kind(option::STRUCTURED_REPLY, &[]), option_reply::ACK);
    let found = |replies: Vec<(u32, Vec<u8>)>| replies.len() == 2 && replies[0].1 == b"\0\0\0\0base:allocation";
    assert!(found(client.option(option::LIST_META_CONTEXT, &all)));
    assert!(found(client.option(option::LIST_META_CONTEXT, &meta_data("a", &["base:"]))));
    assert!(found(client.option(option::LIST_META_CONTEXT, &meta_data("a", &["x:y", "base:allocation"]))));
    assert_eq!(client.option_kind(option::LIST_META_CONTEXT, &meta_data("a", &["x:y"])), option_reply::ACK);
    assert_eq!(client.option_kind(option::SET_META_CONTEXT, &meta_data("a", &["base:"])), option_reply::ACK);
    assert_eq!(client.option_kind(option::SET_META_CONTEXT, &all), option_reply::ACK, "no query selects nothing");
    assert_eq!(client.option_kind(option::SET_META_CONTEXT, &meta_data("c", &[])), option_reply::ERR_UNKNOWN);
    assert!(found(client.option(option::SET_META_CONTEXT, &meta_data("a", &["base:allocation"]))));
    assert_eq!(client.option_kind(option::SET_META_CONTEXT, b"garbage"), option_reply::ERR_INVALID);
    let replies = client.option(option::GO, &info_data("a", &[]));
    assert_eq!(replies.last().unwrap().0, option_reply::ACK);
    // The failed selection replaced the earlier one.
    client.send(command::BLOCK_STATUS, 0, 0, 4096, &[]);
    let header = client.take(20);
    assert_eq!(header[..4], [0x66, 0x8e, 0x33, 0xef]);
    assert_eq!(header[6..8], [0x80, 0x01], "an error chunk");
}

#[test]
fn contexts_selected_for_another_export_do_not_count() {
    let lab = two_exports();
    let mut client = Client::open(&lab.socket(), "a", true);
    assert_eq!(client.request(command::BLOCK_STATUS, 0, 0, 4096, &[]).errno, 0);
    let mut client = Client::connect(&lab.socket(), FLAGS);
    client.option(option::STRUCTURED_REPLY, &[]);
    client.option(option::SET_META_CONTEXT, &meta_data("a", &["base:allocation"]));
    client.option(option::GO, &info_data("b", &[]));
    client.send(command::BLOCK_STATUS, 0, 0, 4096, &[]);
    assert_eq!(client.take(20)[6..8], [0x80, 0x01], "an error chunk");
}

#[test]
fn disconnect_ends_one_export_only_and_answers_what_is_in_flight() {
    let (a, b) = (Probe::new(MIB), Probe::new(MIB));
    let lab = Lab::new(&[("a", a.clone()), ("b", b.clone())]);
    let mut on_a = Client::open(&lab.socket(), "a", true);
    let mut on_b = Client::open(&lab.socket(), "b", true);
    a.close_gate();
    on_a.send(command::WRITE, 0, 0, 4, b"last");
    Lab::until("the write has started", || a.writes_started.load(Ordering::SeqCst) == 1);
    lab.devices.remove("a");
    let server = Arc::clone(&lab.server);
    let disconnecting = lab.runtime.spawn(async move { server.disconnect("a").await });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!disconnecting.is_finished(), "a request is in flight");
    a.open_gate();
    lab.runtime.block_on(disconnecting).unwrap();
    assert_eq!(on_a.receive(|_| None).errno, 0);
    assert!(on_a.is_closed());
    assert_eq!(Arc::strong_count(&a), 1, "the server lets go of the device");
    assert_eq!(on_b.write(0, b"goes on").errno, 0);
    assert_eq!(lab.server.connections(), 1);
    let mut late = Client::connect(&lab.socket(), FLAGS);
    assert_eq!(late.option_kind(option::GO, &info_data("a", &[])), option_reply::ERR_UNKNOWN);
}

#[test]
fn shutdown_answers_what_is_in_flight() {
    let probe = Probe::new(MIB);
    let lab = Lab::new(&[("a", probe.clone())]);
    let mut client = Client::open(&lab.socket(), "a", false);
    let mut idle = Client::connect(&lab.socket(), FLAGS);
    probe.close_gate();
    client.send(command::READ, 0, 0, 16, &[]);
    Lab::until("the read has started", || probe.reads_started.load(Ordering::SeqCst) == 1);
    let server = Arc::clone(&lab.server);
    let stopping = lab.runtime.spawn(async move { server.shutdown().await });
    std::thread::sleep(Duration::from_millis(50));
    probe.open_gate();
    lab.runtime.block_on(stopping).unwrap();
    assert_eq!(client.receive(|_| Some((0, 16))).data, [0; 16]);
    assert!(client.is_closed());
    assert!(idle.is_closed(), "a client in the handshake is dropped");
    assert!(!lab.socket().exists());
}

#[test]
fn a_client_that_never_takes_its_last_reply_does_not_hold_up_shutdown() {
    let limits = Limits { grace: Duration::from_millis(200), ..Limits::default() };
    let probe = Probe::new(64 * MIB);
    now_written(&probe, 64 * MIB);
    let lab = Lab::with(&[("a", probe)], Setup { limits, ..Setup::default() });
    let mut client = Client::open(&lab.socket(), "a", false);
    client.send(command::READ, 0, 0, 16 << 20, &[]);
    client.take(16);
    lab.runtime.block_on(lab.server.shutdown());
    assert_eq!(lab.server.connections(), 0);
}

fn now_written(probe: &Probe, len: u64) {
    use blockdev::frontend::BlockDevice as _;
    crate::lab::now(probe.memory.write(0, vec![1; len as usize].into(), false)).unwrap();
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let lab = Lab::with(&[("a", Arc::new(MemoryDevice::new(MIB)))], Setup { limits, ..Setup::default() });
    let first = Client::open(&lab.socket(), "a", false);
    let mut second = Client::open(&lab.socket(), "a", false);
    let mut third = std::os::unix::net::UnixStream::connect(lab.socket()).unwrap();
    assert!(matches!(std::io::Read::read(&mut third, &mut [0; 18]), Ok(0) | Err(_)));
    drop(first);
    Lab::until("the first is gone", || lab.server.connections() == 1);
    assert_eq!(Client::open(&lab.socket(), "a", false).write(0, b"x").errno, 0);
    assert_eq!(second.write(0, b"x").errno, 0);
}
