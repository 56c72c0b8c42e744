//! The record of a wipe under way: enough to go on after `kill -9`.
//!
//! A [`Record`] is written once before the first byte is overwritten; a small
//! [`Progress`] replaces its predecessor at every checkpoint. Both must be
//! durable when the call returns. The record holds the secret of the random
//! passes, so a journal keeps it from other users and forgets it at the end.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cenote_image::Format;
use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::error::{Error, Result};
use super::extents::ExtentMap;
use super::rebuild::Rebuild;
use super::request::{Stage, WipeRequest};
use super::target::Identity;
use super::verdict::Reason;

/// Version of [`Record`] and [`Progress`] that this code writes and reads.
pub const VERSION: u32 = 1;

/// What a file is to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The volume's own file or device.
    Volume,
    /// A qcow2 image's external data file.
    DataFile,
    /// A backing file that only this volume uses.
    BackingFile,
}

/// A file of a wipe as it was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its name.
    pub path: PathBuf,
    /// What it is to the volume.
    pub role: Role,
    /// Its format.
    pub format: Format,
    /// Who it was.
    pub identity: Identity,
    /// Where it lies.
    pub environment: Environment,
    /// Its extents.
    pub map: ExtentMap,
    /// How to make it an empty volume again; none for raw.
    pub rebuild: Option<Rebuild>,
    /// For a data file, its size when empty: the disk's where it can be used
    /// as a raw image, else 0.
    pub data_size: Option<u64>,
}

/// Everything about a wipe that does not change while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Unique, random.
    pub id: String,
    /// What was asked for.
    pub request: WipeRequest,
    /// The secret of the random passes, hexadecimal.
    pub secret: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// The files in the order in which they are wiped.
    pub files: Vec<FileRecord>,
    /// What the report should say besides.
    pub notes: Vec<String>,
}

/// A pass that was written, or is being written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassReport {
    /// From 1.
    pub number: u32,
    /// `random`, the pattern in hexadecimal, or the request of a trim.
    pub content: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// When it ended; none while it runs.
    pub finished: Option<String>,
    /// Bytes written, those written again after an interruption included.
    pub bytes: u64,
    /// Time spent at it.
    pub milliseconds: u64,
}

/// What reading back found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// When it began, RFC 3339.
    pub started: String,
    /// When it ended; none while it runs.
    pub finished: Option<String>,
    /// Bytes read and compared.
    pub bytes: u64,
    /// Time spent at it.
    pub milliseconds: u64,
}

/// A range that could not be overwritten, or reads back wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What happened there.
    pub what: String,
}

/// How far a file is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileProgress {
    /// Passes, the last of them perhaps under way.
    pub passes: Vec<PassReport>,
    /// Reading back.
    pub verification: Option<Verification>,
    /// Ranges that failed, at most 256.
    pub failures: Vec<Failure>,
    /// All failures, those not listed included.
    pub failure_count: u64,
    /// What concerns the whole file and ends its wipe in failure.
    pub fatal: Vec<String>,
    /// Reasons found while wiping.
    pub reasons: Vec<Reason>,
    /// Modification time (seconds, nanoseconds) when the last pass was written:
    /// a later one means that someone else wrote to the file.
    pub modified: Option<(i64, i64)>,
    /// Rebuilt or removed.
    pub finished: bool,
    /// The random name it is given before it is unlinked.
    pub removal: Option<PathBuf>,
}

/// Failures listed for one file.
pub(super) const MOST_FAILURES: usize = 256;

/// A time when a wipe ended before it was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interruption {
    /// What it was doing, as last recorded.
    pub stage: Stage,
    /// The file.
    pub path: PathBuf,
    /// Pass, from 1.
    pub pass: u32,
    /// Bytes of it recorded as done.
    pub position: u64,
    /// When that was recorded, RFC 3339.
    pub recorded: String,
    /// When it was taken up again, RFC 3339.
    pub resumed: String,
    /// Whether the pass had to begin again, and why.
    pub restarted: Option<String>,
}

/// Everything about a wipe that changes while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Index into [`Record::files`].
    pub file: u32,
    /// What is being done.
    pub stage: Stage,
    /// Pass, from 0.
    pub pass: u32,
    /// Bytes of the pass done.
    pub position: u64,
    /// When this was recorded, RFC 3339.
    pub recorded: String,
    /// One for each of [`Record::files`].
    pub files: Vec<FileProgress>,
    /// Earlier ends.
    pub interruptions: Vec<Interruption>,
    /// When all passes and checks were over, RFC 3339.
    pub finished: Option<String>,
}

impl Progress {
    /// The progress of a wipe that has not begun.
    pub fn new(files: usize) -> Self {
        Self {
            file: 0,
            stage: Stage::Overwrite,
            pass: 0,
            position: 0,
            recorded: now(),
            files: vec![FileProgress::default(); files],
            interruptions: Vec::new(),
            finished: None,
        }
    }
}

