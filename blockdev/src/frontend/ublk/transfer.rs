//! Data of requests: copied by the kernel on a read or write of the character device (`UBLK_F_USER_COPY`), at a place that names queue
//! and tag. No buffers are set aside for requests that may come, and any thread may copy.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use libublk::io::UblkIOCtx;

use crate::error::Result;
use crate::frontend::errno::from_io;

/// Data of one request under way.
pub(super) trait Transfer: Sync {
    /// The data that the host wrote.
    fn take(&self, len: usize) -> Result<Bytes>;
    /// Answers a read; `data` is as long as the request.
    fn give(&self, data: &[u8]) -> Result<()>;
}

/// Data of the request with this tag.
pub(super) struct Slot {
    pub(super) device: Arc<File>,
    pub(super) queue: u16,
    pub(super) tag: u16,
}

impl Slot {
    fn position(&self) -> u64 {
        UblkIOCtx::ublk_user_copy_pos(self.queue, self.tag, 0)
    }
}

impl Transfer for Slot {
    fn take(&self, len: usize) -> Result<Bytes> {
        let mut data = Vec::<u8>::with_capacity(len);
        while data.len() < len {
            let (filled, room) = (data.len(), len - data.len());
            let position = (self.position() + filled as u64) as libc::off_t;
            // SAFETY: the vector has room for `len` bytes, of which `filled` are there; the kernel writes at most `room` behind them.
            let count = unsafe {
                let free = data.as_mut_ptr().add(filled).cast();
                libc::pread(self.device.as_raw_fd(), free, room, position)
            };
            match usize::try_from(count) {
                Ok(0) => return Err(crate::error::Error::io("the driver has less data than the request says")),
                // SAFETY: the kernel has filled that many bytes more.
                Ok(count) => unsafe { data.set_len(filled + count) },
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(from_io(&error, "take the data of a write from the driver"));
                    }
                }
            }
        }
        Ok(data.into())
    }

    fn give(&self, data: &[u8]) -> Result<()> {
        let given = self.device.write_all_at(data, self.position());
        given.map_err(|e| from_io(&e, "give the data of a read to the driver"))
    }
}
