//! The Dynamic Resiliency Engine: redundancy extents over distinct disks, parity, degraded reads.

pub mod array;
