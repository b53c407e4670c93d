//! One file or device that is read and never written.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use blockdev::units::BLOCK_BYTES;
use rustix::fs::{Advice, OFlags, SeekFrom, fadvise, fcntl_getfl, fcntl_setfl, seek};
use rustix::io::Errno;

/// An open file or block device.
pub struct Source {
    file: File,
    /// Bytes.
    pub len: u64,
    /// Past the page cache.
    direct: bool,
}

impl Source {
    /// Opens it for reading: past the page cache and without touching its access time where that is possible.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Not to wait for a writer, should it have become a named pipe in the meantime.
        let mut flags = OFlags::DIRECT | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = loop {
            match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
                Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) && flags.contains(OFlags::DIRECT) => {
                    flags.remove(OFlags::DIRECT);
                }
                // Only the owner may leave the access time as it is.
                Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) && flags.contains(OFlags::NOATIME) => {
                    flags.remove(OFlags::NOATIME);
                }
                opened => break opened?,
            }
        };
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let len = match (kind.is_file(), kind.is_block_device()) {
            (true, _) => metadata.len(),
            (_, true) => seek(&file, SeekFrom::End(0))?,
            _ => return Err(io::Error::other("it is neither a regular file nor a block device")),
        };
        Ok(Self { file, len, direct: flags.contains(OFlags::DIRECT) })
    }

    /// The first stretch of data at or after `from`, in whole blocks; what lies before it are zeroes.
    ///
    /// Where holes cannot be asked for (block devices, some file systems) everything is data.
    pub fn data_from(&self, from: u64) -> Option<Range<u64>> {
        if from >= self.len {
            return None;
        }
        let start = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start.max(from),
            Err(Errno::NXIO) => return None,
            Err(_) => return Some(from..self.len.next_multiple_of(BLOCK_BYTES)),
        };
        let end = seek(&self.file, SeekFrom::Hole(start)).unwrap_or(self.len);
        let start = start / BLOCK_BYTES * BLOCK_BYTES;
        Some(start..end.max(start + 1).next_multiple_of(BLOCK_BYTES))
    }

    /// Fills `out`, whose place in memory and length, as `offset`, are multiples of a block. Behind the end there are zeroes.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.len.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < there {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if self.direct && Errno::from_io_error(&e) == Some(Errno::INVAL) => {
                    let flags = fcntl_getfl(&self.file)?;
                    fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                    self.direct = false;
                }
                Err(e) => return Err(e),
            }
        }
        out[done..].fill(0);
        if !self.direct {
            // Advice: what happens without it is harmless.
            let _ = fadvise(&self.file, offset, NonZeroU64::new(out.len() as u64), Advice::DontNeed);
        }
        Ok(())
    }
}
