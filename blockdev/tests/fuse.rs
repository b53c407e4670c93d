//! The FUSE front end and loop devices over its files, through the kernel. Needs root, /dev/fuse and loop devices;
//! each test says so and passes where they are missing.

#[path = "fuse/files.rs"]
mod files;
#[path = "fuse/lifecycle.rs"]
mod lifecycle;
#[path = "fuse/loops.rs"]
mod loops;
#[path = "fuse/probe.rs"]
mod probe;
#[path = "../../tests/src/skip.rs"]
mod skip;
#[path = "fuse/support.rs"]
mod support;
