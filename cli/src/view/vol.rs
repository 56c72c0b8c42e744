//! Results about volumes.

use cenote_engine::{VolumeInfo, VolumeKind};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::out::{Column, Field, Layout, Table, View, human};

/// A volume, in `vol-list` and `vol-info`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct VolumeItem {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its path.
    pub path: String,
    /// Its key.
    pub key: String,
    /// What it is on the host: `file`, `block` or `dir`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its format: `raw`, `qcow2`, or what a foreign header says.
    pub format: String,
    /// Who said so: `created`, `declared`, `adopted` or `probed`.
    pub format_origin: String,
    /// Size the guest sees, in bytes.
    pub capacity: u64,
    /// Space it takes on the host, in bytes.
    pub allocation: u64,
    /// Length of the file or device, in bytes.
    pub physical: u64,
    /// What it stands on.
    pub backing: Option<BackingItem>,
    /// Permission bits, octal.
    pub mode: String,
    /// User that owns it.
    pub owner: u32,
    /// Group that owns it.
    pub group: u32,
    /// Last change of its content, RFC 3339 in UTC.
    pub modified: Option<String>,
    /// What could not be read about it.
    pub problem: Option<String>,
}

/// What a volume stands on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct BackingItem {
    /// The name as the image's header has it.
    pub written: String,
    /// The file it means.
    pub path: Option<String>,
    /// The format that the header declares for it.
    pub format: Option<String>,
    /// The volume it is, as `pool/name`.
    pub volume: Option<String>,
}

impl From<VolumeInfo> for VolumeItem {
    fn from(info: VolumeInfo) -> Self {
        let kind = match info.kind {
            VolumeKind::File => "file",
            VolumeKind::Block => "block",
            VolumeKind::Dir => "dir",
        };
        let (seconds, nanoseconds) = info.modified;
        let modified = jiff::Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or(0));
        Self {
            name: info.name,
            pool: info.pool,
            path: info.path.display().to_string(),
            key: info.key,
            kind: kind.to_owned(),
            format: info.format,
            format_origin: info.format_origin.as_str().to_owned(),
            capacity: info.capacity,
            allocation: info.allocation,
            physical: info.physical,
            backing: info.backing.map(|backing| BackingItem {
                written: backing.written,
                path: backing.path.map(|path| path.display().to_string()),
                format: backing.format,
                volume: backing.volume.map(|volume| volume.to_string()),
            }),
            mode: format!("{:04o}", info.mode & 0o7777),
            owner: info.owner,
            group: info.group,
            modified: modified.ok().map(|time| time.to_string()),
            problem: info.problem,
        }
    }
}

impl VolumeItem {
    fn backing_text(&self) -> String {
        let text = |backing: &BackingItem| {
            let named = backing.volume.clone().or_else(|| backing.path.clone());
            named.unwrap_or_else(|| backing.written.clone())
        };
        self.backing.as_ref().map(text).unwrap_or_default()
    }
}

/// `vol-list`.
#[derive(Clone, Debug)]
pub struct VolumeItems {
    /// The volumes.
    pub volumes: Vec<VolumeItem>,
    /// Whether the table has the columns of `--details`.
    pub details: bool,
}

impl Serialize for VolumeItems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.volumes.serialize(serializer)
    }
}

impl View for VolumeItems {
    fn layout(&self) -> Layout {
        let more = if self.details {
            Column::new
        } else {
            Column::wide
        };
        let row = |volume: &VolumeItem| {
            vec![
                volume.name.clone(),
                volume.path.clone(),
                volume.kind.clone(),
                human(volume.capacity),
                human(volume.allocation),
                volume.format.clone(),
                volume.backing_text(),
                volume.pool.clone(),
                human(volume.physical),
                volume.modified.clone().unwrap_or_default(),
                volume.problem.clone().unwrap_or_default(),
            ]
        };
        Layout::Table(Table {
            columns: vec![
                Column::new("name", "Name"),
                Column::new("path", "Path"),
                more("type", "Type"),
                more("capacity", "Capacity"),
                more("allocation", "Allocation"),
                Column::wide("format", "Format"),
                Column::wide("backing", "Backing"),
                Column::wide("pool", "Pool"),
                Column::wide("physical", "Physical"),
                Column::wide("modified", "Modified"),
                Column::wide("problem", "Problem"),
            ],
            rows: self.volumes.iter().map(row).collect(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.volumes
            .iter()
            .map(|volume| volume.name.clone())
            .collect()
    }
}

/// `vol-info`.
#[derive(Clone, Debug)]
pub struct VolumeDetail {
    /// The volume.
    pub volume: VolumeItem,
    /// Whether sizes are bytes.
    pub bytes: bool,
    /// Whether the length of the file stands in place of the space it takes.
    pub physical: bool,
}

impl Serialize for VolumeDetail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.volume.serialize(serializer)
    }
}

impl View for VolumeDetail {
    fn layout(&self) -> Layout {
        let volume = &self.volume;
        let size = |bytes: u64| {
            if self.bytes {
                format!("{bytes} bytes")
            } else {
                human(bytes)
            }
        };
        let mut fields = vec![
            Field::new("name", "Name", &volume.name),
            Field::new("type", "Type", &volume.kind),
            Field::new("capacity", "Capacity", size(volume.capacity)),
        ];
        let allocation = Field::new("allocation", "Allocation", size(volume.allocation));
        let physical = Field::new("physical", "Physical", size(volume.physical));
        if self.physical {
            fields.extend([
                physical,
                Field {
                    wide: true,
                    ..allocation
                },
            ]);
        } else {
            fields.extend([
                allocation,
                Field {
                    wide: true,
                    ..physical
                },
            ]);
        }
        if let Some(problem) = &volume.problem {
            fields.push(Field::new("problem", "Problem", problem));
        }
        let backing = volume.backing_text();
        fields.extend([
            Field::wide("pool", "Pool", &volume.pool),
            Field::wide("path", "Path", &volume.path),
            Field::wide(
                "format",
                "Format",
                format!("{} ({})", volume.format, volume.format_origin),
            ),
            Field::wide(
                "backing",
                "Backing",
                if backing.is_empty() {
                    "-".to_owned()
                } else {
                    backing
                },
            ),
            Field::wide("mode", "Mode", &volume.mode),
            Field::wide(
                "owner",
                "Owner",
                format!("{}:{}", volume.owner, volume.group),
            ),
            Field::wide(
                "modified",
                "Modified",
                volume.modified.clone().unwrap_or_default(),
            ),
        ]);
        Layout::Record(fields)
    }

    fn names(&self) -> Vec<String> {
        vec![self.volume.name.clone()]
    }
}
