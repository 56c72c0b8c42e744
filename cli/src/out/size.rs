//! Sizes as people write and read them.

use crate::explain::Code;
use crate::failure::{Failure, Result};

const UNITS: [(&str, u32); 7] = [
    ("B", 0),
    ("KiB", 1),
    ("MiB", 2),
    ("GiB", 3),
    ("TiB", 4),
    ("PiB", 5),
    ("EiB", 6),
];

/// The size with a binary unit and two digits, as virsh prints it: `1.00 MiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    human_with(bytes, " ")
}

/// The same with another separator.
#[must_use]
pub fn human_with(bytes: u64, separator: &str) -> String {
    let mut unit = "B";
    let mut divisor = 1_u128;
    for (name, exponent) in UNITS {
        let candidate = 1024_u128.pow(exponent);
        if u128::from(bytes) >= candidate {
            unit = name;
            divisor = candidate;
        }
    }
    let hundredths = (u128::from(bytes) * 100 + divisor / 2) / divisor;
    format!(
        "{}.{:02}{separator}{unit}",
        hundredths / 100,
        hundredths % 100
    )
}

/// Reads a size: a number with an optional unit. `K`, `M`, `G`… and `KiB`, `MiB`… are powers of
/// 1024, `KB`, `MB`… powers of 1000, no unit means bytes: libvirt's rule.
///
/// # Errors
/// Anything else, and sizes of 2^63 bytes or more.
pub fn parse_size(text: &str) -> Result<u64> {
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(split);
    let scale = scale(unit.trim()).ok_or_else(|| bad_size(text, "the unit is unknown"))?;
    let bytes = scaled(digits, scale).ok_or_else(|| bad_size(text, "it is no number"))?;
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| bad_size(text, "it is larger than 8 EiB"))
}

/// Reads a size that may have a sign: `+1G`, `-512M`. The sign is given back as `true` for minus.
///
/// # Errors
/// As [`parse_size`].
pub fn parse_delta(text: &str) -> Result<(bool, u64)> {
    match text.strip_prefix('-') {
        Some(rest) => Ok((true, parse_size(rest)?)),
        None => Ok((false, parse_size(text.strip_prefix('+').unwrap_or(text))?)),
    }
}

fn scale(unit: &str) -> Option<u128> {
    let lower = unit.to_ascii_lowercase();
    let letter = match lower.as_str() {
        "" | "b" | "byte" | "bytes" => return Some(1),
        _ => lower.chars().next()?,
    };
    let exponent = u32::try_from("kmgtpe".find(letter)?).ok()? + 1;
    match &lower[1..] {
        "" | "ib" => Some(1024_u128.pow(exponent)),
        "b" => Some(1000_u128.pow(exponent)),
        _ => None,
    }
}

/// `digits` times `scale`, exact for decimal fractions, rounded up to whole bytes.
fn scaled(digits: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 18 {
        return None;
    }
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let numerator: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = numerator.checked_mul(scale)?.div_ceil(denominator);
    whole.checked_mul(scale)?.checked_add(part)
}

fn bad_size(text: &str, why: &str) -> Failure {
    Failure::new(Code::E0011, format!("'{text}' is not a size"))
        .why(why)
        .fix("write a number and a unit: 10G, 512MiB, 1.5T, 1000000")
        .next("cenote explain E0011")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_libvirt_reads_them() {
        let table: [(&str, u64); 12] = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("1M", 1 << 20),
            ("1MiB", 1 << 20),
            ("1MB", 1_000_000),
            ("10 GiB", 10 << 30),
            ("1.5k", 1536),
            ("0.1K", 103),
            (".5K", 512),
            ("8g", 8 << 30),
            ("12b", 12),
            ("7E", 7 << 60),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text).ok(), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1X",
            "1.2.3",
            "8E",
            "99999999999999999999999",
            "0x10",
            "1GiBs",
            "١",
            "340282366920938463463374607431768211456E",
            "1e9",
            "∞",
            "kib",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_printed_as_virsh_prints_them() {
        assert_eq!(human(0), "0.00 B");
        assert_eq!(human(1 << 20), "1.00 MiB");
        assert_eq!(human(107_374_182_400), "100.00 GiB");
        assert_eq!(human(1536), "1.50 KiB");
        assert_eq!(human(u64::MAX), "16.00 EiB");
    }

    #[test]
    fn deltas_keep_their_sign() {
        assert_eq!(parse_delta("-1K").ok(), Some((true, 1024)));
        assert_eq!(parse_delta("+1K").ok(), Some((false, 1024)));
        assert_eq!(parse_delta("1K").ok(), Some((false, 1024)));
    }
}
