//! Names: looking up, making, linking, removing, listing.

use std::ops::Bound;
use std::sync::Arc;

use redb::ReadableTable;

use super::acl::{ACCESS, DEFAULT};
use super::nodes::Node;
use super::{FileSystem, ROOT};
use crate::meta::attr::{Attr, Kind};
use crate::meta::tables::{ENTRIES, Entry, INODES, LINKS, NAME_MAX, SAME_HASH, XATTRS, cookie};
use crate::meta::txn::{Metadata, fault};
use crate::planted::{Bug, active};
use crate::{Errno, Result};

/// What a directory's size counts for each name.
pub(crate) const ENTRY_SIZE: u64 = 32;

/// Longest target of a symbolic link, in bytes.
pub(crate) const TARGET_MAX: usize = 4095;

/// Names one inode may have.
const LINKS_MAX: u32 = 65_000;

const SETGID: u16 = 0o2000;

/// An inode to be made.
#[derive(Clone, Debug)]
pub struct New<'a> {
    /// What it is.
    pub kind: Kind,
    /// Permissions with set-user-ID, set-group-ID and sticky bit.
    pub mode: u16,
    /// Bits to be taken off, unless the directory has a default access control list.
    pub umask: u16,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory gives its own (set-group-ID).
    pub gid: u32,
    /// Of a device.
    pub rdev: u32,
    /// Of a symbolic link.
    pub target: &'a [u8],
}

impl New<'_> {
    /// A regular file, owned by root.
    pub fn file(mode: u16) -> Self {
        Self { kind: Kind::File, mode, umask: 0, uid: 0, gid: 0, rdev: 0, target: &[] }
    }

    /// A directory, owned by root.
    pub fn directory(mode: u16) -> Self {
        Self { kind: Kind::Directory, ..Self::file(mode) }
    }
}

/// A name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Where to go on after it.
    pub cookie: u64,
    /// Its inode.
    pub ino: u64,
    /// What that is.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
}

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        [] => Err(Errno::NOENT),
        _ if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ if name.contains(&b'/') || name.contains(&0) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// The entry of `name` and its cookie.
pub(super) fn find(meta: &Metadata, dir: u64, name: &[u8]) -> Result<Option<(u64, Entry)>> {
    let first = cookie(&meta.counters, name);
    let table = meta.txn.table(ENTRIES)?;
    for row in table.range((dir, first)..(dir, first + SAME_HASH)).map_err(fault)? {
        let (key, value) = row.map_err(fault)?;
        let entry = decode(dir, value.value())?;
        if entry.name == name || active(Bug::HashIsName) {
            return Ok(Some((key.value().1, entry)));
        }
    }
    Ok(None)
}

fn decode(dir: u64, value: &[u8]) -> Result<Entry> {
    Entry::decode(value).ok_or_else(|| {
        tracing::error!(dir, "an entry of a directory is damaged");
        Errno::IO
    })
}

/// A cookie for `name`, which is not there yet.
pub(super) fn free_cookie(meta: &Metadata, dir: u64, name: &[u8]) -> Result<u64> {
    let first = cookie(&meta.counters, name);
    let table = meta.txn.table(ENTRIES)?;
    let mut free = first;
    for row in table.range((dir, first)..(dir, first + SAME_HASH)).map_err(fault)? {
        if row.map_err(fault)?.0.value().1 != free {
            break;
        }
        free += 1;
    }
    if free < first + SAME_HASH { Ok(free) } else { Err(Errno::NOSPC) }
}

pub(super) fn is_empty(meta: &Metadata, dir: u64) -> Result<bool> {
    let table = meta.txn.table(ENTRIES)?;
    let empty = table.range((dir, 0)..=(dir, u64::MAX)).map_err(fault)?.next().is_none();
    Ok(empty)
}

/// Files a name under a cookie of its hash: one that is free, or whose entry it takes the place of.
pub(super) fn put(meta: &mut Metadata, dir: u64, cookie: u64, entry: &Entry) -> Result<()> {
    meta.txn.change(ENTRIES)?.insert((dir, cookie), entry.encode().as_slice()).map_err(fault)?;
    Ok(())
}

/// Adds a name that is not there.
pub(super) fn add(meta: &mut Metadata, dir: u64, entry: &Entry) -> Result<()> {
    let cookie = free_cookie(meta, dir, &entry.name)?;
    put(meta, dir, cookie, entry)
}

pub(super) fn remove(meta: &mut Metadata, dir: u64, cookie: u64) -> Result<()> {
    meta.txn.change(ENTRIES)?.remove((dir, cookie)).map_err(fault)?;
    Ok(())
}

