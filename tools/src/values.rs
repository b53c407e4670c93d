//! Values people type: sizes, times and names. The API checks by the same rules.

use std::time::Duration;

use blockdev::error::{Error, Result};
use blockdev::units::BLOCK_BYTES;

/// Largest volume, in bytes: 256 TiB.
pub const VOLUME_SIZE_MAX: u64 = 256 << 40;
/// Longest volume or pool name.
pub const NAME_LEN_MAX: usize = 63;

/// Reads a size such as `10G`, `1.5TiB`, `4096`. Suffixes are binary (K = KiB = 1024 bytes); the result is in bytes.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = |why: &str| {
        Error::invalid(format!("'{text}' is not a size: {why}; write for example 4096, 512M, 10G or 1.5TiB"))
    };
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let shift = match suffix.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "p" | "pib" => 50,
        "kb" | "mb" | "gb" | "tb" | "pb" => {
            return Err(bad("decimal units are not used here, KiB, MiB, GiB, TiB and PiB are"));
        }
        _ => return Err(bad("the unit is unknown")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(bad("a number is expected"));
    }
    let too_large = || bad("it is too large");
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        if fraction.len() > 12 {
            return Err(bad("it has too many decimals"));
        }
        let numerator: u128 = fraction.parse().map_err(|_| bad("a number is expected"))?;
        let scale = 10u128.pow(fraction.len() as u32);
        bytes += (numerator << shift) / scale;
    }
    u64::try_from(bytes).map_err(|_| too_large())
}

/// Reads a short time such as `20ms`, `500us`, `2s`; only 0 goes without a unit.
pub fn parse_delay(text: &str) -> Result<Duration> {
    let bad =
        |why: &str| Error::invalid(format!("'{text}' is not a delay: {why}; write for example 20ms, 500us, 2s or 0"));
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    if number.is_empty() {
        return Err(bad("a whole number is expected"));
    }
    let number: u64 = number.parse().map_err(|_| bad("it is too large"))?;
    let scale = match unit.trim_start() {
        "us" | "µs" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "" if number == 0 => 0,
        "" => return Err(bad("the unit is missing")),
        _ => return Err(bad("the unit is unknown")),
    };
    number.checked_mul(scale).map(Duration::from_micros).ok_or_else(|| bad("it is too large"))
}

/// Reads a time ago such as `90s`, `30m`, `2h` or `7d`.
pub fn parse_age(text: &str) -> Result<Duration> {
    seconds(text, "time ago").map(Duration::from_secs)
}

/// Reads a length of time such as `30m`, `2h`, `7d` or `4w`; only 0 goes without a unit. Seconds.
pub fn parse_span(text: &str) -> Result<u64> {
    if text.trim() == "0" { Ok(0) } else { seconds(text, "length of time") }
}

/// Reads a number with a unit of time; `what` it is, for people.
fn seconds(text: &str, what: &str) -> Result<u64> {
    let bad =
        |why: &str| Error::invalid(format!("'{text}' is no {what}: {why}; write for example 90s, 30m, 2h, 7d or 4w"));
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    if number.is_empty() {
        return Err(bad("a whole number is expected"));
    }
    let number: u64 = number.parse().map_err(|_| bad("it is too large"))?;
    let scale = match unit.trim_start() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        "" => return Err(bad("the unit is missing")),
        _ => return Err(bad("the unit is unknown")),
    };
    number.checked_mul(scale).ok_or_else(|| bad("it is too large"))
}

/// [`parse_size`] for a volume: also checks [`check_volume_size`].
pub fn parse_volume_size(text: &str) -> Result<u64> {
    let size = parse_size(text)?;
    check_volume_size(size)?;
    Ok(size)
}

