//! What a wipe would do: which files, which extents, what could be claimed.

use std::path::{Path, PathBuf};

use cenote_image::Format;
use cenote_image::lock::FileLock;
use cenote_image::{BackingPolicy, chain};
use cenote_image::{Error as ImageError, LockPolicy};
use serde::Serialize;

use super::algorithm::Algorithm;
use super::environment::Environment;
use super::error::{Error, Refusal, Result};
use super::journal::{FileRecord, Role};
use super::rebuild::{self, Rebuild};
use super::request::{Afterwards, Verify, WipeRequest};
use super::target::Target;
use super::usage::{self, Usage};
use super::verdict::{Reason, Verdict};

/// The files of a wipe and the best verdict it can end in.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// What was asked for.
    pub request: WipeRequest,
    /// In the order of wiping.
    pub files: Vec<FileRecord>,
    /// What the report would say besides.
    pub notes: Vec<String>,
    /// The verdict if nothing fails.
    pub expected: Verdict,
}

/// A file opened and locked for wiping.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) target: Target,
    _lock: FileLock,
}

impl Held {
    /// Opens `path`, locks it as a writer, and asks who else uses it.
    pub(super) fn take(path: &Path, besides: &[PathBuf], usage: &dyn Usage) -> Result<Self> {
        let target = Target::open(path)?;
        let lock = FileLock::acquire(target.lock_handle(), path, LockPolicy::Exclusive);
        let lock = lock.map_err(|error| match error {
            ImageError::InUse { path, by } => Error::Refused {
                path,
                refusal: Refusal::InUse { by },
            },
            other => other.into(),
        })?;
        usage::check(&target, besides, usage)?;
        Ok(Self {
            target,
            _lock: lock,
        })
    }
}

/// A file to wipe, before it is opened.
#[derive(Debug)]
struct Member {
    path: PathBuf,
    role: Role,
    format: Format,
    rebuild: Option<Rebuild>,
    data_size: Option<u64>,
}

/// Opens everything the request covers. Nothing is written.
pub(super) fn prepare(
    request: &WipeRequest,
    usage: &dyn Usage,
) -> Result<(Vec<FileRecord>, Vec<Held>, Vec<String>)> {
    let mut notes = Vec::new();
    // Opening the named file first refuses links before a header is read
    // through one.
    let first = Target::open(&request.path)?;
    let members = members(request, usage, &mut notes)?;
    drop(first);
    let paths: Vec<PathBuf> = members.iter().map(|member| member.path.clone()).collect();
    let mut files = Vec::new();
    let mut held = Vec::new();
    for member in members {
        let one = Held::take(&member.path, &paths, usage)?;
        let environment = Environment::of(&one.target)?;
        notes.extend(
            environment
                .notes
                .iter()
                .filter(|note| !notes.contains(note))
                .cloned()
                .collect::<Vec<_>>(),
        );
        let map = one
            .target
            .map()
            .map_err(Error::io(&member.path, "map the extents of"))?;
        if map.past_end > 0 {
            notes.push(format!(
                "'{}': {} bytes reserved past its end were never part of it and are not written",
                member.path.display(),
                map.past_end
            ));
        }
        files.push(FileRecord {
            path: member.path,
            role: member.role,
            format: member.format,
            identity: one.target.identity().clone(),
            environment,
            map,
            rebuild: member.rebuild,
            data_size: member.data_size,
        });
        held.push(one);
    }
    notes.push(
        "blocks that the volume gave back to the file system or device before the wipe are out of \
         reach"
            .to_owned(),
    );
    Ok((files, held, notes))
}

