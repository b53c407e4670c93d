//! What `generate` uses of the engine.

pub use blockdev::codec::Codec;
pub use blockdev::env::Rng;
pub use blockdev::error::Result;
pub use blockdev::format::catalogue::{Catalogue, DiskErrors, DiskRecord, DiskTraffic, ScrubRecord, Service};
pub use blockdev::format::cursor::{COUNTER_LIMIT, Get};
pub use blockdev::format::label::Label;
pub use blockdev::format::layout::{EDGE, PoolGeometry};
pub use blockdev::format::page::*;
pub use blockdev::format::part::{Content, Item, Part};
pub use blockdev::format::record::*;
pub use blockdev::format::superblock::Superblock;
pub use blockdev::format::volume::*;
pub use blockdev::format::{FORMAT_VERSION, checksum};
pub use blockdev::report::Tolerance;
pub use blockdev::units::*;
