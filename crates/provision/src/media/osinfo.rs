//! libosinfo's database of operating systems (osinfo-db), read as it is.
//!
//! It says which system an image holds by the texts of its volume descriptor, and how much
//! memory and disk such a system needs. Nothing here is needed for an install: where the
//! database is not on the machine, a system is what its tree says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use regex::{Regex, RegexBuilder};
use roxmltree::{Document, Node};

use super::{Tree, TreeInfo};
use crate::iso::{Image, ReadAt};

/// Largest file that is read; the longest of the database has 200 KiB.
const MAX_FILE: u64 = 4 << 20;
/// Most systems that are kept.
const MAX_SYSTEMS: usize = 10_000;
/// Most systems followed from one to that which it comes from.
const MAX_ANCESTORS: usize = 16;

/// Where the database is, later places going before earlier ones.
pub const PLACES: [&str; 3] = [
    "/usr/share/osinfo",
    "/usr/local/share/osinfo",
    "/etc/osinfo",
];

/// What a system needs. Bytes; `None` where the database does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Least memory.
    pub minimum_memory: Option<u64>,
    /// Recommended memory.
    pub recommended_memory: Option<u64>,
    /// Memory that an install over the network needs.
    pub network_install_memory: Option<u64>,
    /// Least disk.
    pub minimum_storage: Option<u64>,
    /// Recommended disk.
    pub recommended_storage: Option<u64>,
}

/// One operating system.
#[derive(Debug)]
pub struct System {
    /// Identity, a URL.
    pub id: String,
    /// Short ids, the first being the usual one: `debian12`, `debianbookworm`.
    pub short_ids: Vec<String>,
    /// Name in English.
    pub name: String,
    /// Family: `linux`, `winnt`.
    pub family: Option<String>,
    /// Distribution: `debian`.
    pub distro: Option<String>,
    /// Version.
    pub version: Option<String>,
    own: Resources,
    ancestors: Vec<String>,
    images: Vec<ImagePattern>,
    trees: Vec<TreePattern>,
}

/// Texts of an image's descriptor; all that are given must match.
#[derive(Debug, Default)]
struct ImagePattern {
    label: Option<Regex>,
    system: Option<Regex>,
    publisher: Option<Regex>,
    application: Option<Regex>,
    size: Option<u64>,
}

#[derive(Debug, Default)]
struct TreePattern {
    family: Option<Regex>,
    variant: Option<Regex>,
    version: Option<Regex>,
    arch: Option<Regex>,
}

/// The database.
#[derive(Debug, Default)]
pub struct Database {
    systems: Vec<System>,
}

impl Database {
    /// Reads the database of this machine; empty if there is none.
    ///
    /// # Errors
    /// What listing a folder says, other than that it is not there.
    pub fn of_this_machine() -> io::Result<Self> {
        Self::open(PLACES)
    }

    /// Reads the databases at these places. Files that are no documents of it are passed over.
    ///
    /// # Errors
    /// What listing a folder says, other than that it is not there.
    pub fn open<P: AsRef<Path>>(places: impl IntoIterator<Item = P>) -> io::Result<Self> {
        let mut database = Self::default();
        for place in places {
            let mut files = Vec::new();
            for vendor in folder(&place.as_ref().join("os"))? {
                files.extend(folder(&vendor)?);
            }
            files.retain(|file| file.extension().is_some_and(|e| e == "xml"));
            files.sort();
            for file in files {
                let size = fs::metadata(&file).map(|metadata| metadata.len());
                if size.is_ok_and(|size| size <= MAX_FILE)
                    && let Ok(text) = fs::read_to_string(&file)
                {
                    database.add(&text);
                }
            }
        }
        Ok(database)
    }

    fn add(&mut self, text: &str) {
        let Ok(document) = Document::parse(text) else {
            return;
        };
        let root = document.root_element();
        for node in root.children().filter(|node| node.has_tag_name("os")) {
            if let Some(system) = system(node)
                && self.systems.len() < MAX_SYSTEMS
            {
                self.systems.retain(|known| known.id != system.id);
                self.systems.push(system);
            }
        }
    }

