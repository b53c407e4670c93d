//! A disk in memory: thread-safe, sparse, complete at once. For tests and benchmarks; nothing of it survives.

use bytes::Bytes;
use parking_lot::RwLock;

use super::{AlignedBuf, Disk, DiskError, DiskGeometry, DiskResult, IO_ALIGN};
use crate::env::BoxFuture;

/// Bytes under one lock, allocated at their first write.
const CHUNK: u64 = 1 << 20;

/// A disk that keeps its bytes in memory and does every request within the call.
pub struct MemoryDisk {
    name: String,
    size: u64,
    chunks: Vec<RwLock<Option<Box<[u8]>>>>,
}

impl MemoryDisk {
    /// An empty disk of `size` bytes, rounded down to a multiple of [`IO_ALIGN`]. It takes memory where it is written
    /// to.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        let size = size - size % IO_ALIGN as u64;
        let chunks = (0..size.div_ceil(CHUNK)).map(|_| RwLock::new(None)).collect();
        Self { name: name.into(), size, chunks }
    }

    /// Bytes of memory taken by content.
    pub fn allocated(&self) -> u64 {
        self.chunks.iter().filter(|chunk| chunk.read().is_some()).count() as u64 * CHUNK
    }

    fn check(&self, what: &str, offset: u64, len: u64) -> DiskResult<()> {
        let align = IO_ALIGN as u64;
        let why = if offset.checked_add(len).is_none_or(|end| end > self.size) {
            format!("is beyond its end at {}", self.size)
        } else if !offset.is_multiple_of(align) || !len.is_multiple_of(align) {
            format!("is not aligned to {align}")
        } else {
            return Ok(());
        };
        Err(DiskError::Failed(format!("memory disk {}: {what} of {len} bytes at {offset} {why}", self.name)))
    }

    fn read_now(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        self.check("read", offset, len as u64)?;
        let mut out = AlignedBuf::zeroed(len);
        let mut done = 0;
        for (chunk, from, count) in pieces(offset, len as u64) {
            if let Some(content) = &*self.chunks[chunk].read() {
                out[done..done + count].copy_from_slice(&content[from..from + count]);
            }
            done += count;
        }
        Ok(out.freeze())
    }

    fn write_now(&self, mut offset: u64, data: &[Bytes]) -> DiskResult<()> {
        self.check("write", offset, data.iter().map(|piece| piece.len() as u64).sum())?;
        for piece in data {
            let mut rest = &piece[..];
            for (chunk, from, count) in pieces(offset, piece.len() as u64) {
                let (now, later) = rest.split_at(count);
                let mut content = self.chunks[chunk].write();
                let content = content.get_or_insert_with(|| vec![0; CHUNK as usize].into());
                content[from..from + count].copy_from_slice(now);
                rest = later;
            }
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn discard_now(&self, offset: u64, len: u64) -> DiskResult<()> {
        self.check("discard", offset, len)?;
        for (chunk, from, count) in pieces(offset, len) {
            let mut content = self.chunks[chunk].write();
            if count as u64 == CHUNK {
                *content = None;
            } else if let Some(content) = &mut *content {
                content[from..from + count].fill(0);
            }
        }
        Ok(())
    }
}

/// Cuts a range at the ends of chunks: chunk, offset within it, bytes.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let from = at % CHUNK;
        let count = (CHUNK - from).min(end - at);
        let piece = ((at / CHUNK) as usize, from as usize, count as usize);
        at += count;
        Some(piece)
    })
}

impl Disk for MemoryDisk {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn geometry(&self) -> DiskGeometry {
        DiskGeometry { size: self.size, sector_size: 4096 }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        Box::pin(std::future::ready(self.read_now(offset, len)))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, _durable: bool) -> BoxFuture<DiskResult<()>> {
        Box::pin(std::future::ready(self.write_now(offset, &data)))
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        Box::pin(std::future::ready(self.discard_now(offset, len)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;
    use crate::env::Rng;

    fn block_on<T>(request: BoxFuture<T>) -> T {
        request.now_or_never().expect("a memory disk completes at once")
    }

    fn random(len: usize, seed: u64) -> Bytes {
        let mut out = AlignedBuf::zeroed(len);
        Rng::new(seed).fill(&mut out);
        out.freeze()
    }

    #[test]
    fn keeps_what_a_plain_array_keeps() {
        const SIZE: usize = 5 << 19;
        let disk = MemoryDisk::new("m", SIZE as u64);
        let mut model = vec![0u8; SIZE];
        let mut rng = Rng::new(1);
        for round in 0..300 {
            let offset = rng.index(SIZE / IO_ALIGN) * IO_ALIGN;
            let pages = 1 + rng.index(((SIZE - offset) / IO_ALIGN).min(400));
            let range = offset..offset + pages * IO_ALIGN;
            match rng.below(3) {
                0 => {
                    let head = rng.index(pages + 1) * IO_ALIGN;
                    let data = random(range.len(), round);
                    model[range].copy_from_slice(&data);
                    let parts = vec![data.slice(..head), data.slice(head..)];
                    block_on(disk.write(offset as u64, parts, round % 2 == 0)).unwrap();
                }
                1 => {
                    let got = block_on(disk.read(offset as u64, range.len())).unwrap();
                    assert_eq!(got, model[range]);
                    assert!(got.as_ptr().addr().is_multiple_of(IO_ALIGN));
                }
                _ => {
                    block_on(disk.discard(offset as u64, range.len() as u64)).unwrap();
                    model[range].fill(0);
                }
            }
        }
        block_on(disk.flush()).unwrap();
        assert_eq!(block_on(disk.read(0, SIZE)).unwrap(), model);
    }

    #[test]
    fn takes_memory_only_where_written() {
        let disk = MemoryDisk::new("m", 1 << 40);
        assert_eq!(disk.geometry().size, 1 << 40);
        block_on(disk.write((1 << 40) - 4096, vec![random(4096, 1)], false)).unwrap();
        assert_eq!(disk.allocated(), 1 << 20);
        block_on(disk.discard(0, 1 << 40)).unwrap();
        assert_eq!(disk.allocated(), 0);
    }

    #[test]
    fn bad_requests_are_errors_that_say_why() {
        let disk = MemoryDisk::new("m", 10_000);
        let failed = |result: DiskResult<()>, why: &str| match result {
            Err(DiskError::Failed(message)) => assert!(message.contains(why), "{message}"),
            other => panic!("{other:?}"),
        };
        failed(block_on(disk.read(8192, 4096)).map(drop), "read of 4096 bytes at 8192 is beyond its end at 8192");
        failed(block_on(disk.write(1, vec![random(4096, 1)], false)), "is not aligned");
        failed(block_on(disk.write(0, vec![Bytes::from_static(b"abc")], true)), "is not aligned");
        failed(block_on(disk.discard(u64::MAX - 1, 4096)), "beyond its end");
    }

    #[test]
    fn threads_may_share_it() {
        let disk = Arc::new(MemoryDisk::new("m", 8 << 20));
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let disk = disk.clone();
                std::thread::spawn(move || {
                    for page in (thread..2048).step_by(4) {
                        block_on(disk.write(page * 4096, vec![random(4096, page)], false)).unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        for page in 0..2048 {
            assert_eq!(block_on(disk.read(page * 4096, 4096)).unwrap(), random(4096, page));
        }
    }
}
