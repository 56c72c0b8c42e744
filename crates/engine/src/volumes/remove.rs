//! Deleting volumes.

use cenote_pools::file::{private_sibling, remove_private, retire};
use cenote_pools::{VolumeId, VolumeKind};

use crate::error::{Error, Result};
use crate::node::Node;
use crate::plan::Plan;
use crate::records;

impl Node {
    /// Deletes a volume: takes its name away, then the file. The content is
    /// not overwritten; that is wiping.
    ///
    /// # Errors
    /// Others stand on it (they are named) or something uses it; nothing is
    /// changed then.
    pub fn volume_delete(&self, volume: &VolumeId) -> Result<()> {
        let info = self.volume(volume)?;
        self.ensure_changeable(&info, &[])?;
        if info.kind == VolumeKind::Block {
            return self.delete_logical(&info.id());
        }
        let trash = private_sibling(&info.path, "old");
        let operation = self.begin(Plan::VolumeDelete {
            volume: info.id(),
            path: info.path.clone(),
            trash: trash.clone(),
        })?;
        let result = retire(&info.path, &trash)
            .and_then(|()| remove_private(&trash))
            .map_err(Error::from)
            .and_then(|()| records::remove(self.state(), &info.id()));
        operation.finish(result)
    }

    fn delete_logical(&self, volume: &VolumeId) -> Result<()> {
        let row = self.running_pool(&volume.pool)?;
        let group = row.logical()?;
        let operation = self.begin(Plan::LogicalDelete {
            volume: volume.clone(),
        })?;
        let result = group
            .remove(&volume.name)
            .map_err(Error::from)
            .and_then(|()| records::remove(self.state(), volume));
        operation.finish(result)
    }
}
