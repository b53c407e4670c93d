//! NVMe: the controller's identity and its SMART / Health log page (NVM Express Base Specification 2.0, 5.17.2.1 and 5.16.1.3).

use super::bytes::{byte, little, little_16, text};
use super::ioctl::Channel;
use super::judge::warn;
use crate::report::{DriveHealth, HealthSource, Severity};

/// Opcodes of the admin commands.
const GET_LOG_PAGE: u8 = 0x02;
const IDENTIFY: u8 = 0x06;
/// What Identify is to give: the controller (CNS 01h), 4096 bytes.
const CONTROLLER: u32 = 1;
const IDENTIFY_BYTES: usize = 4096;
/// SMART / Health Information, 512 bytes.
const HEALTH_LOG: u32 = 0x02;
const HEALTH_BYTES: usize = 512;
/// The log of the controller, not of one namespace.
const ALL_NAMESPACES: u32 = 0xffff_ffff;
/// A data unit is 1000 times 512 bytes.
const DATA_UNIT: u64 = 512_000;
/// 0 °C in kelvin, as NVMe rounds it.
const ZERO_CELSIUS: i32 = 273;

/// Asks the controller. What it refuses is told in the note.
pub fn read(channel: &dyn Channel) -> DriveHealth {
    let mut health = DriveHealth::default();
    let mut identity = vec![0; IDENTIFY_BYTES];
    match channel.nvme(IDENTIFY, 0, CONTROLLER, &mut identity) {
        Ok(()) => decode_identity(&identity, &mut health),
        Err(e) => health.note = Some(format!("the drive does not tell what it is: {e}")),
    }
    let mut log = vec![0; HEALTH_BYTES];
    // Dwords to read, less one, in the upper half.
    let dword_10 = HEALTH_LOG | (HEALTH_BYTES as u32 / 4 - 1) << 16;
    match channel.nvme(GET_LOG_PAGE, ALL_NAMESPACES, dword_10, &mut log) {
        Ok(()) => decode_log(&log, &mut health),
        Err(e) => health.note = Some(format!("the drive does not give its health log: {e}")),
    }
    health
}

fn celsius(data: &[u8], at: usize) -> Option<i32> {
    // 0 K is how a drive says that it has no such figure.
    let kelvin = little(data, at, 2).filter(|k| *k != 0)?;
    Some(i32::try_from(kelvin).ok()? - ZERO_CELSIUS)
}

/// Identify Controller.
pub fn decode_identity(data: &[u8], health: &mut DriveHealth) {
    let field = |from: usize, to: usize| data.get(from..to).and_then(text);
    health.serial = field(4, 24);
    health.model = field(24, 64);
    health.firmware = field(64, 72);
    health.temperature_warning_c = celsius(data, 266);
    health.temperature_critical_c = celsius(data, 268);
}

/// SMART / Health Information.
pub fn decode_log(data: &[u8], health: &mut DriveHealth) {
    health.source = Some(HealthSource::Nvme);
    health.temperature_c = celsius(data, 1);
    health.spare_percent = byte(data, 3);
    health.spare_threshold_percent = byte(data, 4);
    health.wear_percent = byte(data, 5).map(u16::from);
    health.read = little_16(data, 32).map(|units| units.saturating_mul(DATA_UNIT));
    health.written = little_16(data, 48).map(|units| units.saturating_mul(DATA_UNIT));
    health.power_cycles = little_16(data, 112);
    health.power_on_hours = little_16(data, 128);
    health.unsafe_shutdowns = little_16(data, 144);
    health.media_errors = little_16(data, 160);
    critical_warnings(byte(data, 0).unwrap_or(0), health);
}

/// The bits of the field Critical Warning.
fn critical_warnings(bits: u8, health: &mut DriveHealth) {
    const REPLACE: &str = "replace it (`ashlar disk replace`)";
    use Severity::{Critical, Warning};
    let known = [
        (Critical, "spare", "its spare blocks are below the threshold", REPLACE),
        (Warning, "temperature", "its temperature is out of bounds", "see to its cooling"),
        (Critical, "reliability", "its reliability is degraded by errors of its medium or inside it", REPLACE),
        (Critical, "read_only", "its medium takes no writes any more", REPLACE),
        (Critical, "backup", "what protects its volatile memory when power fails has failed", REPLACE),
        (Critical, "persistent_memory", "its persistent memory region is not reliable", REPLACE),
    ];
    for (bit, (severity, code, cause, action)) in known.into_iter().enumerate() {
        if bits & 1 << bit != 0 {
            warn(health, severity, code, cause, action);
        }
    }
    let others = bits >> known.len();
    if others != 0 {
        let cause = format!("it gives a critical warning that this version does not know ({bits:#04x})");
        warn(health, Critical, "unknown", &cause, "see its maker's documents, and replace it if in doubt");
    }
}

#[cfg(test)]
mod tests;