    /// All systems.
    pub fn systems(&self) -> &[System] {
        &self.systems
    }

    /// The system of a short id or an id.
    pub fn get(&self, id: &str) -> Option<&System> {
        self.systems
            .iter()
            .find(|system| system.id == id || system.short_ids.iter().any(|short| short == id))
    }

    /// The short ids nearest to one that is not known, nearest first.
    pub fn suggestions(&self, id: &str) -> Vec<&str> {
        let all = self.systems.iter().flat_map(|system| &system.short_ids);
        let mut near: Vec<(f64, &str)> = all
            .map(|short| (strsim::jaro_winkler(short, id), short.as_str()))
            .filter(|(score, _)| *score > 0.8)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        near.into_iter().take(3).map(|(_, short)| short).collect()
    }

    /// The system that an image holds, by the texts of its descriptor. Of several that match,
    /// that with the longest label pattern.
    pub fn of_image<S: ReadAt>(&self, image: &Image<S>) -> Option<&System> {
        let matching = self.systems.iter().filter_map(|system| {
            let patterns = system.images.iter().filter(|p| p.matches(image));
            let length = patterns.map(ImagePattern::weight).max()?;
            Some((length, system))
        });
        matching
            .max_by_key(|(length, _)| *length)
            .map(|(_, system)| system)
    }

    /// The system that a tree holds, by its `.treeinfo`.
    pub fn of_tree(&self, info: &TreeInfo) -> Option<&System> {
        self.systems
            .iter()
            .find(|system| system.trees.iter().any(|pattern| pattern.matches(info)))
    }

    /// The system of an install tree: its image's descriptor, else its `.treeinfo`, else what
    /// `product` says.
    pub fn detect(&self, tree: Option<&Tree>, installer: &super::Installer) -> Option<&System> {
        let image = tree.and_then(Tree::image);
        image
            .and_then(|image| self.of_image(image))
            .or_else(|| installer.treeinfo.as_ref().and_then(|i| self.of_tree(i)))
            .or_else(|| {
                let product = installer.product.as_ref()?;
                self.get(&product.short_id())
            })
    }

    /// What a system needs, from the nearest of those it comes from where it does not say.
    pub fn resources(&self, system: &System) -> Resources {
        let mut found = system.own;
        let mut next = system.ancestors.first();
        for _ in 0..MAX_ANCESTORS {
            let Some(above) = next.and_then(|id| self.get(id)) else {
                break;
            };
            found.fill(above.own);
            next = above.ancestors.first();
        }
        found
    }
}

impl Resources {
    fn fill(&mut self, other: Self) {
        let fields = [
            (&mut self.minimum_memory, other.minimum_memory),
            (&mut self.recommended_memory, other.recommended_memory),
            (
                &mut self.network_install_memory,
                other.network_install_memory,
            ),
            (&mut self.minimum_storage, other.minimum_storage),
            (&mut self.recommended_storage, other.recommended_storage),
        ];
        for (own, other) in fields {
            *own = own.or(other);
        }
    }
}

impl System {
    /// The usual short id.
    pub fn short_id(&self) -> &str {
        self.short_ids.first().map_or("", String::as_str)
    }
}

impl ImagePattern {
    fn matches<S: ReadAt>(&self, image: &Image<S>) -> bool {
        let text = |pattern: &Option<Regex>, text: &str| {
            pattern
                .as_ref()
                .is_none_or(|pattern| pattern.is_match(text))
        };
        let any = self.label.is_some() || self.system.is_some() || self.publisher.is_some();
        any && text(&self.label, image.label())
            && text(&self.system, image.system())
            && text(&self.publisher, image.publisher())
            && text(&self.application, image.application())
            && self.size.is_none_or(|size| size == image.volume_size())
    }

    fn weight(&self) -> usize {
        let length = |pattern: &Option<Regex>| pattern.as_ref().map_or(0, |p| p.as_str().len());
        let size = if self.size.is_some() { 100 } else { 0 };
        length(&self.label) * 4 + length(&self.system) + length(&self.publisher) + size
    }
}

