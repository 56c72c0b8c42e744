//! Where files of domains lie.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::node::Node;

/// So much of a name fits into a file's name beside the UUID.
const LONGEST_NAME: usize = 200;

impl Node {
    /// Directory of locks and of what runs.
    pub(crate) fn domains_dir(&self) -> PathBuf {
        self.runtime_dir().join("domains")
    }

    /// Directory of a running domain: its sockets, its machine description. The name in it is
    /// for whoever lists processes, the UUID keeps two of one name apart.
    pub(crate) fn run_dir(&self, uuid: &str, name: &str) -> PathBuf {
        let mut end = name.len().min(LONGEST_NAME);
        while !name.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let shown = name.get(..end).unwrap_or_default();
        self.domains_dir().join(format!("{shown}.{uuid}"))
    }

    /// Directory of a domain's logs. They outlive the domain, as libvirt's do.
    pub fn domain_log_dir(&self, name: &str) -> PathBuf {
        self.state_dir().join("log").join(name)
    }

    /// Removes a domain's logs.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn domain_remove_logs(&self, name: &str) -> Result<()> {
        let path = self.domain_log_dir(name);
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
                action: "remove the logs in",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Directory of managed saves.
    pub(crate) fn save_dir(&self) -> PathBuf {
        self.state_dir().join("save")
    }

    /// Directory of what a domain's snapshots keep of its memory.
    pub(crate) fn memory_dir(&self, uuid: &str) -> PathBuf {
        self.state_dir().join("snapshots").join(uuid)
    }

    /// Forgets the memory that snapshots of a domain kept which is gone.
    pub(crate) fn forget_memory(&self, uuid: &str) {
        let path = self.memory_dir(uuid);
        if let Err(error) = std::fs::remove_dir_all(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "kept memory stays");
        }
    }

    /// The same, if there is no such domain any more.
    pub(crate) fn forget_memory_of_gone(&self, uuid: &str) {
        if self.memory_dir(uuid).exists()
            && matches!(super::table::find(self.state(), uuid), Ok(None))
        {
            self.forget_memory(uuid);
        }
    }

    /// The managed save of a domain, if it has one.
    pub(crate) fn managed_save_path(&self, uuid: &str) -> PathBuf {
        self.save_dir().join(format!("{uuid}.save"))
    }
}
