//! SCSI: identity by INQUIRY and health by log pages (SPC-4 6.6, 6.8 and 7.3, SBC-3 6.4).

use super::bytes::{big, byte, text};
use super::ioctl::Channel;
use super::judge::warn;
use crate::report::{DriveHealth, HealthSource, Severity};

/// SCSI commands.
const INQUIRY: u8 = 0x12;
const LOG_SENSE: u8 = 0x4d;
/// Vital product data: serial number, and what there is about an ATA drive behind a translation.
const SERIAL: u8 = 0x80;
const ATA_INFORMATION: u8 = 0x89;
/// Cumulative values.
const CUMULATIVE: u8 = 0x40;
/// Log pages.
const LIST: u8 = 0x00;
const WRITE_ERRORS: u8 = 0x02;
const READ_ERRORS: u8 = 0x03;
const VERIFY_ERRORS: u8 = 0x05;
const TEMPERATURE: u8 = 0x0d;
const SOLID_STATE: u8 = 0x11;
const BACKGROUND_SCAN: u8 = 0x15;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x2f;
const PAGES: &[u8] =
    &[WRITE_ERRORS, READ_ERRORS, VERIFY_ERRORS, TEMPERATURE, SOLID_STATE, BACKGROUND_SCAN, INFORMATIONAL_EXCEPTIONS];

/// Bytes that are asked for.
const INQUIRY_BYTES: usize = 96;
const LOG_BYTES: usize = 4096;

fn inquiry(channel: &dyn Channel, page: Option<u8>, len: usize) -> Option<Vec<u8>> {
    let command = [INQUIRY, u8::from(page.is_some()), page.unwrap_or(0), (len >> 8) as u8, len as u8, 0];
    command_for(channel, &command, len)
}

fn log(channel: &dyn Channel, page: u8) -> Option<Vec<u8>> {
    let [high, low] = (LOG_BYTES as u16).to_be_bytes();
    let data = command_for(channel, &[LOG_SENSE, 0, CUMULATIVE | page, 0, 0, 0, 0, high, low, 0], LOG_BYTES)?;
    // The lower six bits of a page's first byte are its number.
    byte(&data, 0).filter(|number| number & 0x3f == page).map(|_| data)
}

fn command_for(channel: &dyn Channel, command: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut data = vec![0; len];
    let answer = channel.scsi(command, &mut data).ok().filter(|answer| answer.status == 0)?;
    data.truncate(answer.len);
    Some(data)
}

/// Whether an ATA drive is behind it, which tells more in its own language.
pub fn is_ata(channel: &dyn Channel) -> bool {
    let standard = inquiry(channel, None, INQUIRY_BYTES).unwrap_or_default();
    let named = standard.get(8..16) == Some(b"ATA     ");
    // Byte 1 of vital product data is the number of the page.
    named || inquiry(channel, Some(ATA_INFORMATION), 572).is_some_and(|page| byte(&page, 1) == Some(ATA_INFORMATION))
}

/// Asks the drive. What it refuses is told in the note.
pub fn read(channel: &dyn Channel) -> DriveHealth {
    let mut health = DriveHealth::default();
    match inquiry(channel, None, INQUIRY_BYTES) {
        Some(data) => decode_inquiry(&data, &mut health),
        None => {
            health.note = Some("the drive does not tell what it is: it refuses INQUIRY".into());
            return health;
        }
    }
    health.serial = inquiry(channel, Some(SERIAL), 255).and_then(|page| decode_serial(&page));
    let list = log(channel, LIST).map(|data| listed(&data)).unwrap_or_default();
    for page in PAGES.iter().filter(|page| list.contains(page)) {
        if let Some(data) = log(channel, *page) {
            decode_log(*page, &data, &mut health);
        }
    }
    if health.source.is_none() {
        health.note = Some("the drive has no log pages about its health".into());
    }
    health
}

