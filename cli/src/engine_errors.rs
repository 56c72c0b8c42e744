//! Errors of the engine and of what is below it, as failures with a code.
//!
//! The enumerations may grow, so that each match here has a last arm; the test at the end reads
//! their source and fails when a variant has no arm of its own.

use cenote_engine::installs::Error as Install;
use cenote_engine::{DomainError as Domain, Error as Engine};
use cenote_image::Error as Image;
use cenote_model::Error as Model;
use cenote_pools::wipe::{Error as Wipe, Refusal};
use cenote_pools::{Error as Pools, ErrorKind};

use crate::explain::Code;
use crate::failure::Failure;

impl From<Engine> for Failure {
    fn from(error: Engine) -> Self {
        let code = of_engine(&error);
        let hint = error.hint();
        let failure = Self::new(code, error.to_string());
        let failure = match hint.as_deref().map(split_hint) {
            Some((fix, Some(next))) => failure.fix(fix).next(next),
            Some((fix, None)) => failure.fix(fix).next(default_next(code)),
            None => failure.next(default_next(code)),
        };
        failure.source(error)
    }
}

impl From<Model> for Failure {
    fn from(error: Model) -> Self {
        Engine::Storage(Pools::Document(error)).into()
    }
}

/// A hint such as "start it first: cenote pool-start x" is a remedy and the next command.
fn split_hint(hint: &str) -> (String, Option<String>) {
    let Some((fix, rest)) = hint.split_once(": cenote ") else {
        return (hint.to_owned(), None);
    };
    let (next, more) = rest.split_once("; ").unwrap_or((rest, ""));
    let fix = if more.is_empty() {
        fix.to_owned()
    } else {
        format!("{fix}; {more}")
    };
    (fix, Some(format!("cenote {next}")))
}

/// The command that tells most where the error itself names none.
fn default_next(code: Code) -> String {
    match code {
        Code::E0101 | Code::E0102 | Code::E0103 | Code::E0110 => "cenote doctor --debug".to_owned(),
        Code::E0009 => "cenote job-list --all".to_owned(),
        _ => format!("cenote explain {code}"),
    }
}

fn of_engine(error: &Engine) -> Code {
    match error {
        Engine::Storage(error) => of_pools(error),
        Engine::Wipe(error) => of_wipe(error),
        Engine::Domain(error) => of_domain(error),
        Engine::Install(error) => of_install(error),
        Engine::Io { source, .. } => of_io(source),
        Engine::NoHome
        | Engine::StateNotWritable { .. }
        | Engine::NewerState { .. }
        | Engine::Database { .. }
        | Engine::BadRecord { .. } => Code::E0104,
        Engine::Busy { .. } => Code::E0105,
        Engine::NoSuchJob(_) => Code::E0107,
        Engine::JobEnded(_) => Code::E0207,
        other => of_kind(other.kind()),
    }
}

fn of_domain(error: &Domain) -> Code {
    match error {
        Domain::NotFound(_) | Domain::NoSuchId(_) => Code::E0601,
        Domain::NameTaken { .. } | Domain::UuidTaken { .. } => Code::E0602,
        Domain::InvalidOperation { .. } | Domain::NoConsole(_) => Code::E0603,
        Domain::ComponentMissing { .. } => Code::E0604,
        Domain::MachineLacks { .. } => Code::E0605,
        Domain::StartFailed { .. } | Domain::Monitor { .. } => Code::E0606,
        Domain::BadSaveFile { .. } => Code::E0607,
        Domain::InvalidArgument(_) | Domain::NoDisk { .. } => Code::E0608,
        Domain::NoMetadata => Code::E0609,
        Domain::NoSnapshot { .. } => Code::E0412,
        Domain::SnapshotExists { .. } => Code::E0413,
        Domain::Busy(_) => Code::E0105,
        Domain::NoProgram(_) => Code::E0110,
        other => of_kind(other.kind()),
    }
}

