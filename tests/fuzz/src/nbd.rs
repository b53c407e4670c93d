//! A whole NBD server over memory. Input: all that a client sends after the greeting. Begins with valid conversations.
#![no_main]

#[path = "../../../blockdev/tests/nbd/client.rs"]
#[allow(dead_code, reason = "for tests")]
mod client;
#[path = "../../../blockdev/tests/nbd/conversation.rs"]
mod conversation;
#[path = "../../../blockdev/tests/nbd/lab.rs"]
#[allow(dead_code, reason = "for tests")]
mod lab;
mod seeds;
#[path = "../../src/skip.rs"]
#[allow(dead_code, reason = "for tests")]
mod skip;

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::Limits;
use libfuzzer_sys::fuzz_target;

use lab::{Lab, Setup};

/// After so many conversations the server must still serve a good one.
const CHECK_EVERY: u64 = 256;

struct Served {
    lab: Lab,
    conversations: u64,
}

impl Served {
    fn new() -> Self {
        let limits = Limits { stall: Duration::from_millis(500), ..Limits::default() };
        let device = Arc::new(MemoryDevice::new(conversation::MIB));
        Self { lab: Lab::with(&[("a", device)], Setup { limits, ..Setup::default() }), conversations: 0 }
    }

    fn hear(&mut self, input: &[u8]) {
        let mut stream = UnixStream::connect(self.lab.socket()).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        // The server may hang up while we talk.
        let _ = stream.write_all(input);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        if let Err(e) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "the server neither answers nor ends");
        }
        self.conversations += 1;
        if self.conversations % CHECK_EVERY == 0 {
            lab::assert_no_panic();
            Lab::until("all of them are gone", || self.lab.server.connections() == 0);
            let mut client = client::Client::open(&self.lab.socket(), "a", true);
            assert_eq!(client.write(77, b"alive").errno, 0);
        }
    }
}

thread_local! {
    static SERVED: RefCell<Served> = RefCell::new(Served::new());
}

fn write_seeds(dir: &Path) -> std::io::Result<()> {
    let mut random = lab::Random(0x00C0_FFEE_0BAD_5EED);
    (0..200).try_for_each(|n| std::fs::write(dir.join(n.to_string()), conversation::conversation(&mut random)))
}

fuzz_target!(init: seeds::write(write_seeds), |input: &[u8]| SERVED.with_borrow_mut(|served| served.hear(input)));
