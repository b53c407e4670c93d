//! SMART attributes. Their numbers are common usage, not a standard: only those that makers agree on are read.

use super::super::bytes::{byte, little};
use super::super::judge::warn;
use super::{BLOCK, Identity};
use crate::report::{DriveHealth, HealthSource, Severity};

/// Both tables have 30 entries of 12 bytes from offset 2 on.
const ENTRIES: usize = 30;
const ENTRY: usize = 12;
const FIRST: usize = 2;
/// Thresholds that are none: never, and (a test value) always.
const NEVER: u8 = 0;
const TEST_VALUES: u8 = 0xfe;

/// Attributes of drives without moving parts whose normalised value is what is left of their life, in per cent.
const LIFE_LEFT: &[u8] = &[233, 231, 202, 177, 173];

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attribute {
    id: u8,
    /// Falling below the threshold announces a failure, not only age.
    prefailure: bool,
    /// Normalised: the higher, the better.
    value: u8,
    /// Six bytes of the maker's own.
    raw: u64,
}

impl Attribute {
    fn name(self) -> String {
        match self.id {
            1 => "read errors",
            3 => "spin-up time",
            4 => "starts and stops",
            5 => "reallocated sectors",
            7 => "seek errors",
            9 => "power-on hours",
            10 => "spin-up retries",
            12 => "power cycles",
            173 | 177 => "wear levelling",
            184 => "end-to-end errors",
            187 => "uncorrectable errors",
            190 | 194 => "temperature",
            196 => "reallocations",
            197 => "pending sectors",
            198 => "sectors that cannot be read offline",
            199 => "transfer errors",
            202 | 231 | 233 => "life left",
            id => return format!("attribute {id}"),
        }
        .into()
    }
}

/// Entries of a table that are in use.
fn entries(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    let all = (0..ENTRIES).filter_map(|n| table.get(FIRST + n * ENTRY..FIRST + (n + 1) * ENTRY));
    all.filter(|entry| byte(entry, 0).is_some_and(|id| id != 0))
}

/// All bytes of a block add up to nothing.
fn is_whole(block: &[u8]) -> bool {
    block.len() == BLOCK && block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

fn attributes(data: &[u8]) -> Vec<Attribute> {
    let attribute = |entry: &[u8]| {
        let (id, flags) = (byte(entry, 0)?, little(entry, 1, 2)?);
        Some(Attribute { id, prefailure: flags & 1 != 0, value: byte(entry, 3)?, raw: little(entry, 5, 6)? })
    };
    entries(data).filter_map(attribute).collect()
}

/// SMART READ DATA and SMART READ THRESHOLDS. What device statistics told already stays.
pub fn decode(data: &[u8], thresholds: &[u8], identity: &Identity, health: &mut DriveHealth) {
    if !is_whole(data) {
        health.note = Some("the drive's SMART data are not whole: their checksum is wrong".into());
        return;
    }
    health.source = Some(HealthSource::Ata);
    let all = attributes(data);
    let find = |id: u8| all.iter().find(|a| a.id == id);
    // Makers keep other things in the upper bytes.
    let count = |id: u8| find(id).map(|a| a.raw & 0xffff_ffff);
    let degrees = |id: u8| find(id).map(|a| (a.raw & 0xff) as i32).filter(|t| (1..=125).contains(t));
    fill(&mut health.temperature_c, degrees(194).or_else(|| degrees(190)));
    fill(&mut health.power_on_hours, count(9));
    fill(&mut health.power_cycles, count(12));
    fill(&mut health.reallocated_sectors, count(5));
    fill(&mut health.pending_sectors, count(197));
    fill(&mut health.media_errors, count(187).or_else(|| count(198)));
    fill(&mut health.unsafe_shutdowns, count(174).or_else(|| count(192)));
    if identity.solid_state {
        let left = LIFE_LEFT.iter().find_map(|id| find(*id)).map(|a| a.value).filter(|left| *left <= 100);
        fill(&mut health.wear_percent, left.map(|left| u16::from(100 - left)));
    }
    if is_whole(thresholds) {
        compare(&all, thresholds, health);
    }
}

fn fill<T>(place: &mut Option<T>, value: Option<T>) {
    if place.is_none() {
        *place = value;
    }
}

/// Warns of attributes that are at their threshold or below it.
fn compare(all: &[Attribute], thresholds: &[u8], health: &mut DriveHealth) {
    let threshold = |id: u8| {
        let entry = entries(thresholds).find(|entry| byte(entry, 0) == Some(id))?;
        byte(entry, 1).filter(|limit| *limit != NEVER && *limit < TEST_VALUES)
    };
    let low = all.iter().filter_map(|a| threshold(a.id).filter(|limit| a.value <= *limit).map(|limit| (*a, limit)));
    let low: Vec<(Attribute, u8)> = low.collect();
    let told = |prefailure: bool| {
        let of_kind = low.iter().filter(|(a, _)| a.prefailure == prefailure);
        let words: Vec<String> =
            of_kind.map(|(a, limit)| format!("{} at {}, threshold {limit}", a.name(), a.value)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    };
    if let Some(which) = told(true) {
        let cause = format!("SMART values announce a failure: {which}");
        warn(health, Severity::Critical, "attribute", &cause, "replace it (`ashlar disk replace`)");
    } else if let Some(which) = told(false) {
        let cause = format!("it is older than it is made for: {which}");
        warn(health, Severity::Warning, "attribute", &cause, "plan to replace it (`ashlar disk replace`)");
    }
}