fn of_install(error: &Install) -> Code {
    match error {
        Install::NotYet { .. } => Code::E0701,
        Install::Refused(_) => Code::E0702,
        Install::Media(_) => Code::E0703,
        Install::Answer { .. } => Code::E0704,
        Install::Failed { .. } => Code::E0705,
        Install::TimedOut { .. } => Code::E0706,
        Install::Cancelled(_) => Code::E0009,
        other => of_kind(other.kind()),
    }
}

fn of_wipe(error: &Wipe) -> Code {
    match error {
        Wipe::UnknownAlgorithm { .. } | Wipe::BadVerify { .. } | Wipe::FirmwareCommand { .. } => {
            Code::E0308
        }
        Wipe::NotProvable { .. } => Code::E0309,
        Wipe::Refused { refusal, .. } => match refusal {
            Refusal::BackingFile { .. } => Code::E0305,
            Refusal::InUse { .. }
            | Refusal::Mounted { .. }
            | Refusal::LoopDevice { .. }
            | Refusal::Swap
            | Refusal::Holders { .. }
            | Refusal::Domains { .. } => Code::E0304,
            Refusal::Changed { .. } => Code::E0312,
            _ => Code::E0311,
        },
        Wipe::Pending { .. } | Wipe::BadRecord { .. } => Code::E0312,
        Wipe::NoSuchWipe { .. } => Code::E0313,
        Wipe::Certificate(_) => Code::E0314,
        Wipe::Cancelled { .. } => Code::E0009,
        Wipe::Image(error) => of_image(error),
        Wipe::Io { source, .. } => of_io(source),
        Wipe::NoRandomness { .. } => Code::E0102,
        Wipe::Journal { .. } => Code::E0104,
        Wipe::UsageUnknown { .. } => Code::E0101,
        other => of_kind(other.kind()),
    }
}

fn of_pools(error: &Pools) -> Code {
    match error {
        Pools::BadName { .. } | Pools::Invalid { .. } => Code::E0308,
        Pools::Io { source, .. } => of_io(source),
        Pools::NoSpace { .. } => Code::E0103,
        Pools::FileExists { .. } => Code::E0108,
        Pools::MissingProgram { .. } | Pools::Program { .. } => Code::E0110,
        Pools::PoolNotFound(_) => Code::E0201,
        Pools::PoolExists { .. } | Pools::PoolOverlaps { .. } => Code::E0202,
        Pools::PoolInactive(_) => Code::E0203,
        Pools::PoolActive(_) => Code::E0204,
        Pools::PoolTypeUnsupported { .. }
        | Pools::CannotMount { .. }
        | Pools::CannotFormat { .. }
        | Pools::PoolCannot { .. } => Code::E0205,
        Pools::TargetMissing { .. }
        | Pools::TargetNotDirectory { .. }
        | Pools::NotMounted { .. }
        | Pools::ForeignMount { .. }
        | Pools::StillMounted { .. }
        | Pools::DeviceInUse { .. }
        | Pools::DeviceNotBlank { .. }
        | Pools::GroupMissing { .. } => Code::E0206,
        Pools::PoolTransient(_)
        | Pools::PoolNotEmpty { .. }
        | Pools::NothingToFormat { .. }
        | Pools::NoDevices { .. } => Code::E0207,
        Pools::Document(error) => of_model(error),
        Pools::BadDefinition { .. } => Code::E0502,
        Pools::Image(error) => of_image(error),
        Pools::VolumeNotFound { .. } => Code::E0301,
        Pools::VolumeExists(_) => Code::E0302,
        Pools::VolumeAmbiguous { .. } => Code::E0303,
        Pools::VolumeInUse { .. } => Code::E0304,
        Pools::VolumeBacks { .. } => Code::E0305,
        Pools::WouldShrink { .. } => Code::E0306,
        Pools::FormatUntrusted { .. } | Pools::FormatUnsupported { .. } | Pools::NotADisk(_) => {
            Code::E0307
        }
        Pools::Cancelled(_) => Code::E0009,
        other => of_kind(other.kind()),
    }
}

