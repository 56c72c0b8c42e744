//! What wiping needs to know of the node: formats, dependents and users of
//! volumes, and a folder for its records.

use std::path::{Path, PathBuf};

use cenote_pools::wipe::{Error as WipeError, FileJournal, Usage, WipeRequest};
use cenote_pools::{VolumeId, VolumeKind};

use crate::error::Result;
use crate::node::Node;
use crate::records;

impl Node {
    /// The default wipe of a volume, by its recorded format, to be given to
    /// [`cenote_pools::wipe::Wiper`] with [`Node::wipe_journal`] and the node
    /// itself as [`Usage`].
    ///
    /// # Errors
    /// There is no such volume, or its format is not trusted.
    pub fn wipe_request(&self, volume: &VolumeId) -> Result<WipeRequest> {
        let info = self.volume(volume)?;
        let format = self.trusted_format(&info)?;
        // Device nodes are links of the volume group; wiping follows none.
        let path = match info.kind {
            VolumeKind::Block => std::fs::canonicalize(&info.path).unwrap_or(info.path.clone()),
            _ => info.path.clone(),
        };
        let mut request = WipeRequest::new(path, format);
        request.volume = Some(info.id().to_string());
        Ok(request)
    }

    /// The records of wipes on this node, in `wipes` of the state directory.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn wipe_journal(&self) -> std::result::Result<FileJournal, WipeError> {
        FileJournal::open(&self.state_dir().join("wipes"))
    }

    /// Forgets what the node knows of a volume whose file a wipe removed.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn volume_wiped_away(&self, volume: &VolumeId) -> Result<()> {
        records::remove(self.state(), volume)
    }
}

impl Usage for Node {
    fn dependents(
        &self,
        path: &Path,
        besides: &[PathBuf],
    ) -> std::result::Result<Vec<String>, WipeError> {
        let dependents = self
            .dependents_of(path)
            .map_err(|error| unknown(path, &error))?;
        let mut named = Vec::new();
        for id in dependents {
            let info = self.volume(&id).map_err(|error| unknown(path, &error))?;
            let real = |path: &Path| std::fs::canonicalize(path).unwrap_or(path.to_owned());
            if !besides.iter().any(|other| real(other) == real(&info.path)) {
                named.push(id.to_string());
            }
        }
        Ok(named)
    }

    fn domains(&self, path: &Path) -> std::result::Result<Vec<String>, WipeError> {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(self
            .usages()
            .iter()
            .flat_map(|usage| usage.users(&real))
            .collect())
    }
}

fn unknown(path: &Path, error: &crate::error::Error) -> WipeError {
    WipeError::UsageUnknown {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
