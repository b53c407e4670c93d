//! Renaming.

use super::FileSystem;
use super::namespace::{check_name, find, free_cookie, is_empty, put, remove};
use crate::meta::attr::Kind;
use crate::meta::tables::Entry;
use crate::meta::txn::Metadata;
use crate::planted::{Bug, active};
use crate::{Errno, Result};

/// How a rename treats a name that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameFlags {
    /// Replaces it.
    #[default]
    Replace,
    /// Fails with EEXIST.
    NoReplace,
    /// Both change places.
    Exchange,
}

impl FileSystem {
    /// Gives what is `name` in `parent` the name `new_name` in `new_parent`, at once.
    pub fn rename(&self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        if [name, new_name].iter().any(|name| *name == b"." || *name == b"..") {
            return Err(Errno::BUSY);
        }
        let gone = self.change(|meta| {
            let (from, to) = (self.dir_in(meta, parent)?, self.dir_in(meta, new_parent)?);
            let (cookie, entry) = find(meta, parent, name)?.ok_or(Errno::NOENT)?;
            let there = find(meta, new_parent, new_name)?;
            match (&there, flags) {
                (Some(_), RenameFlags::NoReplace) => return Err(Errno::EXIST),
                (None, RenameFlags::Exchange) => return Err(Errno::NOENT),
                _ => {}
            }
            let is_dir = |entry: &Entry| entry.kind == Kind::Directory;
            if parent != new_parent {
                if is_dir(&entry) {
                    self.not_below(meta, entry.ino, new_parent)?;
                }
                if let Some((_, there)) = there.as_ref().filter(|(_, there)| is_dir(there)) {
                    // Of an exchange only; what is replaced is empty, and nothing lies below it.
                    self.not_below(meta, there.ino, parent)?;
                }
            }
            if there.as_ref().is_some_and(|(_, there)| there.ino == entry.ino) {
                return Ok(false);
            }
            let moved = self.node_in(meta, entry.ino)?;
            let now = self.now();
            let named = |entry: &Entry, name: &[u8]| Entry { name: name.to_vec(), ..entry.clone() };

            let Some((there_cookie, there)) = there else {
                let new_cookie = free_cookie(meta, new_parent, new_name)?;
                remove(meta, parent, cookie)?;
                if active(Bug::RenameInTwo) {
                    self.write_dirty(meta)?;
                    meta.commit()?;
                }
                put(meta, new_parent, new_cookie, &named(&entry, new_name))?;
                self.less(&from, is_dir(&entry));
                self.more(&to, is_dir(&entry));
                self.touch(&moved, |attr| {
                    attr.ctime = now;
                    attr.parent = if attr.kind == Kind::Directory { new_parent } else { 0 };
                });
                return Ok(false);
            };
            let other = self.node_in(meta, there.ino)?;
            if flags == RenameFlags::Exchange {
                put(meta, new_parent, there_cookie, &named(&entry, new_name))?;
                put(meta, parent, cookie, &named(&there, name))?;
                for (node, now_in) in [(&moved, new_parent), (&other, parent)] {
                    self.touch(node, |attr| {
                        attr.ctime = now;
                        attr.parent = if attr.kind == Kind::Directory { now_in } else { 0 };
                    });
                }
                self.less(&from, is_dir(&entry));
                self.more(&from, is_dir(&there));
                self.less(&to, is_dir(&there));
                self.more(&to, is_dir(&entry));
                return Ok(false);
            }
            match (is_dir(&entry), is_dir(&there)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !is_empty(meta, there.ino)? => return Err(Errno::NOTEMPTY),
                _ => {}
            }
            remove(meta, parent, cookie)?;
            put(meta, new_parent, there_cookie, &named(&entry, new_name))?;
            self.less(&from, is_dir(&entry));
            self.less(&to, is_dir(&there));
            self.more(&to, is_dir(&entry));
            self.touch(&moved, |attr| {
                attr.ctime = now;
                attr.parent = if attr.kind == Kind::Directory { new_parent } else { 0 };
            });
            self.drop_name(meta, &other)
        })?;
        if gone {
            self.hurry();
        }
        Ok(())
    }

    /// EINVAL when `dir` is the directory `ino` or lies below it.
    fn not_below(&self, meta: &mut Metadata, ino: u64, mut dir: u64) -> Result<()> {
        // No way is longer than there are inodes.
        for _ in 0..=meta.counters.inodes {
            if dir == ino {
                return Err(Errno::INVAL);
            }
            let above = self.node_in(meta, dir)?.state.lock().attr.parent;
            if above == dir || above == 0 {
                return Ok(());
            }
            dir = above;
        }
        tracing::error!(ino, "directories of the file system lie in each other");
        Err(Errno::IO)
    }
}