/// A volume is a positive multiple of 4 KiB, at most 256 TiB.
pub fn check_volume_size(size: u64) -> Result<()> {
    if size == 0 {
        return Err(Error::invalid("a volume cannot have a size of 0"));
    }
    if size > VOLUME_SIZE_MAX {
        return Err(Error::invalid(format!("the size {size} is larger than the 256 TiB a volume can have")));
    }
    if !size.is_multiple_of(BLOCK_BYTES) {
        let next = size.next_multiple_of(BLOCK_BYTES);
        return Err(Error::invalid(format!("the size {size} is not a multiple of 4096 bytes; the next one is {next}")));
    }
    Ok(())
}

/// Names of volumes and pools: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`, so that they are safe as file names and in URIs.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let starts_well = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest_well = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if starts_well && rest_well && name.len() <= NAME_LEN_MAX {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} cannot be the name of a {what}: use 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ - and start with a letter or digit"
    )))
}

/// [`check_name`] for the command line.
pub fn parse_volume_name(name: &str) -> Result<String> {
    check_name("volume", name)?;
    Ok(name.to_owned())
}

/// [`check_name`] for the command line.
pub fn parse_pool_name(name: &str) -> Result<String> {
    check_name("pool", name)?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let cases: [(&str, u64); 14] = [
            ("0", 0),
            ("4096", 4096),
            ("4096b", 4096),
            ("4k", 4096),
            ("4 KiB", 4096),
            ("10G", 10 << 30),
            ("10gib", 10 << 30),
            ("1.5TiB", 3 << 39),
            ("0.5m", 1 << 19),
            ("2P", 2 << 50),
            ("1.000", 1),
            (" 7M ", 7 << 20),
            ("0.1k", 102),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            " ",
            "G",
            "-1",
            "+1",
            "1e9",
            "1..5G",
            "1.",
            ".5G",
            "1.2.3",
            "10GB",
            "10X",
            "1G5",
            "0x10",
            "١G",
            "18446744073709551616",
            "99999999999P",
            "1.0000000000001G",
            "340282366920938463463374607431768211456",
        ] {
            assert!(parse_size(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn delays_are_read() {
        let cases = [("0", 0), ("0s", 0), ("20ms", 20_000), ("500us", 500), ("7µs", 7), (" 2 s ", 2_000_000)];
        for (text, us) in cases {
            assert_eq!(parse_delay(text).unwrap(), Duration::from_micros(us), "{text}");
        }
        for text in ["", "ms", "20", "-1ms", "1.5ms", "2m", "20MS", "1ns", "18446744073709551616us", "18446744073710s"]
        {
            assert!(parse_delay(text).is_err(), "{text:?} was accepted");
        }
        assert!(parse_delay("20").unwrap_err().to_string().contains("unit is missing"));
    }

    #[test]
    fn ages_are_read() {
        let cases =
            [("90s", 90), ("30m", 1800), ("5 min", 300), ("2h", 7200), (" 7d ", 604_800), ("1w", 604_800), ("0s", 0)];
        for (text, seconds) in cases {
            assert_eq!(parse_age(text).unwrap(), Duration::from_secs(seconds), "{text}");
            assert_eq!(parse_span(text).unwrap(), seconds, "{text}");
        }
        assert_eq!(parse_span("0").unwrap(), 0);
        for text in ["", "h", "2", "-1h", "1.5h", "1y", "18446744073709551616s", "18446744073709551615d"] {
            assert!(parse_age(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn volume_sizes_have_bounds() {
        assert_eq!(parse_volume_size("256T").unwrap(), VOLUME_SIZE_MAX);
        for text in ["0", "1", "4097", "257T", "1023"] {
            assert!(parse_volume_size(text).is_err(), "{text}");
        }
        assert!(parse_volume_size("4097").unwrap_err().to_string().contains("8192"));
        assert!(check_volume_size(u64::MAX).unwrap_err().to_string().contains("256 TiB"));
    }

    #[test]
    fn names_are_checked() {
        let longest = "a".repeat(63);
        for name in ["a", "0", "db-1", "x_y.z", "A..b", longest.as_str()] {
            assert!(check_name("volume", name).is_ok(), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "ä", "a\n", "a\0", long.as_str()] {
            assert!(check_name("volume", name).is_err(), "{name:?}");
        }
    }
}
