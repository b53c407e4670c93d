//! Thousands of damaged conversations: the server must outlive them, give everything back, and go on serving.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use blockdev::frontend::BlockDevice as _;
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::Limits;

use crate::client::Client;
use crate::conversation::{MIB, conversation};
use crate::lab::{Lab, Random, Setup, now};

/// Conversations for each second of `ASHLAR_FUZZ_SECS`, which is 3 unless it is set.
const A_SECOND: usize = 1333;

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(6) {
        // Most of the damage near the start, where the structure is.
        let span = if random.below(3) == 0 { bytes.len() } else { bytes.len().min(300) };
        let at = random.below(span as u64) as usize;
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xFF),
            3 => bytes.truncate(at + 1),
            4 => drop(bytes.remove(at)),
            _ => {
                let extra = random.below(40) as usize;
                let extra = random.bytes(extra);
                bytes.splice(at..at, extra);
            }
        }
        if bytes.is_empty() {
            return;
        }
    }
}

#[test]
fn the_server_outlives_damaged_conversations() {
    // Half-closed handshakes end at once, stalls soon.
    let limits = Limits { stall: Duration::from_millis(500), ..Limits::default() };
    let device = Arc::new(MemoryDevice::new(MIB));
    let lab = Lab::with(&[("a", device.clone())], Setup { limits, ..Setup::default() });
    let mut random = Random(0x00C0_FFEE_0BAD_5EED);
    let seconds: usize = std::env::var("ASHLAR_FUZZ_SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
    let (mut answered, conversations) = (0, seconds.max(1) * A_SECOND);
    for round in 0..conversations {
        let mut bytes = conversation(&mut random);
        damage(&mut bytes, &mut random);
        let mut stream = UnixStream::connect(lab.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The server may hang up while we talk.
        let _ = stream.write_all(&bytes);
        if round % 8 == 0 {
            continue;
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut replies = Vec::new();
        match stream.read_to_end(&mut replies) {
            Ok(_) => answered += 1,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "conversation {round}"),
        }
    }
    assert!(answered > conversations / 2, "only {answered} conversations came to an end");
    Lab::until("all of them are gone", || lab.server.connections() == 0);
    assert_eq!(Arc::strong_count(&device), 2, "the server lets go of the device");
    let mut client = Client::open(&lab.socket(), "a", true);
    assert_eq!(client.write(77, b"alive").errno, 0);
    assert_eq!(now(device.read(77, 5)).unwrap(), &b"alive"[..]);
}
