//! `.treeinfo`: what Fedora's and its relatives' trees say of themselves (productmd 1.x).

use std::collections::BTreeMap;

/// The sections of a `.treeinfo` file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeInfo {
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl TreeInfo {
    /// Reads the text; what is no section, value or comment is passed over, as the programs
    /// that read these files do.
    pub fn parse(text: &str) -> Self {
        let mut info = Self::default();
        let mut section = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.trim().to_owned();
            } else if line.starts_with(['#', ';']) {
                continue;
            } else if let Some((key, value)) = line.split_once('=') {
                let values = info.sections.entry(section.clone()).or_default();
                values.insert(key.trim().to_owned(), value.trim().to_owned());
            }
        }
        info
    }

    /// A value; `None` if it is empty.
    pub fn get(&self, section: &str, key: &str) -> Option<&str> {
        let value = self.sections.get(section)?.get(key)?.as_str();
        (!value.is_empty()).then_some(value)
    }

    /// Family, such as `Fedora` or `Red Hat Enterprise Linux`.
    pub fn family(&self) -> Option<&str> {
        self.get("general", "family")
            .or_else(|| self.get("release", "name"))
    }

    /// Version.
    pub fn version(&self) -> Option<&str> {
        self.get("general", "version")
            .or_else(|| self.get("release", "version"))
    }

    /// Variant, such as `Server`.
    pub fn variant(&self) -> Option<&str> {
        self.get("general", "variant")
    }

    /// Architecture.
    pub fn arch(&self) -> Option<&str> {
        self.get("general", "arch")
            .or_else(|| self.get("tree", "arch"))
    }

    /// Paths of kernel and initrd for an architecture.
    pub fn boot(&self, arch: &str) -> Option<(String, String)> {
        let section = format!("images-{arch}");
        let path = |key| self.get(&section, key).map(str::to_owned);
        Some((path("kernel")?, path("initrd")?))
    }

    /// Path of the second stage, which Anaconda is in.
    pub fn stage2(&self) -> Option<&str> {
        self.get("stage2", "mainimage")
    }
}
