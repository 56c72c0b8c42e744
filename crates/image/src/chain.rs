//! Names of backing and data files, and the chains they form.
//!
//! A name comes from an image's header, which a guest's owner may have
//! written: it is data to be checked, never trusted. Names are resolved as
//! QEMU does, relative ones from the folder of the image that holds them;
//! network protocols are refused by name.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::options::{BackingPolicy, Format};
use crate::qcow2::header::Header;
use crate::storage::{CacheMode, FileStorage};

/// A backing file, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The file; not canonical.
    pub path: PathBuf,
    /// Its format as declared.
    pub format: Format,
}

/// One layer of a chain, top first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Virtual size in bytes.
    pub size: u64,
    /// The name of its backing file as written in the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_name: Option<String>,
    /// The format of its backing file as written in the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_format: Option<String>,
    /// Its external data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<PathBuf>,
}

/// Resolves the backing file name `name` of the image `overlay`.
///
/// `declared` is the format from the header or the caller; a `json:` name may
/// bring its own, which must not contradict it.
///
/// # Errors
/// [`Error::Unsupported`] for protocols and drivers, [`Error::Invalid`] when
/// no format is declared, [`Error::BackingMissing`], [`Error::BackingOutside`].
pub fn resolve_backing(
    overlay: &Path,
    name: &str,
    declared: Option<Format>,
    policy: &BackingPolicy,
) -> Result<Backing> {
    let (file, json_format) = match name.strip_prefix("json:") {
        Some(text) => parse_json(overlay, text)?,
        None => (plain_name(overlay, name)?, None),
    };
    let format = match (declared, json_format) {
        (Some(a), Some(b)) if a != b => {
            return Err(Error::invalid(
                format!("{}: backing file", overlay.display()),
                format!("is declared as {a}, but its json: name says {b}"),
            ));
        }
        (Some(format), _) | (None, Some(format)) => format,
        (None, None) => {
            return Err(Error::invalid(
                format!("{}: backing file {name}", overlay.display()),
                "has no declared format, and a format is never guessed; record it with an unsafe rebase that names the format",
            ));
        }
    };
    let path = check_place(overlay, join(overlay, &file), policy)?;
    Ok(Backing { path, format })
}

/// Resolves the name of an external data file, which need not exist yet.
///
/// # Errors
/// As [`resolve_backing`].
pub fn resolve_file(image: &Path, name: &str, policy: &BackingPolicy) -> Result<PathBuf> {
    let file = match name.strip_prefix("json:") {
        Some(text) => parse_json(image, text)?.0,
        None => plain_name(image, name)?,
    };
    let path = join(image, &file);
    check_allowed(image, &path, policy)?;
    Ok(path)
}

/// The format that a header declares for its backing file.
///
/// # Errors
/// [`Error::Unsupported`] for formats other than raw and qcow2.
pub fn declared_format(header: &Header, path: &Path) -> Result<Option<Format>> {
    header
        .extensions
        .backing_format
        .as_deref()
        .map(|name| {
            name.parse()
                .map_err(|_| Error::unsupported(path, format!("backing file format '{name}'")))
        })
        .transpose()
}

/// Lists a chain, top first, reading headers only. No file is locked.
///
/// # Errors
/// Those of [`resolve_backing`] and of reading headers; [`Error::BackingLoop`]
/// and [`Error::BackingTooDeep`].
pub fn list(top: &Path, format: Format, policy: &BackingPolicy) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some(Backing {
        path: top.to_owned(),
        format,
    });
    while let Some(Backing { path, format }) = next {
        if layers.len() > policy.max_depth {
            return Err(Error::BackingTooDeep {
                path,
                limit: policy.max_depth,
            });
        }
        let identity = identity(&path)?;
        if seen.contains(&identity) {
            return Err(Error::BackingLoop { path });
        }
        seen.push(identity);
        let (layer, below) = read_layer(path, format, policy)?;
        layers.push(layer);
        next = below;
    }
    Ok(layers)
}

fn read_layer(
    path: PathBuf,
    format: Format,
    policy: &BackingPolicy,
) -> Result<(Layer, Option<Backing>)> {
    use crate::storage::Storage;
    let storage = FileStorage::open(&path, false, CacheMode::Writeback)
        .map_err(|e| Error::io(&path, "open", e))?;
    let mut layer = Layer {
        format,
        size: 0,
        backing_name: None,
        backing_format: None,
        data_file: None,
        path,
    };
    if format == Format::Raw {
        layer.size = storage
            .length()
            .map_err(|e| Error::io(&layer.path, "find its length", e))?;
        return Ok((layer, None));
    }
    let header = Header::read(&storage, &layer.path)?;
    layer.size = header.size;
    layer.backing_name.clone_from(&header.backing_name);
    layer
        .backing_format
        .clone_from(&header.extensions.backing_format);
    if header.has_data_file()
        && let Some(name) = &header.extensions.data_file
    {
        layer.data_file = Some(resolve_file(&layer.path, name, policy)?);
    }
    let declared = declared_format(&header, &layer.path)?;
    let below = header
        .backing_name
        .as_deref()
        .map(|name| resolve_backing(&layer.path, name, declared, policy))
        .transpose()?;
    Ok((layer, below))
}

