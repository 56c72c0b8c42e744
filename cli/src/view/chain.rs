//! Results about chains, structure and snapshots of volumes.

use cenote_engine::{ChainNode, CheckReport, Comparison, Snapshot};
use cenote_image::Extent;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::rows_view;
use crate::out::{Column, Field, Layout, Table, View, human, yes_no};

/// `vol-chain`: an image and the images that stand on it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChainItem {
    /// The volume it is, as `pool/name`.
    pub volume: Option<String>,
    /// The file.
    pub path: String,
    /// Its format.
    pub format: Option<String>,
    /// Size the guest sees, in bytes.
    pub capacity: Option<u64>,
    /// Space it takes, in bytes.
    pub allocation: Option<u64>,
    /// Number of its internal snapshots.
    pub snapshots: u32,
    /// Whether this is the volume asked for.
    pub selected: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// The images that have it as their backing file.
    pub overlays: Vec<ChainItem>,
}

impl From<ChainNode> for ChainItem {
    fn from(node: ChainNode) -> Self {
        Self {
            volume: node.volume.map(|volume| volume.to_string()),
            path: node.path.display().to_string(),
            format: node.format,
            capacity: node.capacity,
            allocation: node.allocation,
            snapshots: node.snapshots,
            selected: node.selected,
            problem: node.problem,
            overlays: node.overlays.into_iter().map(Self::from).collect(),
        }
    }
}

impl ChainItem {
    fn name(&self) -> &str {
        self.volume.as_deref().unwrap_or(&self.path)
    }

    fn describe(&self) -> String {
        let mut text = self.name().to_owned();
        if self.selected {
            text.push_str(" *");
        }
        let mut facts = vec![
            self.format
                .clone()
                .unwrap_or_else(|| "format unknown".to_owned()),
        ];
        facts.extend(self.capacity.map(human));
        facts.extend(
            self.allocation
                .map(|bytes| format!("{} on disk", human(bytes))),
        );
        match self.snapshots {
            0 => {}
            1 => facts.push("1 snapshot".to_owned()),
            many => facts.push(format!("{many} snapshots")),
        }
        facts.extend(self.problem.clone());
        format!("{text}  ({})", facts.join(", "))
    }

    /// The lines of the tree, without recursion: chains may be long.
    fn tree(&self) -> String {
        let mut text = String::new();
        let mut open = vec![(self, String::new(), String::new())];
        while let Some((item, head, tail)) = open.pop() {
            text.push_str(&format!("{head}{}\n", item.describe()));
            for (index, overlay) in item.overlays.iter().enumerate().rev() {
                let last = index + 1 == item.overlays.len();
                let (branch, below) = if last {
                    ("└── ", "    ")
                } else {
                    ("├── ", "│   ")
                };
                open.push((overlay, format!("{tail}{branch}"), format!("{tail}{below}")));
            }
        }
        text
    }
}

impl View for ChainItem {
    fn layout(&self) -> Layout {
        Layout::Text(
            self.tree()
                .replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"),
        )
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut open = vec![self];
        while let Some(item) = open.pop() {
            names.push(item.name().to_owned());
            open.extend(item.overlays.iter().rev());
        }
        names
    }
}

/// One range of `vol-map`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct MapItem {
    /// First byte of the disk.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Layers below the top one that it comes from.
    pub depth: u32,
    /// Whether some layer has a mapping for it.
    pub present: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether data is stored for it.
    pub data: bool,
    /// Whether that data is compressed.
    pub compressed: bool,
    /// The host file that stores it.
    pub file: Option<String>,
    /// The offset in that file.
    pub offset: Option<u64>,
}

impl From<Extent> for MapItem {
    fn from(extent: Extent) -> Self {
        Self {
            start: extent.start,
            length: extent.length,
            depth: extent.depth,
            present: extent.present,
            zero: extent.zero,
            data: extent.data,
            compressed: extent.compressed,
            file: extent.file.map(|path| path.display().to_string()),
            offset: extent.offset,
        }
    }
}

/// `vol-map`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct MapItems(pub Vec<MapItem>);

