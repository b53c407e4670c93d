//! The database's storage: the metadata volume behind its header.

use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockdev::error::Error;
use blockdev::frontend::errno::errno;
use bytes::Bytes;
use parking_lot::Mutex;
use redb::StorageBackend;
use rustc_hash::FxHashMap;

use super::header::{Header, Role};
use super::{Pair, Volume, read_header};
use crate::BLOCK;

/// Requests to the volume are at most so long.
const REQUEST_MAX: usize = 1 << 20;

type Block = Box<[u8; BLOCK as usize]>;

/// A [`StorageBackend`] on a volume.
///
/// Its `sync_data` does nothing. What it is for, that no later write becomes durable before an earlier one, holds for all
/// volumes of a pool anyway (prefix consistency); who needs a commit to be durable flushes the volume after it.
pub(crate) struct Backend {
    volume: Volume,
    identity: [u8; 16],
    length: Arc<AtomicU64>,
    /// Blocks written to a volume that must stay as it is: the database writes a little when it is opened, also to be read only.
    scratch: Option<Mutex<FxHashMap<u64, Block>>>,
}

impl Backend {
    /// With `scratch`, nothing reaches the volume.
    pub(crate) fn new(pair: &Pair, scratch: bool) -> blockdev::error::Result<Self> {
        let header = read_header(&pair.meta, Role::Metadata)?;
        let length = Arc::new(AtomicU64::new(header.length));
        let scratch = scratch.then(Mutex::default);
        Ok(Self { volume: pair.meta.clone(), identity: pair.identity, length, scratch })
    }

    /// How long the database is, in bytes; follows it.
    pub(crate) fn length(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.length)
    }

    fn within(&self, offset: u64, len: usize) -> io::Result<()> {
        let length = self.length.load(Ordering::Acquire);
        if offset.checked_add(len as u64).is_none_or(|end| end > length) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the database"));
        }
        Ok(())
    }

    fn read_volume(&self, mut at: u64, out: &mut [u8]) -> io::Result<()> {
        for part in out.chunks_mut(REQUEST_MAX) {
            part.copy_from_slice(&self.volume.read(at, part.len()).map_err(failed)?);
            at += part.len() as u64;
        }
        Ok(())
    }
}

/// The parts of `offset..offset + len` that lie in one block each: its number, where in it, and where in the range.
fn blocks(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let end = offset + len as u64;
    (offset / BLOCK..end.div_ceil(BLOCK)).map(move |block| {
        let (from, to) = ((block * BLOCK).max(offset), ((block + 1) * BLOCK).min(end));
        (block, (from - block * BLOCK) as usize..(to - block * BLOCK) as usize, (from - offset) as usize)
    })
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("length", &self.length).finish_non_exhaustive()
    }
}

fn failed(error: Error) -> io::Error {
    let errno = io::Error::from_raw_os_error(errno(error.kind()));
    io::Error::new(errno.kind(), error)
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length.load(Ordering::Acquire))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.within(offset, out.len())?;
        let at = offset + BLOCK;
        self.read_volume(at, out)?;
        if let Some(scratch) = &self.scratch {
            let scratch = scratch.lock();
            for (block, within, from) in blocks(at, out.len()) {
                if let Some(written) = scratch.get(&block) {
                    out[from..from + within.len()].copy_from_slice(&written[within]);
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let old = self.length.load(Ordering::Acquire);
        if length.checked_add(BLOCK).is_none_or(|end| end > self.volume.size()) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if self.scratch.is_none() {
            if length < old {
                self.volume.write_zeroes(length + BLOCK, old - length).map_err(failed)?;
            }
            let header = Header { role: Role::Metadata, identity: self.identity, length };
            self.volume.write(0, header.encode()).map_err(failed)?;
        }
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.within(offset, data.len())?;
        let mut at = offset + BLOCK;
        if let Some(scratch) = &self.scratch {
            let mut scratch = scratch.lock();
            for (block, within, from) in blocks(at, data.len()) {
                let content = match scratch.entry(block) {
                    Entry::Occupied(there) => there.into_mut(),
                    Entry::Vacant(place) => {
                        let mut content = Box::new([0; BLOCK as usize]);
                        self.read_volume(block * BLOCK, &mut content[..])?;
                        place.insert(content)
                    }
                };
                content[within.clone()].copy_from_slice(&data[from..from + within.len()]);
            }
            return Ok(());
        }
        for part in data.chunks(REQUEST_MAX) {
            self.volume.write(at, Bytes::copy_from_slice(part)).map_err(failed)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}