/// Standard INQUIRY data.
pub fn decode_inquiry(data: &[u8], health: &mut DriveHealth) {
    let field = |from: usize, to: usize| data.get(from..to).and_then(text);
    health.model = match (field(8, 16), field(16, 32)) {
        (Some(vendor), Some(product)) => Some(format!("{vendor} {product}")),
        (vendor, product) => product.or(vendor),
    };
    health.firmware = field(32, 36);
}

/// The unit serial number.
pub fn decode_serial(page: &[u8]) -> Option<String> {
    if byte(page, 1)? != SERIAL {
        return None;
    }
    let end = 4 + usize::from(byte(page, 3)?);
    text(page.get(4..end.min(page.len()))?)
}

/// Numbers of the log pages there are.
pub fn listed(data: &[u8]) -> Vec<u8> {
    content(data).iter().map(|number| number & 0x3f).collect()
}

/// A page without its header of four bytes, of which the last two are its length.
fn content(data: &[u8]) -> &[u8] {
    let len = big(data, 2, 2).unwrap_or(0) as usize;
    data.get(4..).map(|rest| &rest[..len.min(rest.len())]).unwrap_or_default()
}

/// Parameters of a page: code and value.
fn parameters(data: &[u8]) -> Vec<(u64, &[u8])> {
    let (mut rest, mut found) = (content(data), Vec::new());
    while let (Some(code), Some(len)) = (big(rest, 0, 2), byte(rest, 3)) {
        let end = 4 + usize::from(len);
        let Some(value) = rest.get(4..end) else { break };
        found.push((code, value));
        rest = &rest[end..];
    }
    found
}

/// Degrees Celsius; 255 is none.
fn degrees(value: &[u8], at: usize) -> Option<i32> {
    byte(value, at).filter(|t| *t != 0xff).map(i32::from)
}

/// One log page.
pub fn decode_log(page: u8, data: &[u8], health: &mut DriveHealth) {
    let all = parameters(data);
    let parameter = |code: u64| all.iter().find(|(c, _)| *c == code).map(|(_, value)| *value);
    if !all.is_empty() {
        health.source = Some(HealthSource::Scsi);
    }
    match page {
        WRITE_ERRORS | READ_ERRORS | VERIFY_ERRORS => {
            // Errors that could not be corrected.
            if let Some(errors) = parameter(6).and_then(|value| big(value, 0, value.len())) {
                health.media_errors = Some(health.media_errors.unwrap_or(0).saturating_add(errors));
            }
        }
        TEMPERATURE => {
            health.temperature_c = parameter(0).and_then(|value| degrees(value, 1)).or(health.temperature_c);
            health.temperature_critical_c = parameter(1).and_then(|value| degrees(value, 1));
        }
        SOLID_STATE => health.wear_percent = parameter(1).and_then(|value| byte(value, 3)).map(u16::from),
        BACKGROUND_SCAN => health.power_on_hours = parameter(0).and_then(|v| big(v, 0, 4)).map(|minutes| minutes / 60),
        INFORMATIONAL_EXCEPTIONS => {
            if let Some(value) = parameter(0) {
                health.temperature_c = health.temperature_c.or(degrees(value, 2).filter(|t| *t != 0));
                exception(byte(value, 0).unwrap_or(0), byte(value, 1).unwrap_or(0), health);
            }
        }
        _ => {}
    }
}

/// An informational exception, by additional sense code and its qualifier.
fn exception(code: u8, qualifier: u8, health: &mut DriveHealth) {
    const REPLACE: &str = "replace it (`ashlar disk replace`)";
    match (code, qualifier) {
        (0x00, _) | (0x5d, 0xff) => {}
        (0x5d, _) => {
            let cause = format!("it expects to fail soon (sense {code:02x}/{qualifier:02x})");
            warn(health, Severity::Critical, "failing", &cause, REPLACE);
        }
        (0x0b, 0x01) => {
            warn(health, Severity::Warning, "temperature", "its temperature is out of bounds", "see to its cooling")
        }
        _ => {
            let cause =
                format!("it gives a warning that this version does not know (sense {code:02x}/{qualifier:02x})");
            warn(health, Severity::Warning, "unknown", &cause, "see its maker's documents");
        }
    }
}

#[cfg(test)]
mod tests;