/// The time, as records have it.
pub(super) fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// Keeps records of wipes. Calls return when the change is durable; a crash in
/// one leaves the old or the new state.
pub trait WipeJournal: Sync {
    /// Stores a new record and its progress together.
    fn begin(&self, record: &Record, progress: &Progress) -> Result<()>;
    /// Replaces the progress of record `id`.
    fn advance(&self, id: &str, progress: &Progress) -> Result<()>;
    /// Reads record `id` and its progress; `None` where there is none.
    fn load(&self, id: &str) -> Result<Option<(Record, Progress)>>;
    /// Ids of all records, oldest first.
    fn list(&self) -> Result<Vec<String>>;
    /// Forgets record `id`, its secret first of all.
    fn end(&self, id: &str) -> Result<()>;
}

/// A journal of files in a folder: `ID.wipe` and `ID.progress`.
#[derive(Debug)]
pub struct FileJournal {
    folder: PathBuf,
}

impl FileJournal {
    /// Opens the journal, making its folder (0700) where needed.
    pub fn open(folder: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(Error::io(folder, "create the folder"))?;
        let journal = Self {
            folder: folder.to_owned(),
        };
        // A record that was blanked belongs to a wipe whose end was cut short.
        for id in journal.list()? {
            let path = journal.path(&id, "wipe")?;
            let mut first = [0];
            let file = File::open(&path).map_err(Error::io(&path, "open"))?;
            if file
                .read_at(&mut first, 0)
                .map_err(Error::io(&path, "read"))?
                == 0
                || first == *b" "
            {
                journal.end(&id)?;
            }
        }
        Ok(journal)
    }

    fn path(&self, id: &str, kind: &str) -> Result<PathBuf> {
        // Ids name files: only what this module makes may pass.
        if id.is_empty()
            || !id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(Error::NoSuchWipe { id: id.to_owned() });
        }
        Ok(self.folder.join(format!("{id}.{kind}")))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, id: &str, kind: &str) -> Result<Option<T>> {
        let path = self.path(id, kind)?;
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(Error::io(&path, "read"))?,
        };
        // Blanked: another process is just ending this wipe.
        if bytes.first().is_none_or(|first| *first == b' ') {
            return Ok(None);
        }
        let bad = |error: serde_json::Error| Error::BadRecord {
            id: id.to_owned(),
            reason: error.to_string(),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(bad)
    }

    fn write<T: Serialize>(&self, id: &str, kind: &str, value: &T) -> Result<()> {
        let path = self.path(id, kind)?;
        let bytes = serde_json::to_vec(value).map_err(|error| Error::Journal {
            reason: error.to_string(),
        })?;
        replace(&path, &bytes).map_err(Error::io(&path, "write"))
    }
}

/// Puts `bytes` at `path` whole or not at all, readable by its owner alone.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Makes renames and removals in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

impl WipeJournal for FileJournal {
    fn begin(&self, record: &Record, progress: &Progress) -> Result<()> {
        // The record counts only with its progress, so that comes first.
        self.write(&record.id, "progress", progress)?;
        self.write(&record.id, "wipe", record)
    }

    fn advance(&self, id: &str, progress: &Progress) -> Result<()> {
        self.write(id, "progress", progress)
    }

    fn load(&self, id: &str) -> Result<Option<(Record, Progress)>> {
        let Some(record) = self.read::<Record>(id, "wipe")? else {
            return Ok(None);
        };
        match self.read(id, "progress")? {
            Some(progress) => Ok(Some((record, progress))),
            // Both may have gone between the two reads.
            None if self.read::<Record>(id, "wipe")?.is_none() => Ok(None),
            None => Err(Error::BadRecord {
                id: id.to_owned(),
                reason: "its progress is missing".to_owned(),
            }),
        }
    }

    fn list(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let listing = fs::read_dir(&self.folder).map_err(Error::io(&self.folder, "list"))?;
        for entry in listing {
            let entry = entry.map_err(Error::io(&self.folder, "list"))?;
            let path = entry.path();
            if path.extension().is_some_and(|kind| kind == "wipe")
                && let Some(id) = path.file_stem().and_then(|stem| stem.to_str())
            {
                let age = entry
                    .metadata()
                    .and_then(|metadata| metadata.modified())
                    .ok();
                found.push((age, id.to_owned()));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, id)| id).collect())
    }

    fn end(&self, id: &str) -> Result<()> {
        // The secret is overwritten in place before its file goes.
        let record = self.path(id, "wipe")?;
        if let Ok(mut file) = fs::OpenOptions::new().write(true).open(&record) {
            let length = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            let blank = vec![b' '; usize::try_from(length).unwrap_or(0).min(1 << 26)];
            file.write_all(&blank)
                .and_then(|()| file.sync_all())
                .map_err(Error::io(&record, "overwrite"))?;
        }
        for kind in ["wipe", "progress", "wipe.new", "progress.new"] {
            let path = self.path(id, kind)?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(&path, "remove")(error));
                }
                _ => {}
            }
        }
        sync_folder(&record).map_err(Error::io(&self.folder, "sync"))
    }
}
