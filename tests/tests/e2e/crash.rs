//! The daemon is killed in the middle of writes, over NBD and over FUSE at once, again and again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ashlar_tests::Lab;
use ashlar_tests::lab::EndOnFailure;
use ashlar_tests::require::{Need, met};

use crate::history::{BLOCK, Content, History, Random, bytes_of};
use crate::nbd::{Client, Request};
use crate::tools::{SMALL, attach, create, expect_sound, nbd_socket};

/// Blocks of a volume that are written: few enough that most are overwritten in a round.
pub const BLOCKS: usize = 8192;
/// Rounds between two checks of the whole pool.
const CHECK_EVERY: u32 = 8;

/// A device under a crash test.
pub trait Device {
    /// Writes these runs of blocks, all in flight at once; an empty run of contents cannot happen.
    fn write(&mut self, runs: &[(usize, Vec<Content>)], durable: bool) -> io::Result<()>;
    fn flush(&mut self) -> io::Result<()>;
    fn read_all(&mut self) -> io::Result<Vec<u8>>;
}

fn bytes(contents: &[Content]) -> Vec<u8> {
    contents.iter().flat_map(|content| bytes_of(*content)).collect()
}

impl Device for Client {
    fn write(&mut self, runs: &[(usize, Vec<Content>)], durable: bool) -> io::Result<()> {
        let request = |(index, (start, contents)): (usize, &(usize, Vec<Content>))| {
            let (offset, len) = ((start * BLOCK) as u64, (contents.len() * BLOCK) as u32);
            match contents.iter().all(|content| *content == 0) {
                true if index % 2 == 0 && !durable => Request::Trim { offset, len },
                true if !durable => Request::WriteZeroes { offset, len },
                _ => Request::Write { offset, data: bytes(contents), fua: durable },
            }
        };
        let requests: Vec<Request> = runs.iter().enumerate().map(request).collect();
        match self.batch(&requests)?.into_iter().find_map(Result::err) {
            Some(error) => Err(io::Error::from_raw_os_error(error as i32)),
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.one(Request::Flush).map(drop)
    }

    fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut image = Vec::with_capacity(BLOCKS * BLOCK);
        while image.len() < BLOCKS * BLOCK {
            image.extend(self.one(Request::Read { offset: image.len() as u64, len: 1 << 20 })?);
        }
        Ok(image)
    }
}

