//! Sizes: libvirt's scaled integers, and sizes as people write and read them.
//!
//! Units are those of libvirt's `virScaleInteger`, in any case: `b`, `byte`, `bytes`; `k`, `m`,
//! `g`, `t`, `p`, `e` and these with `iB` for powers of 1024; with `B` for powers of 1000. All
//! arithmetic is checked; what does not fit 64 bits is an error.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use crate::error::Error;
use crate::xml::{Content, Element, Present, Reader};

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum SizeError {
    /// No number, or one with a sign or an exponent.
    #[error("'{0}' is not a size; write a number and a unit, as 8G or 512MiB")]
    Number(String),
    /// An unknown unit.
    #[error(
        "unknown unit '{0}'; known are b, bytes, k, KiB, KB and the same with M, G, T, P, E in \
         place of K"
    )]
    Unit(String),
    /// More than 64 bits of bytes.
    #[error("'{0}' is more than 2^64 - 1 bytes")]
    Overflow(String),
    /// A fraction that is no whole number of bytes.
    #[error("'{0}' is not a whole number of bytes")]
    Fraction(String),
}

/// Bytes in one of the named unit; the empty unit is `default`.
///
/// # Errors
/// [`SizeError::Unit`].
pub fn unit_bytes(unit: &str, default: u64) -> Result<u64, SizeError> {
    let lower = unit.to_ascii_lowercase();
    if lower.is_empty() {
        return Ok(default);
    }
    if matches!(lower.as_str(), "b" | "byte" | "bytes") {
        return Ok(1);
    }
    let unknown = || SizeError::Unit(unit.chars().take(40).collect());
    let mut chars = lower.chars();
    let power = match chars.next() {
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some('p') => 5,
        Some('e') => 6,
        _ => return Err(unknown()),
    };
    let base: u64 = match chars.as_str() {
        "" | "ib" => 1024,
        "b" => 1000,
        _ => return Err(unknown()),
    };
    base.checked_pow(power).ok_or_else(unknown)
}

/// A scaled integer as documents have it: `value` in `unit`, which is `default` bytes if absent.
///
/// # Errors
/// [`SizeError`].
pub fn scaled(value: &str, unit: Option<&str>, default: u64) -> Result<u64, SizeError> {
    let shown = || format!("{} {}", value.trim(), unit.unwrap_or_default());
    let digits = value.trim();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::Number(digits.chars().take(40).collect()));
    }
    let scale = unit_bytes(unit.unwrap_or_default(), default)?;
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale))
        .ok_or_else(|| SizeError::Overflow(shown().trim().chars().take(60).collect()))
}

/// A number of bytes, as people write it: `8G`, `512MiB`, `1.5T`, `4096`.
///
/// A bare number is bytes. [`fmt::Display`] prints the largest unit of 1024 that divides it, so
/// that nothing is lost; [`Size::human`] rounds as virsh does.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Size(pub u64);

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

impl Size {
    /// Reads a size whose bare numbers count `default` bytes (`setmem` takes KiB).
    ///
    /// # Errors
    /// [`SizeError`].
    pub fn parse(text: &str, default: u64) -> Result<Self, SizeError> {
        let shown = || text.chars().take(60).collect::<String>();
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let scale = unit_bytes(unit.trim(), default)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.is_empty() {
            if number.contains('.') {
                return Err(SizeError::Number(shown()));
            }
            return scaled(whole, Some(unit.trim()), default).map(Self);
        }
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(SizeError::Number(shown()));
        }
        let significant = fraction.trim_end_matches('0');
        let places = u32::try_from(significant.len()).map_err(|_| SizeError::Fraction(shown()))?;
        let divisor = 10u128
            .checked_pow(places)
            .filter(|_| places <= 18)
            .ok_or_else(|| SizeError::Fraction(shown()))?;
        let overflow = || SizeError::Overflow(shown());
        let whole: u64 = whole.parse().map_err(|_| overflow())?;
        let part: u64 = match significant {
            "" => 0,
            digits => digits.parse().map_err(|_| SizeError::Fraction(shown()))?,
        };
        let scaled_part = u128::from(part) * u128::from(scale);
        if !scaled_part.is_multiple_of(divisor) {
            return Err(SizeError::Fraction(shown()));
        }
        u64::try_from(scaled_part / divisor)
            .ok()
            .and_then(|rest| whole.checked_mul(scale)?.checked_add(rest))
            .map(Self)
            .ok_or_else(overflow)
    }

    /// Number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Two decimals in the unit that suits, as virsh shows it: `8.00 GiB`, `0.00 B`.
    pub fn human(self) -> String {
        let mut unit = UNITS[0];
        let mut divisor = 1u128;
        let mut candidate = 1u128;
        for name in UNITS {
            if u128::from(self.0) >= candidate {
                (unit, divisor) = (name, candidate);
            }
            candidate *= 1024;
        }
        let hundredths = (u128::from(self.0) * 100 + divisor / 2) / divisor;
        format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100)
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        Self::parse(text, 1)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = 0usize;
        let mut value = self.0;
        while value != 0 && value.is_multiple_of(1024) && unit + 1 < UNITS.len() {
            value /= 1024;
            unit += 1;
        }
        write!(f, "{value} {}", UNITS.get(unit).copied().unwrap_or("B"))
    }
}

