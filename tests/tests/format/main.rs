//! The format on disk from outside: golden images, long fuzzing of the decoders, and whole disks that something is wrong with.

mod fuzz;
#[path = "../../../blockdev/src/format/tests/generate.rs"]
mod generate;
mod golden;
mod imports;
mod property;
mod whole_disk;
