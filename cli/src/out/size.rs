//! Sizes as people write and read them: the model's rules, this program's errors.

use cenote_model::Size;

use crate::explain::Code;
use crate::failure::{Failure, Result};

/// The size with a binary unit and two digits, as virsh prints it: `1.00 MiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    Size(bytes).human()
}

/// Reads a size: a number with an optional unit. `K`, `M`, `G`… and `KiB`, `MiB`… are powers of
/// 1024, `KB`, `MB`… powers of 1000, no unit means bytes: libvirt's rule.
///
/// # Errors
/// Anything else, and sizes of 2^63 bytes or more.
pub fn parse_size(text: &str) -> Result<u64> {
    let size = Size::parse(text, 1).map_err(|error| bad_size(text, &error.to_string()))?;
    if i64::try_from(size.bytes()).is_err() {
        return Err(bad_size(text, "it is larger than 8 EiB"));
    }
    Ok(size.bytes())
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
        let table: [(&str, u64); 9] = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("1M", 1 << 20),
            ("1MiB", 1 << 20),
            ("1MB", 1_000_000),
            ("10 GiB", 10 << 30),
            ("1.5k", 1536),
            ("8g", 8 << 30),
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
            "1e9",
            "∞",
            "kib",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deltas_keep_their_sign() {
        assert_eq!(parse_delta("-1K").ok(), Some((true, 1024)));
        assert_eq!(parse_delta("+1K").ok(), Some((false, 1024)));
        assert_eq!(parse_delta("1K").ok(), Some((false, 1024)));
    }
}
