//! Segments: redundancy extents used as append-only containers of frames.

pub mod appender;
pub mod table;
