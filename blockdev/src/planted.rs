//! Deliberately planted ordering bugs: each must be caught by the crash tests, which proves that they look closely enough.
//!
//! Outside the feature `planted-bugs` everything here is constant and compiles to nothing.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Log entries are acknowledged before they are on stable storage.
    LogNotDurable,
    /// Data disks are not flushed before the log refers to what was written to them.
    DataNotFlushed,
    /// A flush answers before the log was written.
    FlushAnswersEarly,
    /// The log is trimmed before the checkpoint that replaces it is durable.
    LogTrimmedEarly,
    /// Segments are reused before the checkpoint that freed them is durable.
    SegmentReusedEarly,
    /// Bytes of unfinished stripes are left out of the log.
    TailNotLogged,
    /// The superblock is written before the catalogue is durable.
    SuperblockBeforeCatalogue,
    /// A checkpoint contains changes made after its instant.
    CheckpointNotFrozen,
    /// Duplicates are shared without comparing bytes.
    NoVerify,
    /// A log entry is replayed although its checksum does not match.
    TornRecordAccepted,
    /// Replay skips the last record.
    ReplayShort,
    /// Records of one entry are applied in the wrong order.
    ReplayReordered,
    /// Parity is not written.
    ParityMissing,
    /// A column that missed a write is read as if it were current.
    StaleColumnRead,
    /// A move by the cleaner is applied even when the block was freed or has moved on.
    MoveUnconditional,
    /// Overwritten blocks keep their reference.
    ReferenceLeaked,
    /// A rebuilt column counts as whole before it is on stable storage.
    RebuildNotFlushed,
    /// A column is rebuilt from others without looking at checksums.
    RebuildUnverified,
    /// A scrub does not compare parity.
    ScrubNoParity,
    /// Writes that outlive the process leave their memory before the log has them.
    CarriedLetGoEarly,
    /// They keep the numbers they had.
    CarriedNumbersKept,
    /// What a volume shares with its snapshots is changed, and given back, as if it were its own.
    SnapshotNotKept,
    /// The reaper gives back what a version's child sees.
    ReaperBlind,
    /// What was handed over stays the property of the version that goes.
    CursorIgnored,
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
