//! Results about snapshots of domains.

use cenote_engine::SnapshotInfo;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::out::{Column, Field, Layout, Table, View, yes_no};

/// A snapshot of a domain, in `snapshot-list` and `snapshot-info`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DomainSnapshotItem {
    /// Its name.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub created: i64,
    /// `shutoff`, or `disk-snapshot` for one of a running domain's disks.
    pub state: String,
    /// The snapshot before it.
    pub parent: Option<String>,
    /// How many come right after it.
    pub children: usize,
    /// Whether the domain's disks go on from it.
    pub current: bool,
    /// `internal`: in the images; `external`: in files beside them.
    pub location: String,
    /// For people.
    pub description: Option<String>,
}

impl From<SnapshotInfo> for DomainSnapshotItem {
    fn from(info: SnapshotInfo) -> Self {
        Self {
            name: info.name,
            created: info.created,
            state: info.state,
            parent: info.parent,
            children: info.children,
            current: info.current,
            location: match info.external {
                true => "external".to_owned(),
                false => "internal".to_owned(),
            },
            description: info.description,
        }
    }
}

impl DomainSnapshotItem {
    fn time(&self) -> String {
        let time = jiff::Timestamp::from_second(self.created).unwrap_or_default();
        let local = time.to_zoned(jiff::tz::TimeZone::system());
        local.strftime("%Y-%m-%d %H:%M:%S %z").to_string()
    }
}

impl View for DomainSnapshotItem {
    fn layout(&self) -> Layout {
        Layout::Record(vec![
            Field::new("name", "Name", &self.name),
            Field::new("current", "Current", yes_no(self.current)),
            Field::new("state", "State", &self.state),
            Field::new("location", "Location", &self.location),
            Field::new(
                "parent",
                "Parent",
                self.parent.clone().unwrap_or_else(|| "-".to_owned()),
            ),
            Field::new("children", "Children", self.children.to_string()),
            Field::new("created", "Creation time", self.time()),
            Field::wide(
                "description",
                "Description",
                self.description.clone().unwrap_or_default(),
            ),
        ])
    }

    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}

/// `snapshot-list`.
#[derive(Clone, Debug)]
pub struct DomainSnapshotItems {
    /// The snapshots, oldest first.
    pub snapshots: Vec<DomainSnapshotItem>,
    /// Whether the table has their parents.
    pub parents: bool,
    /// Whether they are drawn as a tree.
    pub tree: bool,
}

impl Serialize for DomainSnapshotItems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.snapshots.serialize(serializer)
    }
}

impl DomainSnapshotItems {
    /// The tree below `parent`, as virsh draws it.
    fn draw(&self, parent: Option<&str>, indent: &str, text: &mut String) {
        let children: Vec<_> = self
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.parent.as_deref() == parent)
            .collect();
        for (index, child) in children.iter().enumerate() {
            let last = index.saturating_add(1) == children.len();
            match parent {
                None => text.push_str(&format!("{}\n", child.name)),
                Some(_) => text.push_str(&format!("{indent}|\n{indent}+- {}\n", child.name)),
            }
            let deeper = match (parent, last) {
                (None, _) => "  ".to_owned(),
                (Some(_), true) => format!("{indent}    "),
                (Some(_), false) => format!("{indent}|   "),
            };
            self.draw(Some(&child.name), &deeper, text);
            if parent.is_none() {
                text.push('\n');
            }
        }
    }
}

impl View for DomainSnapshotItems {
    fn layout(&self) -> Layout {
        if self.tree {
            let mut text = String::new();
            self.draw(None, "", &mut text);
            return Layout::Text(text);
        }
        let parent = match self.parents {
            true => Column::new("parent", "Parent"),
            false => Column::wide("parent", "Parent"),
        };
        let row = |snapshot: &DomainSnapshotItem| {
            vec![
                snapshot.name.clone(),
                snapshot.time(),
                snapshot.state.clone(),
                snapshot.parent.clone().unwrap_or_else(|| "-".to_owned()),
                snapshot.location.clone(),
                yes_no(snapshot.current).to_owned(),
            ]
        };
        Layout::Table(Table {
            columns: vec![
                Column::new("name", "Name"),
                Column::new("created", "Creation Time"),
                Column::new("state", "State"),
                parent,
                Column::wide("location", "Location"),
                Column::wide("current", "Current"),
            ],
            rows: self.snapshots.iter().map(row).collect(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.snapshots
            .iter()
            .map(|snapshot| snapshot.name.clone())
            .collect()
    }
}
