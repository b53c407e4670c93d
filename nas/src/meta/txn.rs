//! The open transaction, and what is counted beside it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockdev::error::{Error, ErrorKind};
use redb::{Builder, Database, Key, ReadableDatabase, ReadableTable, Table, TableDefinition, Value, WriteTransaction};

use super::tables::{
    BLOCKS, COMMITS, ENTRIES, EXTENTS, GROUPS, HASH_BITS, HASH_KEY, INODES, INODES_USED, LINKS, NEXT_INO, ORPHANS,
    SUPER, USED, XATTRS,
};
use crate::alloc::Allocator;
use crate::store::Backend;
use crate::{Errno, Result};

/// What an error of the database is to an operation: it is said here, once.
pub(crate) fn fault(error: impl Into<redb::Error>) -> Errno {
    let error: redb::Error = error.into();
    if let redb::Error::Io(io) = &error
        && io.kind() == std::io::ErrorKind::StorageFull
    {
        tracing::warn!("the metadata volume is full");
        return Errno::NOSPC;
    }
    tracing::error!(%error, "the metadata of a file system");
    Errno::IO
}

/// Numbers that belong to the file system as a whole; they are part of each commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    pub next_ino: u64,
    pub hash_key: u64,
    pub hash_bits: u64,
    pub blocks: u64,
    pub used: u64,
    pub inodes: u64,
    pub commits: u64,
}

impl Counters {
    const NAMES: [&'static str; 7] = [NEXT_INO, HASH_KEY, HASH_BITS, BLOCKS, USED, INODES_USED, COMMITS];

    fn values(&self) -> [u64; 7] {
        [self.next_ino, self.hash_key, self.hash_bits, self.blocks, self.used, self.inodes, self.commits]
    }

    /// None when one of them is missing.
    pub(crate) fn load(table: &impl ReadableTable<&'static str, u64>) -> Result<Option<Self>> {
        let mut values = [0; 7];
        for (value, name) in values.iter_mut().zip(Self::NAMES) {
            let Some(found) = table.get(name).map_err(fault)? else { return Ok(None) };
            *value = found.value();
        }
        let [next_ino, hash_key, hash_bits, blocks, used, inodes, commits] = values;
        Ok(Some(Self { next_ino, hash_key, hash_bits, blocks, used, inodes, commits }))
    }
}

/// The transaction that changes go into until the next commit.
pub(crate) struct Txn {
    open: Option<WriteTransaction>,
    /// Whether the operation under way has changed something.
    touched: Cell<bool>,
}

impl Txn {
    fn get(&self) -> Result<&WriteTransaction> {
        self.open.as_ref().ok_or(Errno::IO)
    }

    /// A table to look into. Drop it before the same is opened again.
    pub(crate) fn table<K: Key + 'static, V: Value + 'static>(
        &self,
        which: TableDefinition<'static, K, V>,
    ) -> Result<Table<'_, K, V>> {
        self.get()?.open_table(which).map_err(fault)
    }

    /// A table that will be changed: from now on the operation must come to its end, or the file system has failed.
    pub(crate) fn change<K: Key + 'static, V: Value + 'static>(
        &self,
        which: TableDefinition<'static, K, V>,
    ) -> Result<Table<'_, K, V>> {
        self.touched.set(true);
        self.table(which)
    }
}

/// Counters as they were after the last operation: the lock may be held for as long as the pool takes to write.
#[derive(Default)]
pub(crate) struct Seen {
    pub blocks: AtomicU64,
    pub used: AtomicU64,
    pub inodes: AtomicU64,
    pub failed: AtomicBool,
}

/// All that the lock of the metadata protects.
pub(crate) struct Metadata {
    /// None once it is closed.
    db: Option<Arc<Database>>,
    pub txn: Txn,
    pub counters: Counters,
    pub alloc: Allocator,
    /// Operations in the open transaction.
    pub changes: usize,
    /// Nothing is written any more.
    pub failed: bool,
    seen: Arc<Seen>,
}

/// What the database is opened with.
pub(crate) fn database(backend: Backend, cache_bytes: usize) -> blockdev::error::Result<Database> {
    Builder::new().set_cache_size(cache_bytes).create_with_backend(backend).map_err(|e| opening(&e.into()))
}

