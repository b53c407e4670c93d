//! Deliberately planted bugs: each must be caught by the tests against the model, which proves that they look closely enough.
//!
//! Outside the feature `planted-bugs` everything here is constant and compiles to nothing.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Blocks are given out again before the commit that freed them.
    GivenOutEarly,
    /// Blocks are discarded before the commit that freed them.
    DiscardedEarly,
    /// Blocks are a file's before they were written.
    NotWrittenFirst,
    /// What lies beyond the end of a file that grows is not zeroed.
    NotZeroed,
    /// Attributes in memory are left out of a commit.
    AttributesLeftOut,
    /// Bitmaps are left out of a commit.
    BitmapsLeftOut,
    /// An answered `fsync` has not committed.
    FsyncNotCommitted,
    /// An answered `fsync` has not flushed.
    FsyncNotFlushed,
    /// `fdatasync` leaves out that a file has grown.
    FdatasyncWithoutSize,
    /// What has lost its last name is not listed to be freed.
    OrphanNotListed,
    /// A commit comes in the middle of a rename.
    RenameInTwo,
    /// Names that share a hash are taken for the same.
    HashIsName,
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug on this thread, or removes it.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.with(|p| p.set(bug));
}

/// Whether a bug is planted.
#[cfg(feature = "planted-bugs")]
pub fn active(bug: Bug) -> bool {
    PLANTED.with(|p| p.get() == Some(bug))
}

/// Whether a bug is planted: never in this build.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn active(_bug: Bug) -> bool {
    false
}
