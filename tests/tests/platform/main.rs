//! The appliance on a real kernel: block devices, its NBD client, ublk, device mapper, file systems, drives that are unplugged.
//!
//! They run in the virtual machine of `scripts/vm.sh` (`make test-vm`), one at a time, and are skipped elsewhere: they take its drives, modules
//! and mounts for themselves. `docs/design/0009-real-kernel-tests.md` tells what the machine has.

mod appliance;
mod drives;
mod filesystems;
mod health;
mod kill;
mod lvm;
mod nfs;
mod ublk;
mod ublk_restart;
mod ublk_sectors;
mod ublk_trouble;
mod unanswered;
mod unplug;
mod upgrade;
