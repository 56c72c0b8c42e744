//! The overwriting methods, each as its table of passes.
//!
//! The names are libvirt's `virStorageVolWipeAlgorithm`; the tables are those
//! of scrub(1), section *SCRUB METHODS*, which libvirt hands the work to, and
//! of the papers named at each. `docs/wiping.md` prints them with their
//! sources. Every method is followed by reading back its last pass, so the
//! "verify" step that some texts count as a pass of its own is not in a table.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Error;

/// What one pass writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// The byte at offset `o` of the file is `pattern[o % pattern.len()]`;
    /// all patterns are one or three bytes long.
    Pattern(&'static [u8]),
    /// The AES-256-CTR key stream of this pass, see [`KeyStream`](super::KeyStream).
    Random,
}

/// The pattern that `text` names in hexadecimal. Patterns live in the tables
/// alone, so reading one back means finding it there.
pub(super) fn known_pattern(text: &str) -> Option<&'static [u8]> {
    let all = Algorithm::ALL
        .iter()
        .flat_map(|algorithm| algorithm.passes());
    all.filter_map(|pass| match pass {
        Pass::Pattern(bytes) => Some(*bytes),
        Pass::Random => None,
    })
    .find(|bytes| super::hex::encode(bytes) == text)
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Pattern(bytes) => {
                f.write_str("0x")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// A method of wiping, by libvirt's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// One pass of zeroes.
    Zero,
    /// One pass of random data. The default.
    #[default]
    Random,
    /// NNSA Policy Letter NAP-14.1-C (XVI-8): random twice, then zeroes.
    Nnsa,
    /// DoD 5220.22-M section 8-306 (d): a character, its complement, a random
    /// character; in scrub(1)'s order random, zeroes, ones.
    Dod,
    /// The German BSI's nine passes: ones, then a wandering zero bit.
    Bsi,
    /// Peter Gutmann, "Secure Deletion of Data from Magnetic and Solid-State
    /// Memory", USENIX Security 1996, table 1: 35 passes.
    Gutmann,
    /// Bruce Schneier, "Applied Cryptography", 1996: zeroes, ones, five times
    /// random.
    Schneier,
    /// Roy Pfitzner: seven random passes.
    Pfitzner7,
    /// Roy Pfitzner: thirty-three random passes.
    Pfitzner33,
    /// No overwriting: the device or file system is asked to forget the
    /// blocks, and what it answers afterwards is read and reported.
    Trim,
}

const ZEROES: Pass = Pass::Pattern(&[0x00]);
const ONES: Pass = Pass::Pattern(&[0xff]);
const R: Pass = Pass::Random;

const fn p(bytes: &'static [u8]) -> Pass {
    Pass::Pattern(bytes)
}

const BSI: [Pass; 9] = [
    ONES,
    p(&[0xfe]),
    p(&[0xfd]),
    p(&[0xfb]),
    p(&[0xf7]),
    p(&[0xef]),
    p(&[0xdf]),
    p(&[0xbf]),
    p(&[0x7f]),
];

/// The paper leaves the order of passes 5 to 31 to chance; they stand here in
/// the order of its table, so that two records of a wipe can be compared.
#[rustfmt::skip]
const GUTMANN: [Pass; 35] = [
    R, R, R, R,
    p(&[0x55]), p(&[0xaa]),
    p(&[0x92, 0x49, 0x24]), p(&[0x49, 0x24, 0x92]), p(&[0x24, 0x92, 0x49]),
    ZEROES, p(&[0x11]), p(&[0x22]), p(&[0x33]), p(&[0x44]), p(&[0x55]), p(&[0x66]), p(&[0x77]),
    p(&[0x88]), p(&[0x99]), p(&[0xaa]), p(&[0xbb]), p(&[0xcc]), p(&[0xdd]), p(&[0xee]), ONES,
    p(&[0x92, 0x49, 0x24]), p(&[0x49, 0x24, 0x92]), p(&[0x24, 0x92, 0x49]),
    p(&[0x6d, 0xb6, 0xdb]), p(&[0xb6, 0xdb, 0x6d]), p(&[0xdb, 0x6d, 0xb6]),
    R, R, R, R,
];

impl Algorithm {
    /// Every method, in libvirt's order.
    pub const ALL: [Self; 10] = [
        Self::Zero,
        Self::Nnsa,
        Self::Dod,
        Self::Bsi,
        Self::Gutmann,
        Self::Schneier,
        Self::Pfitzner7,
        Self::Pfitzner33,
        Self::Random,
        Self::Trim,
    ];

