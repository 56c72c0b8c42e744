//! Where files of domains lie.

use std::path::PathBuf;

use crate::node::Node;

impl Node {
    /// Directory of locks and of what runs.
    pub(crate) fn domains_dir(&self) -> PathBuf {
        self.runtime_dir().join("domains")
    }

    /// Directory of a running domain: its sockets, its machine description.
    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.domains_dir().join(name)
    }

    /// Directory of a domain's logs. They outlive the domain, as libvirt's do.
    pub fn domain_log_dir(&self, name: &str) -> PathBuf {
        self.state_dir().join("log").join(name)
    }

    /// Directory of managed saves.
    pub(crate) fn save_dir(&self) -> PathBuf {
        self.state_dir().join("save")
    }

    /// The managed save of a domain, if it has one.
    pub(crate) fn managed_save_path(&self, uuid: &str) -> PathBuf {
        self.save_dir().join(format!("{uuid}.save"))
    }
}