impl TreePattern {
    fn matches(&self, info: &TreeInfo) -> bool {
        let text = |pattern: &Option<Regex>, text: Option<&str>| {
            pattern
                .as_ref()
                .is_none_or(|pattern| text.is_some_and(|text| pattern.is_match(text)))
        };
        self.family.is_some()
            && text(&self.family, info.family())
            && text(&self.variant, info.variant())
            && text(&self.version, info.version())
            && text(&self.arch, info.arch())
    }
}

/// What a folder has, sorted; nothing if it is not there.
fn folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn system(node: Node<'_, '_>) -> Option<System> {
    let text = |name: &str| child_text(node, name).map(str::to_owned);
    let texts = |name: &'static str| {
        node.children()
            .filter(move |child| child.has_tag_name(name))
            .filter_map(|child| child.text())
            .map(|text| text.trim().to_owned())
    };
    let above = ["derives-from", "clones", "upgrades"];
    let ancestors = above.iter().filter_map(|name| {
        let child = node.children().find(|child| child.has_tag_name(*name))?;
        child.attribute("id").map(str::to_owned)
    });
    Some(System {
        id: node.attribute("id")?.to_owned(),
        short_ids: texts("short-id").collect(),
        name: text("name")?,
        family: text("family"),
        distro: text("distro"),
        version: text("version"),
        own: resources(node),
        ancestors: ancestors.collect(),
        images: for_us(node, "media").filter_map(image_pattern).collect(),
        trees: for_us(node, "tree").filter_map(tree_pattern).collect(),
    })
}

/// Children for this machine's architecture.
fn for_us<'a>(node: Node<'a, 'a>, name: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children()
        .filter(move |child| child.has_tag_name(name))
        .filter(|child| matches!(child.attribute("arch"), None | Some("all" | "x86_64")))
}

fn resources(node: Node<'_, '_>) -> Resources {
    let mut found = Resources::default();
    for node in node
        .children()
        .filter(|child| child.has_tag_name("resources"))
    {
        let value = |kind: &str, name: &str| {
            let kind = node.children().find(|child| child.has_tag_name(kind))?;
            child_text(kind, name)?.parse().ok()
        };
        let own = Resources {
            minimum_memory: value("minimum", "ram"),
            recommended_memory: value("recommended", "ram"),
            network_install_memory: value("network-install", "ram"),
            minimum_storage: value("minimum", "storage"),
            recommended_storage: value("recommended", "storage"),
        };
        match node.attribute("arch") {
            // What is for this architecture goes before what is for all.
            Some("x86_64") => {
                let general = std::mem::replace(&mut found, own);
                found.fill(general);
            }
            None | Some("all") => found.fill(own),
            _ => {}
        }
    }
    found
}

fn image_pattern(node: Node<'_, '_>) -> Option<ImagePattern> {
    let iso = node.children().find(|child| child.has_tag_name("iso"))?;
    Some(ImagePattern {
        label: pattern(iso, "volume-id")?,
        system: pattern(iso, "system-id")?,
        publisher: pattern(iso, "publisher-id")?,
        application: pattern(iso, "application-id")?,
        size: child_text(iso, "volume-size").and_then(|text| text.parse().ok()),
    })
}

fn tree_pattern(node: Node<'_, '_>) -> Option<TreePattern> {
    let info = node
        .children()
        .find(|child| child.has_tag_name("treeinfo"))?;
    Some(TreePattern {
        family: pattern(info, "family")?,
        variant: pattern(info, "variant")?,
        version: pattern(info, "version")?,
        arch: pattern(info, "arch")?,
    })
}

/// A pattern if the element is there; outer `None` if it cannot be understood, so that it is
/// not taken for one that matches everything.
fn pattern(node: Node<'_, '_>, name: &str) -> Option<Option<Regex>> {
    match child_text(node, name) {
        None => Some(None),
        Some(text) => RegexBuilder::new(text)
            .size_limit(1 << 20)
            .build()
            .ok()
            .map(Some),
    }
}

fn child_text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let child = node
        .children()
        .find(|child| child.has_tag_name(name) && child.attributes().len() == 0)?;
    child.text().map(str::trim)
}
