//! Disks of any size that take memory only for what is not zero.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use blockdev::disk::{AlignedBuf, Disk, DiskError, DiskGeometry, DiskResult, IO_ALIGN};
use blockdev::env::BoxFuture;
use bytes::Bytes;

type Pages = HashMap<u64, Bytes>;

/// A disk that keeps its bytes in memory, page by page.
pub struct SparseDisk {
    name: String,
    size: u64,
    pages: Mutex<Pages>,
}

impl SparseDisk {
    /// An empty disk.
    pub fn new(name: String, size: u64) -> Arc<Self> {
        Arc::new(Self { name, size: size / IO_ALIGN as u64 * IO_ALIGN as u64, pages: Mutex::default() })
    }

    /// Whether it holds nothing but zeroes.
    pub fn is_blank(&self) -> bool {
        self.pages.lock().is_ok_and(|pages| pages.is_empty())
    }

    fn with<T>(&self, offset: u64, len: u64, work: impl FnOnce(&mut Pages) -> T) -> DiskResult<T> {
        let align = IO_ALIGN as u64;
        if !offset.is_multiple_of(align) || !len.is_multiple_of(align) || offset + len > self.size {
            return Err(DiskError::Failed(format!("{}: {len} bytes at {offset} of {}", self.name, self.size)));
        }
        let mut pages = self.pages.lock().map_err(|e| DiskError::Failed(e.to_string()))?;
        Ok(work(&mut pages))
    }
}

impl Disk for SparseDisk {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn geometry(&self) -> DiskGeometry {
        DiskGeometry { size: self.size, sector_size: 4096 }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        let read = self.with(offset, len as u64, |pages| {
            let mut out = AlignedBuf::zeroed(len);
            for (page, piece) in (offset / IO_ALIGN as u64..).zip(out.chunks_mut(IO_ALIGN)) {
                if let Some(content) = pages.get(&page) {
                    piece.copy_from_slice(content);
                }
            }
            out.freeze()
        });
        Box::pin(std::future::ready(read))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, _durable: bool) -> BoxFuture<DiskResult<()>> {
        const ZEROES: [u8; IO_ALIGN] = [0; IO_ALIGN];
        let len: usize = data.iter().map(Bytes::len).sum();
        let written = self.with(offset, len as u64, |pages| {
            let mut page = offset / IO_ALIGN as u64;
            for piece in data {
                for at in (0..piece.len()).step_by(IO_ALIGN) {
                    let content = &piece[at..at + IO_ALIGN];
                    if content == ZEROES {
                        if !pages.is_empty() {
                            pages.remove(&page);
                        }
                    } else {
                        pages.insert(page, Bytes::copy_from_slice(content));
                    }
                    page += 1;
                }
            }
        });
        Box::pin(std::future::ready(written))
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        let range = offset / IO_ALIGN as u64..(offset + len) / IO_ALIGN as u64;
        let done = self.with(offset, len, |pages| pages.retain(|page, _| !range.contains(page)));
        Box::pin(std::future::ready(done))
    }
}