/// Device and inode, by which a file met twice is recognised.
pub(crate) fn identity(path: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "look at it", e))?;
    Ok((meta.dev(), meta.ino()))
}

/// A name that is a path, perhaps after `file:`.
fn plain_name(overlay: &Path, name: &str) -> Result<PathBuf> {
    if name.is_empty() || name.contains('\0') {
        return Err(Error::invalid(
            format!("{}: file name in its header", overlay.display()),
            "is empty or contains a NUL byte",
        ));
    }
    if let Some(rest) = name.strip_prefix("file:") {
        return Ok(PathBuf::from(rest));
    }
    // As QEMU: a colon before the first slash makes a protocol.
    let head = name.split('/').next().unwrap_or(name);
    if let Some((protocol, _)) = head.split_once(':') {
        return Err(Error::unsupported(
            overlay,
            format!("its backing or data file '{name}' (protocol '{protocol}')"),
        ));
    }
    Ok(PathBuf::from(name))
}

/// Parses `json:{"driver":"qcow2","file":{"driver":"file","filename":".."}}`
/// and its flat spelling with dotted keys.
fn parse_json(overlay: &Path, text: &str) -> Result<(PathBuf, Option<Format>)> {
    let refuse = |reason: String| {
        Error::invalid(
            format!("{}: json: name in its header", overlay.display()),
            reason,
        )
    };
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| refuse(format!("is not valid JSON: {e}")))?;
    let object = value
        .as_object()
        .ok_or_else(|| refuse("is not a JSON object".to_owned()))?;
    let mut flat = Vec::new();
    flatten("", object, 0, &mut flat).map_err(refuse)?;
    let mut format = None;
    let mut file = None;
    for (key, value) in &flat {
        match (key.as_str(), value.as_str()) {
            ("driver", "raw") => format = Some(Format::Raw),
            ("driver", "qcow2") => format = Some(Format::Qcow2),
            ("driver" | "file.driver", "file" | "host_device") => {}
            ("driver" | "file.driver", other) => {
                return Err(Error::unsupported(
                    overlay,
                    format!("driver '{other}' in a json: name"),
                ));
            }
            ("filename" | "file.filename", name) => file = Some(name.to_owned()),
            (
                "read-only"
                | "file.read-only"
                | "auto-read-only"
                | "file.auto-read-only"
                | "node-name"
                | "file.node-name",
                _,
            ) => {}
            (other, _) => {
                return Err(Error::unsupported(
                    overlay,
                    format!("option '{other}' in a json: name"),
                ));
            }
        }
    }
    let file = file.ok_or_else(|| refuse("has no file name".to_owned()))?;
    let file = PathBuf::from(file.strip_prefix("file:").unwrap_or(&file));
    if file.is_relative() {
        return Err(refuse(format!(
            "holds the relative name {}, which QEMU takes from its working folder; use an absolute one",
            file.display()
        )));
    }
    Ok((file, format))
}

fn flatten(
    prefix: &str,
    object: &serde_json::Map<String, serde_json::Value>,
    depth: usize,
    out: &mut Vec<(String, String)>,
) -> std::result::Result<(), String> {
    use serde_json::Value;
    if depth > 4 {
        return Err("is nested too deeply".to_owned());
    }
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(&format!("{key}."), inner, depth + 1, out)?,
            Value::String(text) => out.push((key, text.clone())),
            Value::Bool(_) | Value::Number(_) => out.push((key, value.to_string())),
            _ => return Err(format!("has an unusable value for '{key}'")),
        }
    }
    Ok(())
}

/// Relative names count from the folder of the image.
fn join(image: &Path, name: &Path) -> PathBuf {
    match image.parent() {
        Some(folder) => folder.join(name),
        None => name.to_owned(),
    }
}

fn check_place(overlay: &Path, path: PathBuf, policy: &BackingPolicy) -> Result<PathBuf> {
    match std::fs::metadata(&path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::BackingMissing {
                path: overlay.to_owned(),
                backing: path,
            });
        }
        Err(error) => return Err(Error::io(&path, "look at the backing file", error)),
    }
    check_allowed(overlay, &path, policy)?;
    Ok(path)
}

/// Links are followed before the folder is compared.
fn check_allowed(overlay: &Path, path: &Path, policy: &BackingPolicy) -> Result<()> {
    let Some(allowed) = &policy.allowed_dirs else {
        return Ok(());
    };
    let real = match path.canonicalize() {
        Ok(real) => real,
        // A data file that is yet to be made: its folder counts.
        Err(_) => {
            let folder = path.parent().unwrap_or(Path::new("."));
            let folder = folder
                .canonicalize()
                .map_err(|e| Error::io(folder, "find the folder", e))?;
            folder.join(path.file_name().unwrap_or_default())
        }
    };
    let inside = allowed
        .iter()
        .filter_map(|dir| dir.canonicalize().ok())
        .any(|dir| real.starts_with(dir));
    if inside {
        Ok(())
    } else {
        Err(Error::BackingOutside {
            path: overlay.to_owned(),
            backing: path.to_owned(),
        })
    }
}
