//! Surviving drive failures: parity arithmetic, widths and stripe geometry, and the choice of drives for new extents.
//!
//! Arithmetic, layout and placement are pure: bytes and counts in memory. [`mod@array`], [`member`], [`rows`] and [`requests`] are what reads and writes disks;
//! none of it knows volumes.

pub mod array;
pub mod gf;
pub mod layout;
pub mod member;
pub mod parity;
pub mod placement;
pub mod requests;
pub mod rows;
mod simd;