pub(crate) fn opening(error: &redb::Error) -> Error {
    let kind = match error {
        redb::Error::Corrupted(_) => ErrorKind::Corrupt,
        redb::Error::UpgradeRequired(_) => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("open the metadata of the file system: {error}"))
}

impl Metadata {
    /// Takes over a database that has its counters, or makes them and all tables in a new one with `fresh`.
    pub(crate) fn new(db: Database, fresh: Counters) -> Result<(Self, bool)> {
        let stored = {
            let read = db.begin_read().map_err(fault)?;
            match read.open_table(SUPER) {
                Ok(table) => Counters::load(&table)?,
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(fault(error)),
            }
        };
        let counters = stored.unwrap_or(fresh);
        let alloc = Allocator::new(counters.blocks);
        let txn = Txn { open: None, touched: Cell::new(false) };
        let db = Some(Arc::new(db));
        let mut this = Self { db, txn, counters, alloc, changes: 0, failed: false, seen: Arc::default() };
        this.show();
        this.begin()?;
        if stored.is_none() {
            this.txn.table(INODES)?;
            this.txn.table(ENTRIES)?;
            this.txn.table(EXTENTS)?;
            this.txn.table(LINKS)?;
            this.txn.table(XATTRS)?;
            this.txn.table(GROUPS)?;
            this.txn.table(ORPHANS)?;
        }
        Ok((this, stored.is_none()))
    }

    /// What can be looked at without waiting for the lock; it follows.
    pub(crate) fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }

    /// The database, for reading.
    pub(crate) fn database(&self) -> Option<Arc<Database>> {
        self.db.clone()
    }

    fn show(&self) {
        let Counters { blocks, used, inodes, .. } = self.counters;
        for (value, shown) in [(blocks, &self.seen.blocks), (used, &self.seen.used), (inodes, &self.seen.inodes)] {
            shown.store(value, Ordering::Relaxed);
        }
        self.seen.failed.store(self.failed, Ordering::Relaxed);
    }

    /// Lets go of the database. Nothing can be done any more.
    pub(crate) fn close(&mut self) {
        self.failed = true;
        if let Some(txn) = self.txn.open.take() {
            let _ = txn.abort();
        }
        self.db = None;
    }

    fn begin(&mut self) -> Result<()> {
        let db = self.db.as_ref().ok_or(Errno::IO)?;
        let mut txn = db.begin_write().map_err(fault)?;
        // Without it a database is walked as a whole after a crash.
        txn.set_quick_repair(true);
        self.txn.open = Some(txn);
        self.changes = 0;
        Ok(())
    }

    /// Runs one operation, which checks first and changes then. If it ends with an error after it began to change, the file system has failed.
    pub(crate) fn operation<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.failed {
            return Err(Errno::IO);
        }
        self.txn.touched.set(false);
        let result = operation(self);
        if self.txn.touched.get() {
            self.show();
            self.changes += 1;
            if let Err(errno) = &result {
                self.fail(&format!("an operation stopped half-way: {errno}"));
            }
        }
        result
    }

    /// Nothing is written from now on; what was not committed is gone with the next mount.
    pub(crate) fn fail(&mut self, why: &str) {
        if !self.failed {
            tracing::error!(why, "the file system has failed and must be mounted again");
        }
        self.failed = true;
        self.show();
        if let Some(txn) = self.txn.open.take() {
            let _ = txn.abort();
        }
    }

    /// Writes bitmaps and counters into the transaction, commits it and opens the next. Not durable before a flush of the volume.
    pub(crate) fn commit(&mut self) -> Result<()> {
        self.counters.commits += 1;
        self.show();
        self.alloc.write(&self.txn)?;
        {
            let mut table = self.txn.table(SUPER)?;
            for (name, value) in Counters::NAMES.into_iter().zip(self.counters.values()) {
                table.insert(name, value).map_err(fault)?;
            }
        }
        let txn = self.txn.open.take().ok_or(Errno::IO)?;
        txn.commit().map_err(fault)?;
        self.alloc.committed();
        self.begin()
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        if let Some(txn) = self.txn.open.take() {
            let _ = txn.abort();
        }
    }
}
