//! Two volumes as a pool gives them: after a crash both show the state of one instant, not before the last flush.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;

use blockdev::env::BoxFuture;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::{BlockDevice, Extent, Geometry};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

const PAGE: u64 = 4096;

type Pages = BTreeMap<u64, Box<[u8; PAGE as usize]>>;

enum Change {
    Data(Bytes),
    Zeroes(u64),
}

struct State {
    /// What is on disk whatever happens.
    old: [Pages; 2],
    now: [Pages; 2],
    /// Changes since, in order.
    journal: Vec<(usize, u64, Change)>,
    /// How many of them are durable.
    durable: usize,
    /// Changes after which everything fails, as when the power goes.
    left: Option<u64>,
    /// Changes before a write is told that the pool is full.
    room: Option<u64>,
}

fn apply(pages: &mut Pages, offset: u64, change: &Change) {
    let len = match change {
        Change::Data(data) => data.len() as u64,
        Change::Zeroes(len) => *len,
    };
    let end = offset + len;
    if let Change::Zeroes(_) = change {
        // What was never written has no page.
        let whole: Vec<u64> = pages
            .range(offset.div_ceil(PAGE)..(end / PAGE).max(offset.div_ceil(PAGE)))
            .map(|(page, _)| *page)
            .collect();
        for page in whole {
            pages.remove(&page);
        }
    }
    for page in [offset / PAGE, end.saturating_sub(1) / PAGE] {
        if let (Change::Zeroes(_), Some(content)) = (change, pages.get_mut(&page)) {
            let (from, to) = ((page * PAGE).max(offset), ((page + 1) * PAGE).min(end));
            content[(from - page * PAGE) as usize..(to - page * PAGE) as usize].fill(0);
        }
    }
    if let Change::Data(data) = change {
        for page in offset / PAGE..end.div_ceil(PAGE) {
            let (from, to) = ((page * PAGE).max(offset), ((page + 1) * PAGE).min(end));
            let content = pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            content[(from - page * PAGE) as usize..(to - page * PAGE) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
        }
    }
}

/// The pool of both volumes.
#[derive(Clone)]
pub struct Pool(Arc<Mutex<State>>, [u64; 2]);

impl Pool {
    pub fn new(sizes: [u64; 2]) -> Self {
        let state = State {
            old: Default::default(),
            now: Default::default(),
            journal: Vec::new(),
            durable: 0,
            left: None,
            room: None,
        };
        Self(Arc::new(Mutex::new(state)), sizes)
    }

    pub fn volumes(&self) -> [Arc<dyn BlockDevice>; 2] {
        [0, 1].map(|index| {
            Arc::new(Volume { pool: self.clone(), index, size: watch::Sender::new(self.1[index]) })
                as Arc<dyn BlockDevice>
        })
    }

    /// The power goes after so many changes.
    pub fn fail_after(&self, changes: u64) {
        self.0.lock().left = Some(changes);
    }

    /// Everything fails already.
    pub fn is_dead(&self) -> bool {
        self.0.lock().left == Some(0)
    }

    /// Changes that are not durable.
    pub fn open_changes(&self) -> usize {
        let state = self.0.lock();
        state.journal.len() - state.durable
    }

    /// The power is back; of the changes that were not durable, the first `kept` were made.
    pub fn restart(&self, kept: usize) {
        let mut state = self.0.lock();
        let state = &mut *state;
        let upto = state.durable + kept;
        for (volume, offset, change) in &state.journal[..upto] {
            apply(&mut state.old[*volume], *offset, change);
        }
        state.now = state.old.clone();
        state.journal.clear();
        state.durable = 0;
        state.left = None;
    }
}

struct Volume {
    pool: Pool,
    index: usize,
    size: watch::Sender<u64>,
}

impl Volume {
    fn change(&self, offset: u64, change: Change) -> Result<()> {
        let mut state = self.pool.0.lock();
        match &mut state.left {
            Some(0) => return Err(Error::io("the power is off")),
            Some(left) => *left -= 1,
            None => {}
        }
        if let (Change::Data(_), Some(room)) = (&change, &mut state.room) {
            if *room == 0 {
                return Err(Error::new(ErrorKind::NoSpace, "the pool is full"));
            }
            *room -= 1;
        }
        apply(&mut state.now[self.index], offset, &change);
        state.journal.push((self.index, offset, change));
        Ok(())
    }
}

impl BlockDevice for Volume {
    fn geometry(&self) -> Geometry {
        Geometry { size: *self.size.borrow(), block_size: 4096, optimal_io: 1 << 20, read_only: false }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        let state = self.pool.0.lock();
        let mut out = vec![0; len];
        let end = offset + len as u64;
        assert!(end <= *self.size.borrow(), "a read beyond the end");
        for page in offset / PAGE..end.div_ceil(PAGE) {
            let (from, to) = ((page * PAGE).max(offset), ((page + 1) * PAGE).min(end));
            if let Some(content) = state.now[self.index].get(&page) {
                out[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&content[(from - page * PAGE) as usize..(to - page * PAGE) as usize]);
            }
        }
        Box::pin(ready(Ok(Bytes::from(out))))
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> BoxFuture<Result<()>> {
        assert!(offset + data.len() as u64 <= *self.size.borrow(), "a write beyond the end");
        Box::pin(ready(self.change(offset, Change::Data(data))))
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        let mut state = self.pool.0.lock();
        let dead = state.left == Some(0);
        if !dead {
            state.durable = state.journal.len();
        }
        Box::pin(ready(if dead { Err(Error::io("the power is off")) } else { Ok(()) }))
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        Box::pin(ready(self.change(offset, Change::Zeroes(len))))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _fua: bool) -> BoxFuture<Result<()>> {
        assert!(offset + len <= *self.size.borrow(), "zeroes beyond the end");
        Box::pin(ready(self.change(offset, Change::Zeroes(len))))
    }

    fn compare_and_write(&self, _: u64, _: Bytes, _: Bytes) -> BoxFuture<Result<bool>> {
        unreachable!("file systems do not compare and write")
    }

    fn block_status(&self, _: u64, _: u64, _: usize) -> BoxFuture<Result<Vec<Extent>>> {
        unreachable!("file systems do not ask what is mapped")
    }

    fn watch_size(&self) -> watch::Receiver<u64> {
        self.size.subscribe()
    }
}