fn of_image(error: &Image) -> Code {
    match error {
        Image::Io { source, .. } => of_io(source),
        Image::NotQcow2 { .. } => Code::E0401,
        Image::Unsupported { .. } => Code::E0402,
        Image::Corrupt { .. } => Code::E0403,
        Image::OutOfRange { .. } => Code::E0404,
        Image::ReadOnly { .. } => Code::E0405,
        Image::InUse { .. } => Code::E0406,
        Image::BackingLoop { .. } | Image::BackingTooDeep { .. } => Code::E0407,
        Image::BackingMissing { .. } => Code::E0408,
        Image::BackingOutside { .. } => Code::E0409,
        Image::Invalid { .. } => Code::E0410,
        Image::NoSpace { .. } => Code::E0103,
        Image::Cancelled => Code::E0009,
        _ => Code::E0101,
    }
}

fn of_model(error: &Model) -> Code {
    match error {
        Model::TooLarge { .. }
        | Model::TooMany { .. }
        | Model::DocumentType { .. }
        | Model::Syntax { .. } => Code::E0501,
        Model::Root { .. }
        | Model::Missing { .. }
        | Model::Invalid { .. }
        | Model::Repeated { .. } => Code::E0502,
        Model::Unsupported { .. } | Model::Unknown { .. } => Code::E0503,
        Model::XPath { .. } => Code::E0504,
    }
}

/// The code of an error of the operating system.
pub(crate) fn of_io(error: &std::io::Error) -> Code {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => Code::E0107,
        Io::AlreadyExists => Code::E0108,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => Code::E0102,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Code::E0103,
        _ => Code::E0101,
    }
}

fn of_kind(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Failed => Code::E0101,
        ErrorKind::Invalid => Code::E0308,
        ErrorKind::NotFound => Code::E0107,
        ErrorKind::Exists => Code::E0108,
        ErrorKind::InvalidState => Code::E0207,
        ErrorKind::Host => Code::E0110,
        ErrorKind::Unsupported => Code::E0307,
        ErrorKind::Cancelled => Code::E0009,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the variants of `pub enum Error` in a source file.
    fn variants(source: &str) -> Vec<String> {
        let start = source
            .find("pub enum Error {")
            .expect("an error enumeration");
        let body = source[start..]
            .lines()
            .skip(1)
            .take_while(|line| *line != "}");
        body.filter_map(|line| {
            let name = line.strip_prefix("    ")?;
            let first = name.chars().next()?;
            let end = name
                .find(|c: char| !c.is_ascii_alphanumeric())
                .unwrap_or(name.len());
            first.is_ascii_uppercase().then(|| name[..end].to_owned())
        })
        .collect()
    }

    #[test]
    fn every_error_variant_has_a_code_of_its_own_choice() {
        let here = include_str!("engine_errors.rs");
        let sources = [
            ("Engine", include_str!("../../crates/engine/src/error.rs")),
            (
                "Domain",
                include_str!("../../crates/engine/src/domains/error.rs"),
            ),
            (
                "Install",
                include_str!("../../crates/engine/src/installs/error.rs"),
            ),
            ("Pools", include_str!("../../pools/src/error.rs")),
            ("Image", include_str!("../../crates/image/src/error.rs")),
            ("Model", include_str!("../../crates/model/src/error.rs")),
        ];
        let mut missing = Vec::new();
        for (name, source) in sources {
            let variants = variants(source);
            assert!(variants.len() > 5, "{name}: {variants:?}");
            for variant in variants {
                let arm = format!("{name}::{variant}");
                let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric());
                let found = here
                    .match_indices(&arm)
                    .any(|(at, _)| ends(&here[at + arm.len()..]));
                if !found {
                    missing.push(arm);
                }
            }
        }
        assert!(missing.is_empty(), "give these a code: {missing:?}");
    }

    #[test]
    fn hints_give_the_next_command() {
        let (fix, next) = split_hint("start it first: cenote pool-start x");
        assert_eq!(fix, "start it first");
        assert_eq!(next.as_deref(), Some("cenote pool-start x"));
        assert_eq!(split_hint("free some space").1, None);
        let (fix, next) = split_hint("make it: cenote a; or mount it");
        assert_eq!(
            (fix.as_str(), next.as_deref()),
            ("make it; or mount it", Some("cenote a"))
        );
    }
}
