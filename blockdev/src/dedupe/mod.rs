//! dedupe.
