//! One error type: a small matchable kind, what was being done and to what, and the source.

use std::fmt;

/// What went wrong, for callers that must decide (exit code, NBD errno, HTTP status).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong: a size, a name, a range.
    InvalidArgument,
    /// The named object does not exist.
    NotFound,
    /// An object of that name exists already.
    AlreadyExists,
    /// The object is in use in a way that excludes the request.
    Busy,
    /// No space for more data; reads, discards and deletions still work.
    NoSpace,
    /// A device answered with an error, and redundancy could not make up for it.
    Io,
    /// Data on disk does not match its checksum or its format, and redundancy could not make up for it.
    Corrupt,
    /// The target is read-only.
    ReadOnly,
    /// The request is valid but this build, kernel or object cannot do it.
    Unsupported,
    /// Too few disks to serve the pool, or the pool is stopped.
    Unavailable,
    /// Another writer has taken the pool over.
    Fenced,
}

/// An error with its context.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`; `message` says what was wrong, with which object, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// [`ErrorKind::Io`].
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, message)
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Puts the operation and its object in front of the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Adds context to a result.
pub trait Context<T> {
    /// Puts `what` in front of the error's message.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.context(what))
    }
}
