//! What the driver asks for, checked, and how it is done on a [`BlockDevice`].

use std::sync::Arc;

use bytes::Bytes;
use libublk::sys;

use super::transfer::Transfer;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::{BlockDevice, Geometry};

/// Bytes of the sectors in which the driver counts, whatever the logical block.
const SECTOR: u64 = 512;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// One request of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) operation: Operation,
    /// Bytes from the start of the device.
    pub(super) offset: u64,
    /// Bytes; at most `u32::MAX` sectors.
    pub(super) len: u64,
    /// To be durable when it is answered.
    pub(super) fua: bool,
}

impl Request {
    /// Reads a descriptor; `max` is the longest transfer in bytes. What the driver should not have sent is refused.
    pub(super) fn decode(described: &sys::ublksrv_io_desc, geometry: &Geometry, max: u32) -> Result<Self> {
        let operation = match described.op_flags & 0xff {
            sys::UBLK_IO_OP_READ => Operation::Read,
            sys::UBLK_IO_OP_WRITE => Operation::Write,
            sys::UBLK_IO_OP_FLUSH => Operation::Flush,
            sys::UBLK_IO_OP_DISCARD => Operation::Discard,
            sys::UBLK_IO_OP_WRITE_ZEROES => Operation::WriteZeroes,
            other => return Err(Error::new(ErrorKind::Unsupported, format!("the driver asks for operation {other}"))),
        };
        if operation == Operation::Flush {
            return Ok(Self { operation, offset: 0, len: 0, fua: false });
        }
        let len = u64::from(described.nr_sectors) * SECTOR;
        let end = described.start_sector.checked_mul(SECTOR).and_then(|offset| offset.checked_add(len));
        let Some(end) = end.filter(|end| *end <= geometry.size) else {
            return Err(Error::invalid("the driver asks for something beyond the end of the device"));
        };
        let transfers = matches!(operation, Operation::Read | Operation::Write);
        if transfers && len > u64::from(max) {
            return Err(Error::invalid(format!("the driver wants to transfer {len} bytes at a time, more than {max}")));
        }
        if geometry.read_only && operation != Operation::Read {
            return Err(Error::new(ErrorKind::ReadOnly, "the device is read-only"));
        }
        let fua = described.op_flags & sys::UBLK_IO_F_FUA != 0;
        Ok(Self { operation, offset: end - len, len, fua })
    }

    /// Bytes of memory it takes until it is answered.
    pub(super) fn cost(&self) -> u64 {
        match self.operation {
            Operation::Read | Operation::Write => self.len,
            Operation::Flush | Operation::Discard | Operation::WriteZeroes => 0,
        }
    }

    /// Does it. A host whose file system lives on while this process is replaced takes what was answered for kept: `through` says that only
    /// what is durable is.
    pub(super) async fn run(
        self,
        device: &Arc<dyn BlockDevice>,
        through: bool,
        transfer: &impl Transfer,
    ) -> Result<()> {
        let durable = through || self.fua;
        match self.operation {
            Operation::Read => {
                let data = device.read(self.offset, self.len as usize).await?;
                transfer.give(&data)
            }
            Operation::Write => {
                let data: Bytes = transfer.take(self.len as usize)?;
                device.write(self.offset, data, durable).await
            }
            Operation::Flush => device.flush().await,
            Operation::Discard => device.discard(self.offset, self.len).await,
            Operation::WriteZeroes => device.write_zeroes(self.offset, self.len, durable).await,
        }
    }
}

#[cfg(test)]
mod tests;