fn read_scaled(mut reader: Reader<'_>, default: u64) -> Result<u64, Error> {
    let unit = reader.attribute("unit");
    let text = reader.text();
    let bytes = scaled(&text, unit, default)
        .map_err(|error| reader.invalid("", text.trim(), error.to_string()))?;
    reader.finish_bare()?;
    Ok(bytes)
}

/// An element with bytes in it: `<capacity unit='bytes'>`. Any unit is read, bytes if there is
/// none; bytes are printed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Content for Bytes {
    fn read(reader: Reader<'_>) -> Result<Self, Error> {
        read_scaled(reader, 1).map(Self)
    }

    fn write(&self, name: &str) -> Element {
        Element::new(name)
            .with("unit", "bytes")
            .with_text(self.0.to_string())
    }
}

impl Present for Bytes {}

/// An element with memory in it: `<memory unit='KiB'>`. Any unit is read, KiB if there is none,
/// rounded up to whole KiB as libvirt does; KiB are printed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Memory {
    /// Size in KiB.
    pub kib: u64,
}

impl Memory {
    /// From bytes, rounded up to whole KiB.
    pub fn from_bytes(bytes: u64) -> Self {
        Self {
            kib: bytes.div_ceil(1024),
        }
    }

    /// Size in bytes; `None` if that is more than 64 bits hold.
    pub fn bytes(self) -> Option<u64> {
        self.kib.checked_mul(1024)
    }
}

impl Content for Memory {
    fn read(reader: Reader<'_>) -> Result<Self, Error> {
        read_scaled(reader, 1024).map(Self::from_bytes)
    }

    fn write(&self, name: &str) -> Element {
        Element::new(name)
            .with("unit", "KiB")
            .with_text(self.kib.to_string())
    }
}

impl Present for Memory {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_those_of_libvirt() {
        for (unit, bytes) in [
            ("", 1),
            ("b", 1),
            ("bytes", 1),
            ("Byte", 1),
            ("KB", 1000),
            ("k", 1024),
            ("K", 1024),
            ("KiB", 1024),
            ("kib", 1024),
            ("MB", 1_000_000),
            ("M", 1 << 20),
            ("MiB", 1 << 20),
            ("G", 1 << 30),
            ("GB", 1_000_000_000),
            ("T", 1 << 40),
            ("TB", 1_000_000_000_000),
            ("P", 1 << 50),
            ("E", 1 << 60),
            ("EB", 1_000_000_000_000_000_000),
        ] {
            assert_eq!(scaled("1", Some(unit), 1), Ok(bytes), "{unit}");
        }
        assert_eq!(scaled("500000", None, 1024), Ok(512_000_000));
        for unit in ["X", "Ki", "KiBs", "Z", "kk", "ZiB"] {
            assert_eq!(
                scaled("1", Some(unit), 1),
                Err(SizeError::Unit(unit.to_owned()))
            );
        }
        for value in ["", "-1", "+1", "1.5", "0x10", "1e3", "one"] {
            assert!(matches!(scaled(value, None, 1), Err(SizeError::Number(_))));
        }
        for (value, unit) in [("16", "E"), ("18446744073709551616", "b"), ("19", "EB")] {
            assert!(matches!(
                scaled(value, Some(unit), 1),
                Err(SizeError::Overflow(_))
            ));
        }
    }

    #[test]
    fn people_write_sizes_in_many_ways() {
        for (text, bytes) in [
            ("8G", 8 << 30),
            ("8 GiB", 8 << 30),
            ("512MiB", 512 << 20),
            ("1.5T", 3 << 39),
            ("0.5k", 512),
            ("1.50G", 3 << 29),
            ("4096", 4096),
            ("10KB", 10_000),
            ("0", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        assert_eq!(Size::parse("512", 1024), Ok(Size(512 << 10)));
        for text in [
            "",
            "G",
            "1.2.3G",
            ".5G",
            "1.G",
            "-8G",
            "8Q",
            "1.3b",
            "16E",
            "15.99999E99",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!(Size(8 << 30).human(), "8.00 GiB");
        assert_eq!(Size(1000).human(), "1000.00 B");
        assert_eq!(Size(0).human(), "0.00 B");
        assert_eq!(Size(u64::MAX).human(), "16.00 EiB");
        assert_eq!(Size(8 << 30).to_string(), "8 GiB");
        assert_eq!(Size(1025).to_string(), "1025 B");
        assert_eq!(Memory::from_bytes(1).kib, 1);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes: u64) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn any_text_gives_a_size_or_an_error(text in ".{0,30}") {
            let _ = text.parse::<Size>();
        }
    }
}
