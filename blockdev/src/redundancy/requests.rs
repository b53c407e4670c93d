//! Requests of background work to disks: short ones where hosts wait for the same disks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::array::{DiskArray, Extent};
use crate::disk::AlignedBuf;
use crate::error::Result;
use crate::units::DiskId;

/// How columns are read and written: in requests of at most so many bytes, one behind the other; and what those took.
pub struct Requests {
    most: usize,
    ended: AtomicU64,
    nanos: AtomicU64,
}

impl Requests {
    /// Requests of at most `most` bytes, a multiple of [`crate::disk::IO_ALIGN`].
    pub fn new(most: usize) -> Self {
        Self { most, ended: AtomicU64::new(0), nanos: AtomicU64::new(0) }
    }

    /// One request for all of it.
    pub fn whole() -> Self {
        Self::new(usize::MAX)
    }

    /// Most bytes of a request.
    pub fn most(&self) -> usize {
        self.most
    }

    /// How many have ended, and how long they took all together.
    pub fn ended(&self) -> (u64, Duration) {
        (self.ended.load(Ordering::Relaxed), Duration::from_nanos(self.nanos.load(Ordering::Relaxed)))
    }

    fn add(&self, took: Duration) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl DiskArray {
    /// As [`Self::read_column`], in requests as `requests` has them.
    pub async fn read_column_by(
        &self,
        requests: &Requests,
        extent: &Extent,
        column: usize,
        row: u64,
        len: usize,
    ) -> Result<Bytes> {
        if len <= requests.most {
            let begun = self.now();
            let content = self.read_column(extent, column, row, len).await?;
            requests.add(self.now().saturating_sub(begun));
            return Ok(content);
        }
        let mut out = AlignedBuf::recycled(len);
        for (i, part) in out.chunks_mut(requests.most).enumerate() {
            let begun = self.now();
            let at = row + (i * requests.most) as u64;
            part.copy_from_slice(&self.read_column(extent, column, at, part.len()).await?);
            requests.add(self.now().saturating_sub(begun));
        }
        Ok(out.freeze())
    }

    /// As [`Self::write`], not durable, in requests as `requests` has them.
    pub async fn write_by(&self, requests: &Requests, id: DiskId, offset: u64, content: Bytes) -> Result<()> {
        for at in (0..content.len()).step_by(requests.most) {
            let begun = self.now();
            let part = content.slice(at..content.len().min(at.saturating_add(requests.most)));
            self.write(id, offset + at as u64, vec![part], false).await?;
            requests.add(self.now().saturating_sub(begun));
        }
        Ok(())
    }
}