fn members(
    request: &WipeRequest,
    usage: &dyn Usage,
    notes: &mut Vec<String>,
) -> Result<Vec<Member>> {
    let mut all: Vec<Member> = Vec::new();
    let mut next = Some((request.path.clone(), request.format, Role::Volume));
    while let Some((path, format, role)) = next.take() {
        if all.iter().any(|member| member.path == path) {
            let what = format!("its backing chain comes back to '{}'", path.display());
            let refusal = Refusal::Image { what };
            return Err(Error::Refused {
                path: request.path.clone(),
                refusal,
            });
        }
        if format == Format::Raw {
            all.push(Member {
                path,
                role,
                format,
                rebuild: None,
                data_size: None,
            });
            break;
        }
        let layer = rebuild::read_layer(&path)?;
        if let Some(data_file) = layer.data_file {
            let size = if layer.rebuild.data_file_raw {
                layer.rebuild.size
            } else {
                0
            };
            all.push(Member {
                path: data_file,
                role: Role::DataFile,
                format: Format::Raw,
                rebuild: None,
                data_size: Some(size),
            });
        }
        let rebuild = Some(layer.rebuild);
        // After its data file: an image in place vouches for what it names.
        all.push(Member {
            path: path.clone(),
            role,
            format,
            rebuild,
            data_size: None,
        });
        let Some(backing) = layer.backing else { break };
        if request.afterwards == Afterwards::Keep {
            notes.push(format!(
                "'{}' is rebuilt without its backing file '{backing}': a wiped volume reads as \
                 zeroes",
                path.display()
            ));
        }
        if !request.chain {
            break;
        }
        let everywhere = BackingPolicy::default();
        let found = chain::resolve_backing(&path, &backing, layer.backing_format?, &everywhere)?;
        next = own_layer(found, &all, usage, notes)?;
    }
    Ok(all)
}

/// The backing file, if only this volume uses it. A file that another volume
/// or domain needs ends the chain: all below it is needed as well.
fn own_layer(
    backing: chain::Backing,
    wiped: &[Member],
    usage: &dyn Usage,
    notes: &mut Vec<String>,
) -> Result<Option<(PathBuf, Format, Role)>> {
    let path = backing
        .path
        .canonicalize()
        .map_err(Error::io(&backing.path, "find the backing file"))?;
    let besides: Vec<PathBuf> = wiped.iter().map(|member| member.path.clone()).collect();
    let mut users = usage.dependents(&path, &besides)?;
    users.extend(usage.domains(&path)?);
    if !users.is_empty() {
        notes.push(format!(
            "'{}' is kept: shared by {}",
            path.display(),
            users.join(", ")
        ));
        return Ok(None);
    }
    Ok(Some((path, backing.format, Role::BackingFile)))
}

/// Everything that stands in the way of a proof, before a byte is written.
pub(super) fn reasons(request: &WipeRequest, files: &[FileRecord]) -> Vec<Reason> {
    let mut all = Vec::new();
    let mut add = |reason: Reason| {
        if !all.contains(&reason) {
            all.push(reason);
        }
    };
    for file in files {
        file.environment.reasons.iter().cloned().for_each(&mut add);
        file.map
            .extents
            .iter()
            .flat_map(super::extents::Extent::reasons)
            .for_each(&mut add);
    }
    if request.algorithm == Algorithm::Trim {
        add(Reason::TrimOnly {
            answers: "whatever the device likes".to_owned(),
        });
    }
    all
}

/// Reasons that follow from how much the caller wants read back.
pub(super) fn chosen_reasons(request: &WipeRequest) -> Vec<Reason> {
    match (request.algorithm, request.verify) {
        (Algorithm::Trim, _) | (_, Verify::All) => Vec::new(),
        (_, Verify::Sample(percent)) => vec![Reason::Sampled { percent }],
        (_, Verify::None) => vec![Reason::NotVerified],
    }
}

impl Plan {
    pub(super) fn new(request: &WipeRequest, files: Vec<FileRecord>, notes: Vec<String>) -> Self {
        let mut all = reasons(request, &files);
        all.extend(chosen_reasons(request));
        Self {
            request: request.clone(),
            files,
            notes,
            expected: Verdict::from_reasons(all),
        }
    }
}
