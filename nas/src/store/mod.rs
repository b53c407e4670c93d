//! The two volumes of a file system: their headers, and synchronous access to them.

mod backend;
mod header;

use std::sync::Arc;

use blockdev::error::{Context, Error, ErrorKind, Result};
use blockdev::frontend::BlockDevice;
use bytes::Bytes;
use futures::executor::block_on;
use futures::future::{try_join, try_join_all};
use parking_lot::RwLock;

pub(crate) use backend::Backend;
use header::{Header, Role};

use crate::BLOCK;

/// The volumes of one file system, checked to belong together.
pub struct Pair {
    pub(crate) meta: Volume,
    pub(crate) data: Volume,
    /// What both carry.
    pub(crate) identity: [u8; 16],
}

impl Pair {
    /// Reads both headers. Volumes without a header, of another version, or of two file systems are refused.
    pub fn open(meta: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Result<Self> {
        let gate = Arc::default();
        let (meta, data) = (Volume::new(meta, &gate), Volume::new(data, &gate));
        let (m, d) = (read_header(&meta, Role::Metadata)?, read_header(&data, Role::Data)?);
        if m.identity != d.identity {
            return Err(Error::invalid("the metadata volume and the data volume belong to two different file systems"));
        }
        Ok(Self { meta, data, identity: m.identity })
    }

    /// Makes all that was written durable, on both: each tells only of its own writes that came to nothing.
    pub(crate) fn flush(&self) -> Result<()> {
        block_on(try_join(self.data.device.flush(), self.meta.device.flush())).map(drop)
    }

    /// Waits for writes under way, and lets no further ones through, whoever still has this file system: the volumes may be somebody else's now.
    pub(crate) fn fence(&self) {
        *self.meta.gate.write() = true;
    }

    /// Blocks of the data volume that can hold files, and the header's.
    pub(crate) fn data_blocks(&self) -> u64 {
        self.data.size() / BLOCK
    }
}

fn read_header(volume: &Volume, role: Role) -> Result<Header> {
    let bytes = volume.read(0, BLOCK as usize).context(format_args!("read the header of the {role} volume"))?;
    Header::decode(&bytes, role)
}

/// Smallest volumes: the database alone takes some MiB.
const META_MIN: u64 = 16 << 20;
const DATA_MIN: u64 = 16 << 20;

/// Writes headers to two volumes whose first block is zeroes. What is needed besides, the first mount writes.
pub fn format(meta: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>, identity: [u8; 16]) -> Result<Pair> {
    let gate = Arc::default();
    let pair = Pair { meta: Volume::new(meta, &gate), data: Volume::new(data, &gate), identity };
    for (volume, role, least) in [(&pair.meta, Role::Metadata, META_MIN), (&pair.data, Role::Data, DATA_MIN)] {
        if volume.size() < least {
            let text = format!("the {role} volume has {} bytes; at least {least} are needed", volume.size());
            return Err(Error::invalid(text));
        }
        if volume.read(0, BLOCK as usize)?.iter().any(|b| *b != 0) {
            let text = format!("the {role} volume is not empty; a file system is made on new volumes only");
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
    }
    for (volume, role) in [(&pair.meta, Role::Metadata), (&pair.data, Role::Data)] {
        volume.write(0, Header { role, identity, length: 0 }.encode())?;
    }
    pair.flush()?;
    Ok(pair)
}

/// Gives copies of the volumes of a file system an identity of their own. Ended half-way, the two do not belong together any more.
pub fn reidentify(meta: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>, identity: [u8; 16]) -> Result<()> {
    let pair = Pair::open(meta, data)?;
    for (volume, role) in [(&pair.meta, Role::Metadata), (&pair.data, Role::Data)] {
        let header = Header { identity, ..read_header(volume, role)? };
        volume.write(0, header.encode())?;
    }
    pair.flush()
}

/// A device whose operations block the calling thread until they are done.
#[derive(Clone)]
pub(crate) struct Volume {
    device: Arc<dyn BlockDevice>,
    /// Whether nothing is written any more; of both volumes together. Held while something is.
    gate: Arc<RwLock<bool>>,
}

impl Volume {
    fn new(device: Arc<dyn BlockDevice>, gate: &Arc<RwLock<bool>>) -> Self {
        Self { device, gate: Arc::clone(gate) }
    }

    /// Does something that changes the volume, unless it is fenced.
    fn change<T>(&self, change: impl Future<Output = Result<T>>) -> Result<T> {
        let fenced = self.gate.read();
        if *fenced {
            return Err(Error::new(ErrorKind::Fenced, "the file system is closed"));
        }
        block_on(change)
    }

    pub(crate) fn size(&self) -> u64 {
        self.device.geometry().size
    }

    pub(crate) fn read_only(&self) -> bool {
        self.device.geometry().read_only
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        block_on(self.device.read(offset, len))
    }

    /// Several ranges at once: offset and bytes of each.
    pub(crate) fn read_all(&self, ranges: &[(u64, usize)]) -> Result<Vec<Bytes>> {
        match ranges {
            [(offset, len)] => Ok(vec![self.read(*offset, *len)?]),
            _ => block_on(try_join_all(ranges.iter().map(|(offset, len)| self.device.read(*offset, *len)))),
        }
    }

    pub(crate) fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.change(self.device.write(offset, data, false))
    }

    /// Several writes at once: offset and data of each.
    pub(crate) fn write_all(&self, mut writes: Vec<(u64, Bytes)>) -> Result<()> {
        if writes.len() == 1 {
            let (offset, data) = writes.remove(0);
            return self.write(offset, data);
        }
        self.change(try_join_all(writes.into_iter().map(|(offset, data)| self.device.write(offset, data, false))))
            .map(drop)
    }

    pub(crate) fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.change(self.device.write_zeroes(offset, len, false))
    }

    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.change(self.device.discard(offset, len))
    }
}
