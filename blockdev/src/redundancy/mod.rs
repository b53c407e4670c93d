//! Surviving drive failures: parity arithmetic, widths and stripe geometry, and the choice of drives for new extents.
//!
//! Everything here is pure: it works on bytes and counts in memory and knows neither disks nor the catalogue.

pub mod array;
pub mod gf;
pub mod layout;
pub mod member;
pub mod parity;
pub mod placement;
pub mod requests;
pub mod rows;
mod simd;
