//! What the integration tests share: the built command, bounded processes, laboratories that always go away, checks for tools.
//!
//! The tests themselves are in `tests/tests/`, one binary by kind.

pub mod binary;
pub mod lab;
pub mod process;
pub mod require;
pub mod skip;

pub use binary::ashlar;
pub use lab::Lab;
pub use process::{Output, run};
