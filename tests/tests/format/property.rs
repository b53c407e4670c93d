//! What holds of every decoder, whatever it is given.

use blockdev::error::ErrorKind;

use crate::generate::Kind;

/// Bytes are refused as damaged, or what was read of them is written and read again alike. Whether they were taken.
pub fn holds(kind: &Kind, bytes: &[u8]) -> bool {
    match (kind.read)(bytes) {
        Err(e) => {
            let allowed = [ErrorKind::Corrupt, ErrorKind::NotFound, ErrorKind::Unsupported];
            assert!(allowed.contains(&e.kind()), "{}: refused as {:?}: {e}", kind.name, e.kind());
            false
        }
        Ok(written) => {
            let again = (kind.read)(&written)
                .unwrap_or_else(|e| panic!("{}: what was accepted cannot be read again: {e}", kind.name));
            assert_eq!(again, written, "{}: what was accepted changes when it is written again", kind.name);
            true
        }
    }
}
