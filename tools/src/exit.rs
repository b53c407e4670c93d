//! Exit codes, stable for scripts, and the error every command ends with.

use std::fmt;
use std::io::IsTerminal;

use blockdev::error::{Error, ErrorKind};

use crate::output::Format;
use crate::wire::ErrorBody;

/// What the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed in a way no other code describes; the message tells.
    Failure = 1,
    /// The command line or an argument is wrong.
    Usage = 2,
    /// The named object does not exist.
    NotFound = 3,
    /// The object exists already or is in use.
    Conflict = 4,
    /// No space left.
    NoSpace = 5,
    /// No daemon answers.
    Unreachable = 6,
    /// Data on disk is damaged, or `pool check` found something.
    Corrupt = 7,
    /// This build, kernel or object cannot do it.
    Unsupported = 8,
    /// The pool cannot be served: too few disks, stopped, or taken over by another writer.
    Unavailable = 9,
}

/// The table shown at the end of `--help`.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  failed; the message tells why
  2  wrong command line or argument
  3  the named object does not exist
  4  it exists already, or is in use
  5  no space left
  6  no daemon is running there, or it does not answer
  7  damaged data (`pool check` found something)
  8  not supported by this build, kernel or object
  9  the pool cannot be served (too few disks, stopped, or taken over)";

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// Short stable word, as in the API's errors.
    pub kind: String,
    /// For people.
    pub message: String,
}

/// Result of a command.
pub type CommandResult<T = ()> = Result<T, Failure>;

impl Failure {
    /// No daemon to talk to.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, kind: "unreachable".into(), message: message.into() }
    }

    /// The arguments are wrong in a way the parser could not see.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, kind: "invalid_argument".into(), message: message.into() }
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failure, kind: "failure".into(), message: message.into() }
    }

    /// An object that exists already or is in use.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { exit: Exit::Conflict, kind: "busy".into(), message: message.into() }
    }

    /// An object that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { exit: Exit::NotFound, kind: "not_found".into(), message: message.into() }
    }

    /// Puts the operation and its object in front of the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The code of an error the API answered with.
    pub fn from_body(body: ErrorBody) -> Self {
        Self { exit: exit_of(body.kind), kind: kind_word(body.kind), message: body.message }
    }

    /// Shows the failure on standard error: plain for people, JSON when the command was asked for JSON.
    pub fn report(&self, format: Format) {
        match format {
            Format::Json => {
                eprintln!("{}", serde_json::json!({ "error": { "kind": self.kind, "message": self.message } }))
            }
            Format::Table if std::io::stderr().is_terminal() => eprintln!("\x1b[1;31merror:\x1b[0m {}", self.message),
            Format::Table => eprintln!("error: {}", self.message),
        }
    }
}

/// The exit code for an engine error.
pub fn exit_of(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::InvalidArgument => Exit::Usage,
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::AlreadyExists | ErrorKind::Busy => Exit::Conflict,
        ErrorKind::NoSpace => Exit::NoSpace,
        ErrorKind::Corrupt => Exit::Corrupt,
        ErrorKind::Unsupported => Exit::Unsupported,
        ErrorKind::Unavailable | ErrorKind::Fenced => Exit::Unavailable,
        ErrorKind::Io | ErrorKind::ReadOnly => Exit::Failure,
    }
}

/// The word of a kind, as in JSON.
fn kind_word(kind: ErrorKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "failure".into(),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { exit: exit_of(error.kind()), kind: kind_word(error.kind()), message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_code_and_word() {
        let cases = [
            (ErrorKind::InvalidArgument, Exit::Usage, "invalid_argument"),
            (ErrorKind::NotFound, Exit::NotFound, "not_found"),
            (ErrorKind::AlreadyExists, Exit::Conflict, "already_exists"),
            (ErrorKind::Busy, Exit::Conflict, "busy"),
            (ErrorKind::NoSpace, Exit::NoSpace, "no_space"),
            (ErrorKind::Io, Exit::Failure, "io"),
            (ErrorKind::Corrupt, Exit::Corrupt, "corrupt"),
            (ErrorKind::Unsupported, Exit::Unsupported, "unsupported"),
            (ErrorKind::Unavailable, Exit::Unavailable, "unavailable"),
            (ErrorKind::Fenced, Exit::Unavailable, "fenced"),
        ];
        for (kind, exit, word) in cases {
            let failure = Failure::from(Error::new(kind, "x"));
            assert_eq!((failure.exit, failure.kind.as_str()), (exit, word));
        }
    }

    #[test]
    fn the_codes_in_the_help_are_the_codes_of_the_program() {
        let all = [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::NotFound,
            Exit::Conflict,
            Exit::NoSpace,
            Exit::Unreachable,
            Exit::Corrupt,
            Exit::Unsupported,
            Exit::Unavailable,
        ];
        let lines: Vec<&str> = HELP.lines().skip(1).collect();
        assert_eq!(lines.len(), all.len());
        for (line, exit) in lines.iter().zip(all) {
            assert!(line.trim_start().starts_with(&format!("{} ", exit as u8)), "{line}");
        }
    }
}
