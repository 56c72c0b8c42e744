//! Going back to a snapshot.

use super::change::{SnapshotChange, definition_of, text_of};
use super::find;
use super::table;
use crate::domains::error::Error as DomainError;
use crate::error::Result;
use crate::node::Node;

impl Node {
    /// Makes a domain that does not run what it was at a snapshot: its disks and its definition.
    /// What its disks hold now is gone unless another snapshot holds it.
    ///
    /// # Errors
    /// There is no such domain or snapshot; the domain runs or is transient; the snapshot lies in
    /// files beside the images; something else stands on an image.
    pub fn domain_snapshot_revert(&self, key: &str, name: &str) -> Result<()> {
        let (row, _lock) = self.lock_domain(key)?;
        if !row.persistent {
            let reason = "a transient domain is not there any more when it does not run";
            let hint = format!("define it first: cenote define {}.xml", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        if self.managed_save_path(&row.uuid).exists() {
            let reason = "its managed save would go on with other disks";
            let hint = format!("remove it first: cenote managedsave-remove {}", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        let rows = table::all(self.state(), row.id)?;
        let snapshot = find(&row, &rows, name)?;
        let images = self.images_of_snapshot(&row, snapshot, "gone back to")?;
        let change = SnapshotChange {
            domain: row.name.clone(),
            uuid: row.uuid.clone(),
            snapshot: snapshot.id,
            name: snapshot.name.clone(),
            images,
            definition: Some(text_of(&definition_of(snapshot)?)),
        };
        match self.is_read_only() {
            true => Ok(()),
            false => self.change_snapshot(&row, change),
        }
    }
}
