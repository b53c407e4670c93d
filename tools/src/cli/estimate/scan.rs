//! Reads the data and has it counted: one thread reads, in order; all others look at blocks and compress.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use blockdev::codec::Compressor;
use blockdev::disk::AlignedBuf;
use blockdev::estimate::{self, Estimate, Estimator, REGION_BLOCKS, REGION_SIZE, Selection};
use blockdev::report::Compression;
use blockdev::units::BLOCK_BYTES;
use parking_lot::{Condvar, Mutex};

use super::source::Source;
use super::walk::{Roots, cannot_read};
use crate::exit::Failure;

/// What cannot be read is told of so many files.
const PROBLEMS_TOLD: usize = 10;
/// Most workers: one thread that reads can hardly feed more, and each has two regions in memory.
const WORKERS_MAX: usize = 16;

/// How far it is, for whoever watches; and whether to stop.
#[derive(Default)]
pub struct Progress {
    /// Bytes to read.
    pub total: AtomicU64,
    /// Bytes done.
    pub done: AtomicU64,
    /// Bytes that were not zero so far, and bytes they would take.
    pub so_far: Mutex<(u64, u64)>,
    /// Ends the scan soon.
    pub stop: AtomicBool,
}

impl Progress {
    fn goes_on(&self) -> ControlFlow<()> {
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// What could not be read.
#[derive(Debug, Default)]
pub struct Problems {
    /// Files and directories.
    pub count: u64,
    /// Blocks of files that could be opened.
    pub blocks: u64,
    /// About the first of them.
    pub told: Vec<String>,
}

impl Problems {
    fn add(&mut self, failure: Failure) {
        self.count += 1;
        if self.told.len() < PROBLEMS_TOLD {
            self.told.push(failure.message);
        }
    }
}

/// How much there is to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Survey {
    /// Blocks that are not in holes.
    pub blocks: u64,
}

impl Survey {
    /// Looks at all files without reading them.
    pub fn of(roots: &Roots, progress: &Progress) -> Self {
        let mut survey = Self::default();
        // What cannot be read is told when it is to be read.
        let _ = roots.walk(|found| {
            if let Ok(source) = found.map_err(drop).and_then(|path| Source::open(path).map_err(drop)) {
                let mut from = 0;
                while let Some(data) = source.data_from(from) {
                    survey.blocks += (data.end - data.start) / BLOCK_BYTES;
                    from = data.end;
                }
            }
            progress.goes_on()
        });
        survey
    }

    /// Regions it makes.
    pub fn regions(&self) -> u64 {
        self.blocks.div_ceil(REGION_BLOCKS as u64)
    }
}

/// What came out.
pub struct Scanned {
    /// The figures.
    pub estimate: Estimate,
    /// Files and devices.
    pub files: u64,
    /// What could not be read.
    pub problems: Problems,
    /// Whether it was stopped: then the figures are those of what came before.
    pub interrupted: bool,
}

/// How to count.
pub struct Options {
    /// Regions that are read; all of them without.
    pub wanted: Option<(u64, u64)>,
    /// Bytes for fingerprints.
    pub memory: u64,
    /// As in a pool.
    pub compression: Compression,
}

/// A region on its way from the reader to a worker.
struct Region {
    /// Regions are admitted in the order of these.
    number: u64,
    group: u8,
    data: AlignedBuf,
    len: usize,
}

/// What the threads share.
struct Shared<'a> {
    counted: Mutex<Counted>,
    /// The next region was admitted.
    turn: Condvar,
    compression: Compression,
    progress: &'a Progress,
}

struct Counted {
    estimator: Estimator,
    /// Number of the region to be admitted next.
    next: u64,
}

/// Reads what `survey` found.
pub fn scan(roots: &Roots, survey: Survey, options: &Options, progress: &Progress) -> Scanned {
    let (selection, blocks) = match options.wanted {
        Some((wanted, seed)) => (Selection::new(seed, wanted, survey.regions()), wanted * REGION_BLOCKS as u64),
        None => (Selection::all(), survey.blocks),
    };
    let blocks = blocks.min(survey.blocks);
    progress.total.store(blocks * BLOCK_BYTES, Ordering::Relaxed);
    let shared = Shared {
        counted: Mutex::new(Counted { estimator: Estimator::new(options.memory, blocks), next: 0 }),
        turn: Condvar::new(),
        compression: options.compression,
        progress,
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let (send, receive) = sync_channel(workers);
    let receive = Mutex::new(receive);
    let mut reader = Reader::new(selection, send, &shared);
    let stopped = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| work(&receive, &shared));
        }
        let stopped = roots.walk(|found| {
            reader.file(found);
            progress.goes_on()
        });
        reader.end();
        stopped
    });
    let estimate = shared.counted.lock().estimator.estimate();
    Scanned { estimate, files: reader.files, problems: reader.problems, interrupted: stopped.is_break() }
}