rows_view!(MapItems of MapItem, |row| row.start.to_string(), [
    Column::new("start", "Start") => |row| row.start.to_string(),
    Column::new("length", "Length") => |row| row.length.to_string(),
    Column::new("data", "Data") => |row| yes_no(row.data).to_owned(),
    Column::new("zero", "Zero") => |row| yes_no(row.zero).to_owned(),
    Column::new("offset", "Mapped to") => |row| row.offset.map(|at| format!("{at:#x}")).unwrap_or_default(),
    Column::new("file", "File") => |row| row.file.clone().unwrap_or_default(),
    Column::wide("depth", "Depth") => |row| row.depth.to_string(),
    Column::wide("present", "Present") => |row| yes_no(row.present).to_owned(),
    Column::wide("compressed", "Compressed") => |row| yes_no(row.compressed).to_owned(),
]);

/// `vol-check`. Without a repair what is wrong, after one what is left.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CheckItem {
    /// The volume, as `pool/name`.
    pub volume: String,
    /// Whether nothing is wrong.
    pub clean: bool,
    /// Parts that could not be checked.
    pub check_errors: u64,
    /// Things that are wrong with the image.
    pub corruptions: u64,
    /// Clusters that hold space in vain.
    pub leaks: u64,
    /// Things that the repair put right.
    pub corruptions_fixed: u64,
    /// Clusters that the repair gave back.
    pub leaks_fixed: u64,
    /// Guest clusters.
    pub total_clusters: u64,
    /// Guest clusters with a host cluster of their own.
    pub allocated_clusters: u64,
    /// Of these, those that do not follow the one before.
    pub fragmented_clusters: u64,
    /// Of these, those that are compressed.
    pub compressed_clusters: u64,
    /// End of the last host cluster in use, in bytes.
    pub image_end_offset: u64,
    /// The first findings, with their place in the file.
    pub findings: Vec<FindingItem>,
}

/// One thing that is wrong with an image.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FindingItem {
    /// `corruption`, `leak` or `error`.
    pub severity: String,
    /// Byte offset in the file.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

impl CheckItem {
    /// The report of `volume`.
    #[must_use]
    pub fn new(volume: String, report: CheckReport) -> Self {
        let findings = report.findings.into_iter().map(|finding| FindingItem {
            severity: format!("{:?}", finding.severity).to_lowercase(),
            offset: finding.offset,
            what: finding.what,
        });
        Self {
            volume,
            clean: report.corruptions == 0 && report.leaks == 0 && report.check_errors == 0,
            check_errors: report.check_errors,
            corruptions: report.corruptions,
            leaks: report.leaks,
            corruptions_fixed: report.corruptions_fixed,
            leaks_fixed: report.leaks_fixed,
            total_clusters: report.total_clusters,
            allocated_clusters: report.allocated_clusters,
            fragmented_clusters: report.fragmented_clusters,
            compressed_clusters: report.compressed_clusters,
            image_end_offset: report.image_end_offset,
            findings: findings.collect(),
        }
    }
}

impl View for CheckItem {
    fn layout(&self) -> Layout {
        let count = |count: u64| count.to_string();
        let mut fields = vec![
            Field::new("volume", "Volume", &self.volume),
            Field::new("clean", "Clean", yes_no(self.clean)),
            Field::new("corruptions", "Corruptions", count(self.corruptions)),
            Field::new("leaks", "Leaks", count(self.leaks)),
        ];
        if self.corruptions_fixed > 0 || self.leaks_fixed > 0 {
            fields.push(Field::new(
                "corruptions_fixed",
                "Repaired",
                count(self.corruptions_fixed),
            ));
            fields.push(Field::new(
                "leaks_fixed",
                "Given back",
                count(self.leaks_fixed),
            ));
        }
        if self.check_errors > 0 {
            fields.push(Field::new(
                "check_errors",
                "Unchecked",
                count(self.check_errors),
            ));
        }
        for finding in &self.findings {
            let text = format!(
                "{} at {:#x}: {}",
                finding.severity, finding.offset, finding.what
            );
            fields.push(Field::new("findings", "Finding", text));
        }
        fields.extend([
            Field::wide("total_clusters", "Clusters", count(self.total_clusters)),
            Field::wide(
                "allocated_clusters",
                "Allocated",
                count(self.allocated_clusters),
            ),
            Field::wide(
                "fragmented_clusters",
                "Fragmented",
                count(self.fragmented_clusters),
            ),
            Field::wide(
                "compressed_clusters",
                "Compressed",
                count(self.compressed_clusters),
            ),
            Field::wide(
                "image_end_offset",
                "End offset",
                count(self.image_end_offset),
            ),
        ]);
        Layout::Record(fields)
    }

    fn names(&self) -> Vec<String> {
        vec![self.volume.clone()]
    }
}

