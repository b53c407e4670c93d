//! Extended attributes.

use redb::ReadableTable;

use super::FileSystem;
use super::acl::{ACCESS, Acl, DEFAULT};
use crate::meta::attr::Kind;
use crate::meta::tables::XATTRS;
use crate::meta::txn::{Metadata, fault};
use crate::{Errno, Result};

/// Longest name and value, as Linux has them.
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 64 << 10;

/// Every inode has this one, with the identity of the file system. It is not listed and cannot be changed; only root sees it.
const IDENTITY: &[u8] = b"trusted.ashlar.identity";

/// Bytes of all names of one inode, as `listxattr` gives them: what Linux takes.
const LIST_MAX: usize = 64 << 10;

/// Whether a value must be there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrFlags {
    /// It may.
    #[default]
    Any,
    /// It must not: else EEXIST.
    Create,
    /// It must: else ENODATA.
    Replace,
}

fn names(meta: &Metadata, ino: u64) -> Result<Vec<Vec<u8>>> {
    let table = meta.txn.table(XATTRS)?;
    let rows = table.range((ino, &[][..])..(ino + 1, &[][..])).map_err(fault)?;
    rows.map(|row| Ok(row.map_err(fault)?.0.value().1.to_vec())).collect()
}

impl FileSystem {
    /// The value of an extended attribute; ENODATA when there is none.
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>> {
        self.look(|meta| {
            self.node_in(meta, ino)?;
            if name == IDENTITY {
                return Ok(self.identity().to_vec());
            }
            let table = meta.txn.table(XATTRS)?;
            let value = table.get((ino, name)).map_err(fault)?.ok_or(Errno::NODATA)?;
            Ok(value.value().to_vec())
        })
    }

    /// The names of all extended attributes.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        self.look(|meta| {
            self.node_in(meta, ino)?;
            names(meta, ino)
        })
    }

    /// Sets an extended attribute.
    pub fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        match name.len() {
            0 => return Err(Errno::INVAL),
            len if len > NAME_MAX => return Err(Errno::RANGE),
            _ if value.len() > VALUE_MAX => return Err(Errno::TOOBIG),
            _ if name == IDENTITY => return Err(Errno::PERM),
            _ => {}
        }
        let list = match name {
            ACCESS | DEFAULT => Some(Acl::decode(value)?),
            _ => None,
        };
        self.change(|meta| {
            let node = self.node_in(meta, ino)?;
            match (&list, node.state.lock().attr.kind) {
                (Some(_), Kind::Symlink) => return Err(Errno::OPNOTSUPP),
                (Some(_), kind) if name == DEFAULT && kind != Kind::Directory => return Err(Errno::ACCESS),
                _ => {}
            }
            let there = meta.txn.table(XATTRS)?.get((ino, name)).map_err(fault)?.is_some();
            match flags {
                XattrFlags::Create if there => return Err(Errno::EXIST),
                XattrFlags::Replace if !there => return Err(Errno::NODATA),
                _ => {}
            }
            if !there && names(meta, ino)?.iter().map(|name| name.len() + 1).sum::<usize>() + name.len() + 1 > LIST_MAX
            {
                return Err(Errno::NOSPC);
            }
            let now = self.now();
            let mut mode = None;
            if let Some(list) = list.filter(|_| name == ACCESS) {
                mode = Some(list.mode());
                if list.is_mode() {
                    meta.txn.change(XATTRS)?.remove((ino, name)).map_err(fault)?;
                } else {
                    meta.txn.change(XATTRS)?.insert((ino, name), value).map_err(fault)?;
                }
            } else {
                meta.txn.change(XATTRS)?.insert((ino, name), value).map_err(fault)?;
            }
            self.touch(&node, |attr| {
                attr.mode = mode.map_or(attr.mode, |mode| attr.mode & !0o777 | mode);
                attr.ctime = now;
            });
            Ok(())
        })
    }

    /// A list of an inode; none when it has none, or one that says nothing.
    pub(super) fn list_in(&self, meta: &Metadata, ino: u64, name: &[u8]) -> Result<Option<Acl>> {
        let table = meta.txn.table(XATTRS)?;
        let value = table.get((ino, name)).map_err(fault)?;
        Ok(value.and_then(|value| Acl::decode(value.value()).ok()))
    }

    /// Removes an extended attribute; ENODATA when there is none.
    pub fn removexattr(&self, ino: u64, name: &[u8]) -> Result<()> {
        self.change(|meta| {
            let node = self.node_in(meta, ino)?;
            if meta.txn.table(XATTRS)?.get((ino, name)).map_err(fault)?.is_none() {
                return Err(Errno::NODATA);
            }
            meta.txn.change(XATTRS)?.remove((ino, name)).map_err(fault)?;
            let now = self.now();
            self.touch(&node, |attr| attr.ctime = now);
            Ok(())
        })
    }
}
