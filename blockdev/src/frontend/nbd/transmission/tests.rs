use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;
use crate::frontend::memory::MemoryDevice;
use crate::frontend::nbd::wire::{Reply, chunk};
use crate::frontend::{BlockDevice, Extent, Geometry};

const MIB: u64 = 1 << 20;

/// Answers some requests at once, and others after a while.
struct Moody(MemoryDevice);

impl Moody {
    fn mood<T: Send + 'static>(offset: u64, result: BoxFuture<Result<T>>) -> BoxFuture<Result<T>> {
        match offset % 3 {
            0 => result,
            1 => Box::pin(async move {
                tokio::task::yield_now().await;
                result.await
            }),
            _ => Box::pin(async move {
                tokio::time::sleep(Duration::from_micros(offset % 1000)).await;
                result.await
            }),
        }
    }
}

impl BlockDevice for Moody {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        Self::mood(offset, self.0.read(offset, len))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<()>> {
        Self::mood(offset, self.0.write(offset, data, fua))
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        Self::mood(1, self.0.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        Self::mood(offset, self.0.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<Result<()>> {
        Self::mood(offset, self.0.write_zeroes(offset, len, fua))
    }

    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>> {
        self.0.compare_and_write(offset, expected, new)
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>> {
        Self::mood(offset, self.0.block_status(offset, len, max))
    }

    fn watch_size(&self) -> watch::Receiver<u64> {
        self.0.watch_size()
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// A stream of requests, and what each must be answered with. Reads go to the first half, which is never written; writes
/// to places of their own in the second.
struct Script {
    bytes: Vec<u8>,
    /// By cookie: the data of a read, or nothing, and the error.
    answers: HashMap<u64, (Vec<u8>, u32)>,
    /// Device content afterwards.
    content: Vec<u8>,
}

fn script(random: &mut Random, content: &[u8], requests: u64) -> Script {
    let mut script = Script { bytes: Vec::new(), answers: HashMap::new(), content: content.to_vec() };
    let half = content.len() as u64 / 2;
    let slot = half / requests;
    for cookie in 1..=requests {
        // Short ones mostly, some longer than the input buffer takes.
        let len = if random.below(5) == 0 { random.below(slot) } else { random.below(5000.min(slot)) } as u32;
        let mut push = |command: u16, offset: u64, len: u32, payload: &[u8]| {
            script.bytes.extend(Request { flags: 0, command, cookie, offset, len }.encode());
            script.bytes.extend(payload);
        };
        match random.below(8) {
            0 => {
                push(command::FLUSH, 0, 0, &[]);
                script.answers.insert(cookie, (Vec::new(), 0));
            }
            1 => {
                push(command::WRITE, 2 * half - 1, len + 2, &vec![1; len as usize + 2]);
                script.answers.insert(cookie, (Vec::new(), 28));
            }
            2..5 => {
                let offset = half + (cookie - 1) * slot;
                let data = vec![cookie as u8; len as usize];
                push(command::WRITE, offset, len, &data);
                script.content[offset as usize..][..len as usize].copy_from_slice(&data);
                script.answers.insert(cookie, (Vec::new(), 0));
            }
            _ => {
                let offset = random.below(half - u64::from(len));
                push(command::READ, offset, len, &[]);
                script.answers.insert(cookie, (content[offset as usize..][..len as usize].to_vec(), 0));
            }
        }
    }
    script.bytes.extend(Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, len: 0 }.encode());
    script
}

/// Checks everything the server sent against the script.
fn check(script: &mut Script, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (reply, used) = Reply::decode(bytes).unwrap().unwrap();
        bytes = &bytes[used..];
        let (cookie, errno, data) = match reply {
            Reply::Simple { cookie, errno } => {
                let len = script.answers[&cookie].0.len();
                let (data, rest) = bytes.split_at(if errno == 0 { len } else { 0 });
                bytes = rest;
                (cookie, errno, data.to_vec())
            }
            Reply::Chunk { cookie, flags, kind, len } => {
                assert_eq!(flags, chunk::FLAG_DONE, "reads are too short here to be cut");
                let (payload, rest) = bytes.split_at(len as usize);
                bytes = rest;
                match kind {
                    chunk::OFFSET_DATA => (cookie, 0, payload[8..].to_vec()),
                    chunk::OFFSET_HOLE => (cookie, 0, vec![0; script.answers[&cookie].0.len()]),
                    chunk::NONE => (cookie, 0, Vec::new()),
                    _ => (cookie, u32::from_be_bytes(payload[..4].try_into().unwrap()), Vec::new()),
                }
            }
        };
        let (wanted, wanted_errno) = script.answers.remove(&cookie).expect("one answer per request");
        assert_eq!(errno, wanted_errno, "request {cookie}");
        assert!(data == wanted, "data of request {cookie}");
    }
    assert!(script.answers.is_empty(), "unanswered: {:?}", script.answers.keys());
}

async fn converse(seed: u64, pipe: usize, structured: bool, limits: Limits) {
    let mut random = Random(seed);
    let mut content = vec![0; 4 * MIB as usize];
    content[..MIB as usize].iter_mut().enumerate().for_each(|(i, b)| *b = (i * 31 / 7) as u8);
    let device = Arc::new(Moody(MemoryDevice::new(content.len() as u64)));
    device.0.write(0, content.clone().into(), false).await.unwrap();
    let mut script = script(&mut random, &content, 60);
    let (mut ours, theirs) = tokio::io::duplex(pipe);
    let agreed = Agreed { export: "x".into(), device: device.clone(), structured, contexts: Vec::new() };
    let control = Arc::new(Control::default());
    let shared = Arc::new(Semaphore::new(limits.shared_bytes));
    let (shared_bytes, semaphore) = (limits.shared_bytes, Arc::clone(&shared));
    let serving = tokio::spawn(async move { run(theirs, BytesMut::new(), agreed, limits, semaphore, &control).await });
    let (mut read_half, mut write_half) = tokio::io::split(&mut ours);
    let mut received = Vec::new();
    let sending = async {
        let mut rest = &script.bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((1 + random.below(30_000) as usize).min(rest.len()));
            write_half.write_all(now).await.unwrap();
            rest = later;
        }
    };
    let (_, count) = tokio::join!(sending, read_half.read_to_end(&mut received));
    count.unwrap();
    assert!(matches!(serving.await.unwrap(), End::Disconnected));
    check(&mut script, &received);
    assert_eq!(shared.available_permits(), shared_bytes, "every byte of the budget comes back");
    let after = device.0.read(0, content.len()).await.unwrap();
    assert!(after == script.content);
}

/// Whatever pieces the stream is cut into, and however tight the limits, every request is answered once and rightly.
#[tokio::test]
async fn any_fragmentation_and_any_limits_give_the_same_answers() {
    for seed in 1..40u64 {
        for structured in [false, true] {
            let pipe = [1 << 20, 100_000, 4096, 28, 333][seed as usize % 5];
            let own_bytes = [0, 100, 1 << 20][seed as usize % 3];
            let requests = [1, 3, 128][seed as usize / 3 % 3];
            // As little as one request may need.
            let shared_bytes = 64 << 10;
            let limits =
                Limits { requests, own_bytes, shared_bytes, connection_bytes: shared_bytes, ..Limits::default() };
            converse(seed * 0x9E37_79B9, pipe, structured, limits).await;
        }
    }
}
