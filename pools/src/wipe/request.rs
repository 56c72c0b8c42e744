//! What a caller asks for, and how it hears what happens.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cenote_image::Format;
use serde::{Deserialize, Serialize};

use super::algorithm::Algorithm;
use super::error::Error;

/// How much of the last pass is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Verify {
    /// All of it. Only this can end in `overwritten and verified`.
    #[default]
    All,
    /// About this many percent, 1 to 100, spread by chance in 64 KiB pieces.
    Sample(u8),
    /// Nothing.
    None,
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Sample(percent) => write!(f, "sample:{percent}%"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for Verify {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadVerify {
            text: text.to_owned(),
        };
        match text {
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            _ => {
                let percent = text.strip_prefix("sample:").ok_or_else(bad)?;
                let percent = percent.strip_suffix('%').unwrap_or(percent);
                match percent.parse() {
                    Ok(100) => Ok(Self::All),
                    Ok(percent @ 1..=99) => Ok(Self::Sample(percent)),
                    _ => Err(bad()),
                }
            }
        }
    }
}

impl TryFrom<String> for Verify {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Verify> for String {
    fn from(verify: Verify) -> Self {
        verify.to_string()
    }
}

/// What is left when a volume is wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Afterwards {
    /// The volume: a raw one with the last pass in it, a qcow2 one rebuilt as
    /// an empty image of the same options and virtual size.
    #[default]
    Keep,
    /// Nothing: renamed to a random name, unlinked. A device is kept.
    Remove,
}

/// A wipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WipeRequest {
    /// The volume's file or block device, absolute.
    pub path: PathBuf,
    /// Its format, from the pool's records; never guessed from content.
    pub format: Format,
    /// What users call the volume, for reports.
    pub volume: Option<String>,
    /// The method.
    pub algorithm: Algorithm,
    /// How much is read back.
    pub verify: Verify,
    /// Go on where nothing can be proved, and say so.
    pub best_effort: bool,
    /// Most bytes per second, written or read.
    pub limit: Option<u64>,
    /// Also wipe the backing files that only this volume uses.
    pub chain: bool,
    /// What is left.
    pub afterwards: Afterwards,
}

impl WipeRequest {
    /// The default wipe of a volume: random, all read back, kept.
    pub fn new(path: impl Into<PathBuf>, format: Format) -> Self {
        Self {
            path: path.into(),
            format,
            volume: None,
            algorithm: Algorithm::default(),
            verify: Verify::default(),
            best_effort: false,
            limit: None,
            chain: false,
            afterwards: Afterwards::default(),
        }
    }
}

/// What is being done, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A pass is written.
    Overwrite,
    /// The last pass is read back.
    Verify,
    /// Files are rebuilt or removed.
    Finish,
    /// The certificate is made.
    Certify,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overwrite => "overwrite",
            Self::Verify => "verify",
            Self::Finish => "finish",
            Self::Certify => "certify",
        })
    }
}

/// Something that happened. Sent from the thread that wipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WipeEvent<'a> {
    /// A part of the work begins (or goes on at `done`).
    Begin {
        /// The file or device.
        path: &'a Path,
        /// What is done to it.
        stage: Stage,
        /// Pass, from 1; 0 outside passes.
        pass: u32,
        /// Passes of the method.
        passes: u32,
        /// Bytes of this part done before.
        done: u64,
        /// Bytes of this part.
        total: u64,
    },
    /// All before `done` of this part is done. Comes many times a second.
    Advanced {
        /// Bytes.
        done: u64,
    },
    /// All before `done` is recorded: a wipe killed from now on resumes there.
    Recorded {
        /// Bytes.
        done: u64,
    },
    /// A step between passes is complete, for crash tests and logs.
    Step {
        /// Its name.
        name: &'static str,
    },
}

/// Hears events; `Break` stops the wipe, its progress kept.
pub trait Observer {
    /// Called often; must not block for long.
    fn event(&self, event: &WipeEvent<'_>) -> ControlFlow<()>;
}

impl<F: Fn(&WipeEvent<'_>) -> ControlFlow<()>> Observer for F {
    fn event(&self, event: &WipeEvent<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// Hears nothing, stops never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &WipeEvent<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verification_modes_parse_strictly() {
        for (text, mode) in [
            ("all", Verify::All),
            ("none", Verify::None),
            ("sample:7%", Verify::Sample(7)),
        ] {
            assert_eq!(text.parse::<Verify>().unwrap(), mode);
            assert_eq!(mode.to_string(), text);
        }
        assert_eq!("sample:100%".parse::<Verify>().unwrap(), Verify::All);
        for bad in [
            "",
            "sample",
            "sample:0%",
            "sample:101%",
            "sample:-1%",
            "ALL",
            "sample:x%",
        ] {
            assert!(bad.parse::<Verify>().is_err(), "{bad}");
        }
    }
}
