//! Whole appliances as people run them: the command, its daemon, real front ends and real clients of them.
//!
//! Each test makes its own laboratory and takes it away. `ASHLAR_KILL_ROUNDS` sets how often the daemon is killed (25).

mod bad_input;
mod changes;
mod crash;
mod disks;
mod estimate;
mod events;
mod filesystems;
mod fio;
mod full;
mod history;
mod images;
mod lab_faults;
mod lab_script;
mod memory;
mod nas;
mod nas_servers;
mod nbd;
mod protection;
mod quiesce;
mod replace;
mod restart;
mod scrub;
mod snapshots;
mod space;
mod tls;
mod tools;
mod upgrade;
