//! The device statistics log, where a drive tells in standard terms what SMART attributes only hint at.

use super::super::bytes::{byte, little};
use super::super::ioctl::Channel;
use super::{Command, Identity, READ_LOG_EXT};
use crate::report::{DriveHealth, HealthSource};

/// Logs: the directory of all logs, and the device statistics.
const DIRECTORY: u8 = 0x00;
const DEVICE_STATISTICS: u8 = 0x04;
/// Pages of the device statistics.
const LIST: u8 = 0x00;
const GENERAL: u8 = 0x01;
const ROTATING_MEDIA: u8 = 0x03;
const GENERAL_ERRORS: u8 = 0x04;
const TEMPERATURE: u8 = 0x05;
const SOLID_STATE: u8 = 0x07;

fn page(channel: &dyn Channel, log: u8, page: u8) -> Option<Vec<u8>> {
    let command = Command { command: READ_LOG_EXT, count: 1, lba: [log, page, 0], extended: true, feature: 0 };
    command.read(channel).ok()
}

/// Asks for the pages that the drive says it has.
pub fn read(channel: &dyn Channel, identity: &Identity, health: &mut DriveHealth) {
    // A command for a log that is not there would count as an error of the drive.
    let pages = page(channel, DIRECTORY, 0).and_then(|d| little(&d, usize::from(DEVICE_STATISTICS) * 2, 2));
    if pages.is_none_or(|pages| pages == 0) {
        return;
    }
    let Some(list) = page(channel, DEVICE_STATISTICS, LIST) else { return };
    for number in listed(&list) {
        if matches!(number, GENERAL | ROTATING_MEDIA | GENERAL_ERRORS | TEMPERATURE | SOLID_STATE)
            && let Some(data) = page(channel, DEVICE_STATISTICS, number)
        {
            decode(number, &data, identity, health);
        }
    }
}

/// Numbers of the pages there are.
pub fn listed(data: &[u8]) -> Vec<u8> {
    let count = usize::from(byte(data, 8).unwrap_or(0));
    (0..count).filter_map(|n| byte(data, 9 + n)).collect()
}

/// A statistic of up to `len` bytes, if the drive has it and it is valid: the upper bits of its eight bytes say so.
fn statistic(data: &[u8], at: usize, len: usize) -> Option<u64> {
    const SUPPORTED_AND_VALID: u8 = 0xc0;
    let flags = byte(data, at.checked_add(7)?)?;
    if flags & SUPPORTED_AND_VALID == SUPPORTED_AND_VALID { little(data, at, len) } else { None }
}

/// One page.
pub fn decode(number: u8, data: &[u8], identity: &Identity, health: &mut DriveHealth) {
    // The third byte of a page is its own number.
    if byte(data, 2) != Some(number) {
        return;
    }
    health.source = Some(HealthSource::Ata);
    let degrees = |at: usize| statistic(data, at, 1).map(|t| i32::from(t as u8 as i8));
    let bytes = |at: usize| statistic(data, at, 6).map(|sectors| sectors.saturating_mul(identity.sector));
    match number {
        GENERAL => {
            health.power_cycles = statistic(data, 8, 4);
            health.power_on_hours = statistic(data, 16, 4);
            health.written = bytes(24);
            health.read = bytes(40);
        }
        ROTATING_MEDIA => health.reallocated_sectors = statistic(data, 32, 4),
        GENERAL_ERRORS => health.media_errors = statistic(data, 8, 4),
        TEMPERATURE => {
            health.temperature_c = degrees(8);
            health.temperature_critical_c = degrees(88);
        }
        SOLID_STATE => health.wear_percent = statistic(data, 8, 1).map(|used| used as u16),
        _ => {}
    }
}