    /// The passes in order; empty for [`Algorithm::Trim`] alone.
    pub fn passes(self) -> &'static [Pass] {
        match self {
            Self::Zero => &[ZEROES],
            Self::Random => &[R],
            Self::Nnsa => &[R, R, ZEROES],
            Self::Dod => &[R, ZEROES, ONES],
            Self::Bsi => &BSI,
            Self::Gutmann => &GUTMANN,
            Self::Schneier => &[ZEROES, ONES, R, R, R, R, R],
            Self::Pfitzner7 => &[R; 7],
            Self::Pfitzner33 => &[R; 33],
            Self::Trim => &[],
        }
    }

    /// libvirt's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Random => "random",
            Self::Nnsa => "nnsa",
            Self::Dod => "dod",
            Self::Bsi => "bsi",
            Self::Gutmann => "gutmann",
            Self::Schneier => "schneier",
            Self::Pfitzner7 => "pfitzner7",
            Self::Pfitzner33 => "pfitzner33",
            Self::Trim => "trim",
        }
    }

    /// Where the method comes from, for reports and certificates.
    pub fn source(self) -> &'static str {
        match self {
            Self::Zero => "one pass of zeroes",
            Self::Random => "one pass of an AES-256-CTR key stream",
            Self::Nnsa => "NNSA NAP-14.1-C (XVI-8)",
            Self::Dod => "DoD 5220.22-M section 8-306 (d), in scrub(1)'s order",
            Self::Bsi => "BSI, nine passes, as scrub(1) has them",
            Self::Gutmann => "Gutmann, USENIX Security 1996, table 1",
            Self::Schneier => "Schneier, Applied Cryptography, 1996",
            Self::Pfitzner7 => "Pfitzner, seven random passes",
            Self::Pfitzner33 => "Pfitzner, thirty-three random passes",
            Self::Trim => "discard request to the device or file system",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Commands of a drive's own firmware that a user may ask for by name. They
/// act on whole drives, below volumes, and are not built.
const FIRMWARE: [&str; 8] = [
    "ata-sanitize",
    "ata-secure-erase",
    "ata-enhanced-secure-erase",
    "nvme-sanitize",
    "nvme-format",
    "nvme-crypto-erase",
    "scsi-sanitize",
    "sanitize",
];

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        if let Some(found) = Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
        {
            return Ok(found);
        }
        if FIRMWARE.contains(&name) {
            return Err(Error::FirmwareCommand {
                name: name.to_owned(),
            });
        }
        Err(Error::UnknownAlgorithm {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(algorithm: Algorithm) -> String {
        algorithm
            .passes()
            .iter()
            .map(Pass::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// scrub(1) prints the table it follows with `-n` (dry run); this is what
    /// its 2.6.1 prints, and the unit under test must agree with the peer that
    /// libvirt runs. `tests/wipe_peers.rs` asks the installed program itself.
    #[test]
    fn tables_are_the_published_ones() {
        assert_eq!(table(Algorithm::Nnsa), "random random 0x00");
        assert_eq!(table(Algorithm::Dod), "random 0x00 0xff");
        assert_eq!(
            table(Algorithm::Bsi),
            "0xff 0xfe 0xfd 0xfb 0xf7 0xef 0xdf 0xbf 0x7f"
        );
        assert_eq!(
            table(Algorithm::Schneier),
            "0x00 0xff random random random random random"
        );
        assert_eq!(Algorithm::Gutmann.passes().len(), 35);
        assert_eq!(Algorithm::Pfitzner7.passes().len(), 7);
        assert_eq!(Algorithm::Pfitzner33.passes().len(), 33);
        assert!(table(Algorithm::Gutmann).starts_with(
            "random random random random 0x55 0xaa 0x924924 0x492492 0x249249 0x00 0x11"
        ));
        assert!(
            table(Algorithm::Gutmann)
                .ends_with("0x6db6db 0xb6db6d 0xdb6db6 random random random random")
        );
    }

    #[test]
    fn names_round_trip_and_firmware_commands_are_named() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.name().parse::<Algorithm>().unwrap(), algorithm);
        }
        for name in FIRMWARE {
            let error = name.parse::<Algorithm>().unwrap_err();
            assert!(matches!(error, Error::FirmwareCommand { .. }), "{error}");
            assert!(error.to_string().contains(name));
        }
        assert!(matches!(
            "shred".parse::<Algorithm>(),
            Err(Error::UnknownAlgorithm { .. })
        ));
    }
}