/// `vol-compare`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ComparisonItem {
    /// One volume, as `pool/name`.
    pub left: String,
    /// The other.
    pub right: String,
    /// Whether a guest would read the same from both, up to the end of the shorter one and
    /// zeroes after it.
    pub same: bool,
    /// Whether they have the same size.
    pub same_size: bool,
    /// The first byte that differs.
    pub differ_at: Option<u64>,
}

impl ComparisonItem {
    /// The result of comparing `left` and `right`.
    #[must_use]
    pub fn new(left: String, right: String, result: Comparison) -> Self {
        let differ_at = match result {
            Comparison::DifferAt(offset) => Some(offset),
            Comparison::Identical | Comparison::SizesDiffer => None,
        };
        Self {
            left,
            right,
            same: differ_at.is_none(),
            same_size: result == Comparison::Identical,
            differ_at,
        }
    }
}

impl View for ComparisonItem {
    fn layout(&self) -> Layout {
        Layout::Text(match (self.differ_at, self.same_size) {
            (Some(offset), _) => format!("Content differs at offset {offset}\n"),
            (None, true) => "Volumes are identical\n".to_owned(),
            (None, false) => {
                "Content is the same, sizes differ: the longer one ends with zeroes\n".to_owned()
            }
        })
    }

    fn names(&self) -> Vec<String> {
        vec![self.left.clone(), self.right.clone()]
    }
}

/// One internal snapshot of `vol-snapshot-list`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SnapshotItem {
    /// Its number in the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Size of the disk at that time, in bytes.
    pub disk_size: u64,
    /// Bytes of machine memory stored with it.
    pub vm_state_size: u64,
    /// When it was taken, RFC 3339 in UTC.
    pub created: Option<String>,
}

impl From<Snapshot> for SnapshotItem {
    fn from(snapshot: Snapshot) -> Self {
        let (seconds, nanoseconds) = (snapshot.date_sec, snapshot.date_nsec);
        let nanoseconds = i32::try_from(nanoseconds).unwrap_or(0);
        let created = jiff::Timestamp::new(i64::from(seconds), nanoseconds).ok();
        Self {
            id: snapshot.id,
            name: snapshot.name,
            disk_size: snapshot.disk_size,
            vm_state_size: snapshot.vm_state_size,
            created: created.map(|time| time.to_string()),
        }
    }
}

/// `vol-snapshot-list`.
#[derive(Clone, Debug)]
pub struct SnapshotItems(pub Vec<SnapshotItem>);

impl Serialize for SnapshotItems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl View for SnapshotItems {
    fn layout(&self) -> Layout {
        let row = |snapshot: &SnapshotItem| {
            let created = snapshot.created.as_deref().unwrap_or_default();
            let whole = created.split('.').next().unwrap_or_default();
            vec![
                snapshot.id.clone(),
                snapshot.name.clone(),
                whole.trim_end_matches('Z').replace('T', " "),
                human(snapshot.disk_size),
                human(snapshot.vm_state_size),
            ]
        };
        Layout::Table(Table {
            columns: vec![
                Column::new("id", "Id"),
                Column::new("name", "Name"),
                Column::new("created", "Created (UTC)"),
                Column::new("disk_size", "Disk size"),
                Column::new("vm_state_size", "Memory"),
            ],
            rows: self.0.iter().map(row).collect(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|snapshot| snapshot.name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, overlays: Vec<ChainItem>) -> ChainItem {
        ChainItem {
            volume: Some(format!("p/{name}")),
            path: format!("/p/{name}"),
            format: Some("qcow2".to_owned()),
            capacity: Some(1 << 30),
            allocation: None,
            snapshots: u32::from(name == "base"),
            selected: name == "b",
            problem: None,
            overlays,
        }
    }

    #[test]
    fn a_chain_is_drawn_as_a_tree() {
        let tree = item(
            "base",
            vec![item("a", vec![item("c", vec![])]), item("b", vec![])],
        );
        assert_eq!(
            tree.tree(),
            "p/base  (qcow2, 1.00 GiB, 1 snapshot)\n\
             ├── p/a  (qcow2, 1.00 GiB)\n\
             │   └── p/c  (qcow2, 1.00 GiB)\n\
             └── p/b *  (qcow2, 1.00 GiB)\n"
        );
        assert_eq!(tree.names(), ["p/base", "p/a", "p/c", "p/b"]);
    }
}