/// Cuts what it reads into regions.
struct Reader<'a> {
    selection: Selection,
    /// None after the end.
    out: Option<SyncSender<Region>>,
    shared: &'a Shared<'a>,
    /// The group of the region that is being filled, if it is read at all.
    group: Option<u8>,
    /// Blocks of the region that were come by.
    filled: usize,
    /// What was read of it.
    data: AlignedBuf,
    len: usize,
    number: u64,
    files: u64,
    problems: Problems,
}

impl<'a> Reader<'a> {
    fn new(selection: Selection, out: SyncSender<Region>, shared: &'a Shared<'a>) -> Self {
        let data = AlignedBuf::recycled(REGION_SIZE);
        let problems = Problems::default();
        Self { selection, out: Some(out), shared, group: None, filled: 0, data, len: 0, number: 0, files: 0, problems }
    }

    fn file(&mut self, found: Result<&Path, Failure>) {
        let opened = found.and_then(|path| match Source::open(path) {
            Ok(source) => Ok((path, source)),
            Err(e) => Err(cannot_read(path, &e)),
        });
        let (path, mut source) = match opened {
            Ok(opened) => opened,
            Err(failure) => return self.problems.add(failure),
        };
        self.files += 1;
        let (mut from, mut failed) = (0, None);
        while let Some(data) = source.data_from(from) {
            self.hole(data.start - from);
            from = data.end;
            if self.stretch(&mut source, data, &mut failed).is_break() {
                return;
            }
        }
        self.hole(source.len.next_multiple_of(BLOCK_BYTES).saturating_sub(from));
        if let Some(e) = failed {
            self.problems.add(cannot_read(path, &e));
        }
    }

    fn hole(&self, bytes: u64) {
        self.shared.counted.lock().estimator.hole(bytes / BLOCK_BYTES);
    }

    /// Reads a stretch of data as far as it lies in regions that are to be read; `failed` becomes the first error.
    fn stretch(
        &mut self,
        source: &mut Source,
        data: std::ops::Range<u64>,
        failed: &mut Option<std::io::Error>,
    ) -> ControlFlow<()> {
        let mut at = data.start;
        while at < data.end {
            if self.filled == 0 {
                self.shared.progress.goes_on()?;
                self.group = self.selection.next();
            }
            let blocks = ((data.end - at) / BLOCK_BYTES).min((REGION_BLOCKS - self.filled) as u64);
            let bytes = (blocks * BLOCK_BYTES) as usize;
            match self.group {
                None => self.shared.counted.lock().estimator.pass_over(blocks),
                Some(_) => match source.read(at, &mut self.data[self.len..self.len + bytes]) {
                    Ok(()) => self.len += bytes,
                    Err(e) => {
                        self.problems.blocks += blocks;
                        failed.get_or_insert(e);
                    }
                },
            }
            self.filled += blocks as usize;
            at += bytes as u64;
            if self.filled == REGION_BLOCKS {
                self.hand_over();
            }
        }
        ControlFlow::Continue(())
    }

    /// The region is complete.
    fn hand_over(&mut self) {
        if let (Some(group), Some(out)) = (self.group.take().filter(|_| self.len > 0), &self.out) {
            let data = std::mem::replace(&mut self.data, AlignedBuf::recycled(REGION_SIZE));
            // Workers end only when this end is gone.
            let _ = out.send(Region { number: self.number, group, data, len: self.len });
            self.number += 1;
        }
        self.filled = 0;
        self.len = 0;
    }

    /// There is no more: workers end when they have done what waits.
    fn end(&mut self) {
        self.hand_over();
        self.out = None;
    }
}

/// Counts regions until there are no more.
fn work(regions: &Mutex<Receiver<Region>>, shared: &Shared) {
    let mut compressor = Compressor::new();
    loop {
        let region = regions.lock().recv();
        let Ok(Region { number, group, data, len }) = region else { return };
        let data = &data[..len];
        let cut = estimate::cut(data);
        let frames = {
            let mut counted = shared.counted.lock();
            // Whoever has the one before took it from the queue before.
            while counted.next != number {
                shared.turn.wait(&mut counted);
            }
            counted.next += 1;
            shared.turn.notify_all();
            counted.estimator.admit(&cut, group)
        };
        let shares = estimate::compress(data, &frames, &mut compressor, shared.compression);
        let so_far = {
            let mut counted = shared.counted.lock();
            counted.estimator.record(&shares);
            counted.estimator.so_far()
        };
        *shared.progress.so_far.lock() = so_far;
        shared.progress.done.fetch_add(len as u64, Ordering::Relaxed);
    }
}