impl FileSystem {
    /// A directory that has not been removed.
    pub(super) fn dir_in(&self, meta: &mut Metadata, ino: u64) -> Result<Arc<Node>> {
        let node = self.node_in(meta, ino)?;
        let state = node.state.lock();
        match (state.attr.kind, state.attr.nlink) {
            (Kind::Directory, 0) => Err(Errno::NOENT),
            (Kind::Directory, _) => {
                drop(state);
                Ok(node)
            }
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Attributes of what `name` in `parent` is; `.` and `..` are answered too.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr> {
        if name == b"." {
            // Whoever asks so has a handle: of what is deleted it is stale.
            return self.getattr(parent).and_then(|attr| if attr.nlink > 0 { Ok(attr) } else { Err(Errno::STALE) });
        }
        check_name(name)?;
        self.look(|meta| {
            let dir = self.dir_in(meta, parent)?;
            let ino = match name {
                b".." => dir.state.lock().attr.parent,
                _ => find(meta, parent, name)?.ok_or(Errno::NOENT)?.1.ino,
            };
            let attr = self.node_in(meta, ino)?.state.lock().attr;
            Ok(attr)
        })
    }

    /// Attributes of an inode.
    pub fn getattr(&self, ino: u64) -> Result<Attr> {
        let node = self.node(ino)?;
        let state = node.state.lock();
        if state.dead { Err(Errno::STALE) } else { Ok(state.attr) }
    }

    /// Makes an inode with a name. Gives its attributes.
    pub fn create(&self, parent: u64, name: &[u8], new: &New<'_>) -> Result<Attr> {
        check_name(name)?;
        if new.kind == Kind::Symlink && (new.target.is_empty() || new.target.len() > TARGET_MAX) {
            return Err(if new.target.is_empty() { Errno::NOENT } else { Errno::NAMETOOLONG });
        }
        self.change(|meta| {
            let dir = self.dir_in(meta, parent)?;
            if is_dot(name) || find(meta, parent, name)?.is_some() {
                return Err(Errno::EXIST);
            }
            let directory = new.kind == Kind::Directory;
            let above = dir.state.lock().attr;
            if directory && above.nlink == u32::MAX {
                return Err(Errno::MLINK);
            }
            let inherits = above.mode & SETGID != 0;
            let now = self.now();
            let ino = meta.counters.next_ino;
            let default = match new.kind {
                Kind::Symlink => None,
                _ => self.list_in(meta, parent, DEFAULT)?,
            };
            let access = default.as_ref().map(|list| list.inherited(new.mode));
            let permissions = match &access {
                Some(list) => new.mode & !0o777 | list.mode(),
                None => new.mode & !new.umask,
            };
            let attr = Attr {
                ino,
                kind: new.kind,
                mode: permissions & 0o7777 | if inherits && directory { SETGID } else { 0 },
                nlink: if directory { 2 } else { 1 },
                uid: new.uid,
                gid: if inherits { above.gid } else { new.gid },
                size: if new.kind == Kind::Symlink { new.target.len() as u64 } else { 0 },
                blocks: 0,
                rdev: new.rdev,
                parent: if directory { parent } else { 0 },
                atime: now,
                mtime: now,
                ctime: now,
                btime: now,
            };
            add(meta, parent, &Entry { ino, kind: new.kind, name: name.to_vec() })?;
            if new.kind == Kind::Symlink {
                meta.txn.change(LINKS)?.insert(ino, new.target).map_err(fault)?;
            }
            let lists = [(ACCESS, access.filter(|list| !list.is_mode())), (DEFAULT, default.filter(|_| directory))];
            for (name, list) in lists {
                let Some(list) = list else { continue };
                meta.txn.change(XATTRS)?.insert((ino, name), list.encode().as_slice()).map_err(fault)?;
            }
            meta.txn.change(INODES)?.insert(ino, attr.encode().as_slice()).map_err(fault)?;
            meta.counters.next_ino += 1;
            meta.counters.inodes += 1;
            self.touch(&dir, |attr| {
                attr.size += ENTRY_SIZE;
                attr.nlink += u32::from(directory);
                (attr.mtime, attr.ctime) = (now, now);
            });
            let node = self.nodes.insert(attr);
            node.state.lock().moved = meta.counters.commits + 1;
            Ok(attr)
        })
    }

    /// One more name for an inode that is no directory.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        self.change(|meta| {
            let node = self.node_in(meta, ino)?;
            let attr = node.state.lock().attr;
            match (attr.kind, attr.nlink) {
                (Kind::Directory, _) => return Err(Errno::PERM),
                (_, 0) => return Err(Errno::NOENT),
                (_, LINKS_MAX..) => return Err(Errno::MLINK),
                _ => {}
            }
            let dir = self.dir_in(meta, parent)?;
            if is_dot(name) || find(meta, parent, name)?.is_some() {
                return Err(Errno::EXIST);
            }
            add(meta, parent, &Entry { ino, kind: attr.kind, name: name.to_vec() })?;
            let now = self.now();
            self.touch(&dir, |attr| {
                attr.size += ENTRY_SIZE;
                (attr.mtime, attr.ctime) = (now, now);
            });
            Ok(self.touch(&node, |attr| {
                attr.nlink += 1;
                attr.ctime = now;
            }))
        })
    }

    /// Removes a name that is no directory's.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        check_name(name)?;
        let gone = self.change(|meta| {
            let dir = self.dir_in(meta, parent)?;
            if is_dot(name) {
                return Err(Errno::ISDIR);
            }
            let (cookie, entry) = find(meta, parent, name)?.ok_or(Errno::NOENT)?;
            if entry.kind == Kind::Directory {
                return Err(Errno::ISDIR);
            }
            let node = self.node_in(meta, entry.ino)?;
            remove(meta, parent, cookie)?;
            self.less(&dir, false);
            self.drop_name(meta, &node)
        })?;
        if gone {
            self.hurry();
        }
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        check_name(name)?;
        match name {
            b"." => return Err(Errno::INVAL),
            b".." => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let gone = self.change(|meta| {
            let dir = self.dir_in(meta, parent)?;
            let (cookie, entry) = find(meta, parent, name)?.ok_or(Errno::NOENT)?;
            if entry.kind != Kind::Directory {
                return Err(Errno::NOTDIR);
            }
            if !is_empty(meta, entry.ino)? {
                return Err(Errno::NOTEMPTY);
            }
            let node = self.node_in(meta, entry.ino)?;
            remove(meta, parent, cookie)?;
            self.less(&dir, true);
            self.drop_name(meta, &node)
        })?;
        if gone {
            self.hurry();
        }
        Ok(())
    }

    /// A directory has one name less, one that was a directory's if so said.
    pub(super) fn less(&self, dir: &Arc<Node>, directory: bool) {
        let now = self.now();
        self.touch(dir, |attr| {
            attr.size = attr.size.saturating_sub(ENTRY_SIZE);
            attr.nlink = attr.nlink.saturating_sub(u32::from(directory));
            (attr.mtime, attr.ctime) = (now, now);
        });
    }

    /// A directory has one name more.
    pub(super) fn more(&self, dir: &Arc<Node>, directory: bool) {
        let now = self.now();
        self.touch(dir, |attr| {
            attr.size += ENTRY_SIZE;
            attr.nlink += u32::from(directory);
            (attr.mtime, attr.ctime) = (now, now);
        });
    }

    /// An inode has lost one name. Whether it can be freed now.
    pub(super) fn drop_name(&self, meta: &mut Metadata, node: &Arc<Node>) -> Result<bool> {
        let now = self.now();
        let attr = self.touch(node, |attr| {
            attr.nlink = if attr.kind == Kind::Directory { 0 } else { attr.nlink.saturating_sub(1) };
            attr.ctime = now;
        });
        if attr.nlink > 0 {
            return Ok(false);
        }
        self.orphan(meta, node.ino)?;
        Ok(!self.in_use(node.ino))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        self.look(|meta| {
            if self.node_in(meta, ino)?.state.lock().attr.kind != Kind::Symlink {
                return Err(Errno::INVAL);
            }
            let table = meta.txn.table(LINKS)?;
            let target = table.get(ino).map_err(fault)?.ok_or(Errno::IO)?;
            Ok(target.value().to_vec())
        })
    }

    /// [`FileSystem::readdir`], with the attributes of what is named.
    pub fn readdir_plus(&self, ino: u64, cookie: u64, max: usize) -> Result<Vec<(DirEntry, Attr)>> {
        let entries = self.readdir(ino, cookie, max)?;
        self.look(|meta| {
            let inodes = meta.txn.table(INODES)?;
            let mut found = Vec::with_capacity(entries.len());
            for entry in entries {
                // What is in memory is newer. A name whose inode has gone meanwhile is left out.
                let attr = match self.nodes.get(entry.ino) {
                    Some(node) => Some(node.state.lock().attr),
                    None => inodes.get(entry.ino).map_err(fault)?.and_then(|row| Attr::decode(entry.ino, row.value())),
                };
                found.extend(attr.map(|attr| (entry, attr)));
            }
            Ok(found)
        })
    }

    /// At most `max` names of a directory after `cookie`, 0 for the first. In no order that means something, but always in the same; a name that
    /// exists all the while is there once.
    pub fn readdir(&self, ino: u64, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        self.look(|meta| {
            let node = self.node_in(meta, ino)?;
            let attr = node.state.lock().attr;
            if attr.kind != Kind::Directory {
                return Err(Errno::NOTDIR);
            }
            let mut found = Vec::new();
            let dots = [(1, ino, &b"."[..]), (2, if ino == ROOT { ROOT } else { attr.parent }, &b".."[..])];
            for (at, ino, name) in dots.into_iter().filter(|(at, ..)| *at > cookie && attr.nlink > 0) {
                found.push(DirEntry { cookie: at, ino, kind: Kind::Directory, name: name.to_vec() });
            }
            found.truncate(max);
            let table = meta.txn.table(ENTRIES)?;
            let after = Bound::Excluded((ino, cookie.max(2)));
            for row in table.range((after, Bound::Included((ino, u64::MAX)))).map_err(fault)? {
                if found.len() >= max {
                    break;
                }
                let (key, value) = row.map_err(fault)?;
                let Entry { ino, kind, name } = decode(ino, value.value())?;
                found.push(DirEntry { cookie: key.value().1, ino, kind, name });
            }
            Ok(found)
        })
    }
}