impl Device for File {
    fn write(&mut self, runs: &[(usize, Vec<Content>)], durable: bool) -> io::Result<()> {
        for (start, contents) in runs {
            self.write_all_at(&bytes(contents), (start * BLOCK) as u64)?;
        }
        if durable { self.sync_data() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut image = vec![0; BLOCKS * BLOCK];
        self.read_exact_at(&mut image, 0)?;
        Ok(image)
    }
}

/// Writes until the device breaks. Every few steps is a flush; some writes are flushed by themselves, some repeat content that
/// is there already, some are zeroes.
pub fn write_until_it_breaks(device: &mut dyn Device, history: &mut History, random: &mut Random) -> io::Error {
    loop {
        history.step += 1;
        let durable = random.below(16) == 0;
        let most = if durable { 1 } else { 1 + random.below(12) as usize };
        // Runs in disjoint parts of the volume never overlap.
        let part = history.blocks() / most;
        let mut runs = Vec::new();
        for at in 0..most {
            let longest = if random.below(4) == 0 { 32 } else { 4 };
            let len = 1 + random.below(longest) as usize;
            let start = at * part + random.below((part - len) as u64 + 1) as usize;
            let zeroes = !durable && random.below(12) == 0;
            let contents: Vec<Content> = (0..len as u64)
                .map(|_| match random.below(3) {
                    _ if zeroes => 0,
                    // Few enough numbers that the same block is written often.
                    0 => 1 + random.below(500),
                    _ => 1000 + random.below(1 << 48),
                })
                .collect();
            for (block, content) in (start..).zip(&contents) {
                history.write(block, *content);
            }
            runs.push((start, contents));
        }
        if let Err(e) = device.write(&runs, durable) {
            return e;
        }
        if durable {
            history.flushed = history.step;
        } else if random.below(6) == 0 {
            match device.flush() {
                Ok(()) => history.flushed = history.step,
                Err(e) => return e,
            }
        }
    }
}

/// How a front end is reached anew after each start.
enum Way {
    Nbd(PathBuf, &'static str),
    Fuse(PathBuf),
}

impl Way {
    fn open(&self) -> io::Result<Box<dyn Device>> {
        Ok(match self {
            Self::Nbd(socket, export) => Box::new(Client::connect(socket, export)?),
            Self::Fuse(path) => Box::new(open(path)?),
        })
    }
}

impl Way {
    /// Whether an error tells that the daemon ended.
    fn is_gone(&self, error: &io::Error) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        match self {
            Self::Nbd(..) => matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof),
            Self::Fuse(_) => matches!(error.kind(), ConnectionAborted | NotConnected),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// How often to kill.
pub fn rounds() -> u32 {
    let asked = std::env::var("ASHLAR_KILL_ROUNDS").ok();
    asked.map_or(25, |text| text.parse().unwrap_or_else(|e| panic!("ASHLAR_KILL_ROUNDS={text}: {e}")))
}

/// Promises 1 and 2 of the design: after a kill, whatever was flushed is there, and all of it shows one instant.
#[test]
fn killed_in_the_middle_of_writes() {
    let fuse = met("killed_in_the_middle_of_writes (the FUSE half)", &[Need::Fuse, Need::Root]);
    let lab = Lab::up(SMALL);
    let mut ways = vec![Way::Nbd(nbd_socket(&lab), "over-nbd")];
    create(&lab, "over-nbd", "32M");
    attach(&lab, "over-nbd", &["nbd"]);
    if fuse {
        create(&lab, "over-fuse", "32M");
        ways.push(Way::Fuse(attach(&lab, "over-fuse", &["fuse"]).into()));
    }
    let mut histories: Vec<History> = ways.iter().map(|_| History::new(BLOCKS)).collect();
    let mut pauses = Random::new(7);
    let (mut written, mut lost) = (0, 0);
    for round in 1..=rounds() {
        let pause = Duration::from_millis(100 + pauses.below(900));
        std::thread::scope(|scope| {
            for (index, (way, history)) in ways.iter().zip(&mut histories).enumerate() {
                scope.spawn(move || {
                    let mut device = way.open().unwrap_or_else(|e| panic!("round {round}, way {index}: {e}"));
                    let mut random = Random::new(u64::from(round) << 8 | index as u64);
                    let end = write_until_it_breaks(&mut *device, history, &mut random);
                    // The front end went away, and did not refuse a write before.
                    assert!(way.is_gone(&end), "round {round}, way {index}: {end}");
                });
            }
            let _end = EndOnFailure(&lab);
            std::thread::sleep(pause);
            lab.lab("kill", &[]).expect_ok();
        });
        lab.lab("start", &[]).expect_ok();
        for (index, (way, history)) in ways.iter().zip(&mut histories).enumerate() {
            let image = way.open().and_then(|mut device| device.read_all());
            let image = image.unwrap_or_else(|e| panic!("round {round}, way {index}: reading: {e}"));
            let (step, flushed) = (history.step, history.flushed);
            let seen = history.check(&image).unwrap_or_else(|e| {
                panic!("round {round}, way {index}, killed after {pause:?} at step {step}, {flushed} flushed: {e}")
            });
            (written, lost) = (written + seen.written, lost + seen.lost);
            history.flushed = history.step;
        }
        if round % CHECK_EVERY == 0 {
            expect_sound(&lab);
        }
    }
    expect_sound(&lab);
    eprintln!("{} kills: {written} block writes, {lost} not flushed and gone", rounds());
    assert!(written > 1000, "hardly anything was written between the kills");
}
