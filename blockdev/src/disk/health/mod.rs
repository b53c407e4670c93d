//! What a drive tells about itself: identity, wear, temperature, and whether it expects to fail.
//!
//! It is read past the engine, by a file of its own, and takes as long as the drive likes: callers use a thread they can do without. What drives
//! answer is decoded by functions that take any bytes.

use std::path::Path;
use std::time::SystemTime;

use crate::report::DriveHealth;

mod ata;
mod bytes;
mod device;
mod ioctl;
mod judge;
mod nvme;
mod scsi;

use device::Kind;

/// Asks the drive that `path`, a block device or a partition, lies on. Waits for its answers.
pub fn read(path: &Path) -> DriveHealth {
    let device = match device::find(path) {
        Ok(device) => device,
        Err(why) => return DriveHealth::not_reported(why),
    };
    let asked = match device.kind {
        Kind::Mute(why) => Err(why.to_owned()),
        Kind::Nvme => device.open().map(|file| nvme::read(&file)),
        Kind::Scsi => device.open().map(|file| if scsi::is_ata(&file) { ata::read(&file) } else { scsi::read(&file) }),
    };
    let mut health = asked.unwrap_or_else(DriveHealth::not_reported);
    health.capacity = device.capacity;
    health.serial = health.serial.or(device.serial);
    if health.source.is_some() {
        health.checked_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs());
    }
    judge::judge(&mut health);
    health
}
