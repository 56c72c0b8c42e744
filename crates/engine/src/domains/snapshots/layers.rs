//! Images that were made for snapshots and are not needed any more.
//!
//! Deleting a snapshot, or going back to one, can leave images behind: ones that nothing stands on
//! any more, which are removed, and ones whose base is nobody's state any more, which are merged
//! into it. Only images that were made for the domain's snapshots are taken out, and a merge goes
//! only into what such an image was put on. Each is an operation of its own; what is left out,
//! because something else stands on it or the domain runs, is looked at again the next time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cenote_image::Format;
use cenote_model::Document as _;
use cenote_model::domain::{Domain, SnapshotMode};
use cenote_model::snapshot::SnapshotDomain;
use cenote_pools::file::{private_sibling, remove_private, retire};
use cenote_pools::{NoProgress, VolumeId};
use serde::{Deserialize, Serialize};

use super::overlay::{set_source, text_of};
use super::table::{self, SnapshotRow};
use super::{SnapshotImage, domain_of, parse_snapshot};
use crate::domains::error::Error as DomainError;
use crate::domains::read::parse_stored;
use crate::domains::table as domains;
use crate::domains::table::DomainRow;
use crate::error::Result;
use crate::journal::RepairOutcome::{self, RolledBack, RolledForward};
use crate::node::Node;
use crate::plan::Plan;
use crate::records;
use crate::volumes::ImageRef;
use crate::volumes::guard::{Identity, identity};

/// An image that is taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerChange {
    pub(crate) domain: String,
    pub(crate) uuid: String,
    pub(crate) image: ImageRef,
    /// What its data goes into; without one nothing shows it.
    pub(crate) base: Option<ImageRef>,
    /// Images that stand on it and then on the base.
    pub(crate) overlays: Vec<ImageRef>,
    /// Its name on the way out.
    pub(crate) trash: PathBuf,
}

/// How the images of a domain hang together.
struct Layers {
    /// Images that a document names, with their formats.
    tops: BTreeMap<PathBuf, Format>,
    /// What each image stands on directly.
    below: BTreeMap<PathBuf, PathBuf>,
    formats: BTreeMap<PathBuf, Format>,
    /// Files that cannot be told from others, because they are not there.
    ids: BTreeMap<PathBuf, Identity>,
}

impl Layers {
    fn reaches(&self, wanted: Identity) -> bool {
        let mut all = self
            .tops
            .keys()
            .chain(self.below.keys())
            .chain(self.below.values());
        all.any(|path| self.ids.get(path) == Some(&wanted))
    }

    fn is_top(&self, wanted: Identity) -> bool {
        self.tops
            .keys()
            .any(|path| self.ids.get(path) == Some(&wanted))
    }

    fn base_of(&self, wanted: Identity) -> Option<&PathBuf> {
        let mut found = self.below.iter();
        let found = found.find(|(path, _)| self.ids.get(*path) == Some(&wanted));
        found.map(|(_, base)| base)
    }

    fn overlays_of(&self, wanted: Identity) -> Vec<&PathBuf> {
        let mut seen: Vec<Identity> = Vec::new();
        let mut overlays = Vec::new();
        for (path, base) in &self.below {
            let Some(id) = self
                .ids
                .get(path)
                .filter(|_| self.ids.get(base) == Some(&wanted))
            else {
                continue;
            };
            if !seen.contains(id) {
                seen.push(*id);
                overlays.push(path);
            }
        }
        overlays
    }
}

impl Node {
    /// Takes out what a domain's snapshots do not need any more.
    pub(super) fn tidy_layers(&self, uuid: &str) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        while let Some(change) = self.next_to_tidy(uuid)? {
            let operation = self.begin(Plan::LayerChange(change.clone()))?;
            let result = self.change_layer(operation, &change);
            result?;
        }
        Ok(())
    }

    fn change_layer(
        &self,
        mut operation: crate::journal::Operation<'_>,
        change: &LayerChange,
    ) -> Result<()> {
        let moved = match &change.base {
            Some(base) => {
                let progress = operation.progress(&NoProgress);
                self.commit_image(&change.image, base, &progress)
            }
            None => Ok(()),
        };
        let result = moved
            .and_then(|()| operation.revise(1, |_| {}))
            .and_then(|()| self.finish_layer_change(change));
        operation.finish(result)
    }

    fn next_to_tidy(&self, uuid: &str) -> Result<Option<LayerChange>> {
        let Some(row) = domains::find(self.state(), uuid)? else {
            return Ok(None);
        };
        let made = table::images(self.state(), row.id)?;
        if made.is_empty() || row.is_active() {
            return Ok(None);
        }
        let rows = table::all(self.state(), row.id)?;
        let layers = self.layers_of(&row, &rows)?;
        let change = |path: &Path, format, base, overlays| LayerChange {
            domain: row.name.clone(),
            uuid: row.uuid.clone(),
            image: ImageRef {
                path: path.to_owned(),
                format,
            },
            base,
            overlays,
            trash: private_sibling(path, "old"),
        };
        for (path, base) in &made {
            let path = Path::new(path);
            let Some(id) = identity(path) else {
                self.state().write("forget an image", |transaction| {
                    table::forget_image(transaction, row.id, &text_of(path), base.as_deref())
                })?;
                continue;
            };
            if !layers.reaches(id) {
                if !self.others_stand_on(&row, path, &layers)? {
                    return Ok(Some(change(path, Format::Qcow2, None, Vec::new())));
                }
                continue;
            }
            let (Some(expected), Some(below)) = (base, layers.base_of(id)) else {
                continue;
            };
            let Some(base_id) = layers.ids.get(below).copied() else {
                continue;
            };
            let alone = layers.overlays_of(base_id).len() == 1;
            if identity(Path::new(expected)) != Some(base_id)
                || layers.is_top(base_id)
                || !alone
                || !self.may_merge(&row, path, below, &layers)?
            {
                continue;
            }
            let reference = |path: &PathBuf| {
                let format = layers.formats.get(path).copied().unwrap_or(Format::Qcow2);
                ImageRef {
                    path: path.clone(),
                    format,
                }
            };
            let overlays = layers.overlays_of(id).into_iter().map(reference).collect();
            return Ok(Some(change(
                path,
                Format::Qcow2,
                Some(reference(below)),
                overlays,
            )));
        }
        Ok(None)
    }

    /// Whether an image of a domain can give its data to what it stands on.
    fn may_merge(
        &self,
        row: &DomainRow,
        path: &Path,
        below: &Path,
        layers: &Layers,
    ) -> Result<bool> {
        let image = SnapshotImage {
            target: String::new(),
            path: path.to_owned(),
            format: Format::Qcow2,
        };
        // What it holds inside reads from below what it does not hold.
        if !self.internal_names(&image)?.is_empty()
            || self.others_stand_on(row, below, layers)?
            || self.others_stand_on(row, path, layers)?
        {
            return Ok(false);
        }
        let size = |path: &Path| -> Result<u64> {
            let format = layers.formats.get(path).copied().unwrap_or(Format::Qcow2);
            Ok(self.open_image(path, format, false)?.size())
        };
        Ok(size(path)? == size(below)?)
    }

    /// Whether anything but this domain's own images stands on an image, or has it.
    fn others_stand_on(&self, row: &DomainRow, path: &Path, layers: &Layers) -> Result<bool> {
        for id in self.dependents_of(path)? {
            let volume = identity(&self.volume(&id)?.path);
            if !volume.is_some_and(|volume| layers.reaches(volume)) {
                return Ok(true);
            }
        }
        let wanted = identity(path);
        for other in self
            .domain_rows()?
            .iter()
            .filter(|other| other.id != row.id)
        {
            let documents = self.documents_of(other)?;
            let texts = documents.definition.iter().chain(&documents.live);
            let mut found = Vec::new();
            for text in texts {
                found.push(parse_stored(&other.name, text)?);
            }
            for snapshot in table::all(self.state(), other.id)? {
                found.push(domain_of(&snapshot)?);
            }
            let images = found
                .iter()
                .flat_map(|document| self.images_of_domain(document));
            if images.map(|image| identity(&image)).any(|id| id == wanted) {
                return Ok(true);
            }
        }
        Ok(!self.users_of(path)?.is_empty())
    }

    fn layers_of(&self, row: &DomainRow, rows: &[SnapshotRow]) -> Result<Layers> {
        let mut layers = Layers {
            tops: BTreeMap::new(),
            below: BTreeMap::new(),
            formats: BTreeMap::new(),
            ids: BTreeMap::new(),
        };
        let documents = self.documents_of(row)?;
        let mut images = Vec::new();
        for text in documents.definition.iter().chain(&documents.live) {
            let document = parse_stored(&row.name, text)?;
            images.extend(self.images_to_keep(&document)?.into_values());
        }
        for snapshot in rows {
            let said = parse_snapshot(snapshot)?;
            let left_out = |target: &str| {
                let mut disks = said.disks().iter();
                disks.any(|d| d.name == target && d.mode == Some(SnapshotMode::No))
            };
            let all = self.images_to_keep(&domain_of(snapshot)?)?;
            images.extend(all.into_values().filter(|image| !left_out(&image.target)));
        }
        for image in images {
            layers.tops.insert(image.path.clone(), image.format);
            layers.formats.insert(image.path.clone(), image.format);
            let mut next = Some((image.path, image.format));
            while let Some((above, format)) = next.take() {
                if let Some((path, format)) = self.direct_base(&above, format)?
                    && layers.below.insert(above, path.clone()).is_none()
                {
                    layers.formats.entry(path.clone()).or_insert(format);
                    next = Some((path, format));
                }
            }
        }
        let all = layers.formats.keys();
        layers.ids = all
            .filter_map(|path| Some((path.clone(), identity(path)?)))
            .collect();
        Ok(layers)
    }

    /// What an image stands on, if that is there, and the format it declares that to have.
    fn direct_base(&self, above: &Path, format: Format) -> Result<Option<(PathBuf, Format)>> {
        if format != Format::Qcow2 || !above.exists() {
            return Ok(None);
        }
        let layer = self.layers().read(above)?;
        let Some(backing) = &layer.backing else {
            return Ok(None);
        };
        let format = backing.format.as_deref().and_then(|name| name.parse().ok());
        let path = backing.path.as_ref().filter(|path| path.exists());
        Ok(path
            .cloned()
            .map(|path| (path, format.unwrap_or(Format::Raw))))
    }

    /// The part after the data has moved, whatever of it is done already.
    fn finish_layer_change(&self, change: &LayerChange) -> Result<()> {
        let row = domains::find(self.state(), &change.uuid)?;
        if let Some(row) = row.as_ref().filter(|row| row.is_active()) {
            return Err(DomainError::Busy(row.name.clone()).into());
        }
        for overlay in &change.overlays {
            self.rename_base(overlay, change.base.as_ref())?;
        }
        if let Some(row) = &row {
            self.forget_layer(row, change)?;
        }
        if let Some(volume) = self.volume_at(&change.image.path)? {
            records::remove(self.state(), &VolumeId::new(volume.pool, volume.name))?;
        }
        if change.image.path.exists() {
            retire(&change.image.path, &change.trash)?;
        }
        remove_private(&change.trash)?;
        Ok(())
    }

    /// Names the base wherever the image was named.
    fn forget_layer(&self, row: &DomainRow, change: &LayerChange) -> Result<()> {
        let wanted = identity(&change.image.path);
        let renamed = |document: &mut Domain| {
            let Some(base) = &change.base else {
                return false;
            };
            let mut changed = false;
            for disk in &mut document.devices.disks {
                let Ok((path, _)) = self.top_image(disk) else {
                    continue;
                };
                if path == change.image.path || (wanted.is_some() && identity(&path) == wanted) {
                    let same_folder = path.parent() == base.path.parent();
                    set_source(disk, &base.path, base.format, same_folder);
                    changed = true;
                }
            }
            changed
        };
        let documents = self.documents_of(row)?;
        let mut definition = None;
        if let Some(text) = &documents.definition {
            let mut document = parse_stored(&row.name, text)?;
            if renamed(&mut document) {
                definition = Some(document.to_xml());
            }
        }
        let mut snapshots = Vec::new();
        for snapshot in table::all(self.state(), row.id)? {
            let mut document = parse_snapshot(&snapshot)?;
            let mut changed = false;
            if let Some(SnapshotDomain::Full(domain)) = &mut document.domain {
                changed |= renamed(domain);
            }
            if let Some(domain) = &mut document.inactive_domain {
                changed |= renamed(domain);
            }
            if changed {
                snapshots.push((snapshot.id, document.to_xml()));
            }
        }
        let (path, base) = (text_of(&change.image.path), change.base.as_ref());
        let base = base.map(|base| text_of(&base.path));
        self.state().write("forget an image", |transaction| {
            if let Some(definition) = &definition {
                transaction.execute(
                    "UPDATE domains SET definition = ?2 WHERE id = ?1 AND live IS NULL",
                    rusqlite::params![row.id, definition],
                )?;
            }
            for (id, xml) in &snapshots {
                table::set_document(transaction, *id, xml)?;
            }
            table::forget_image(transaction, row.id, &path, base.as_deref())
        })
    }

    /// Brings an interrupted one to an end.
    pub(crate) fn settle_layer_change(
        &self,
        change: &LayerChange,
        step: i64,
    ) -> Result<(RepairOutcome, String)> {
        let shown = change.image.path.display();
        if step == 0 {
            for image in std::iter::once(&change.image).chain(&change.base) {
                if change.base.is_some() {
                    self.settle_image(&image.path, image.format)?;
                }
            }
            let text = format!(
                "the image '{shown}' of domain '{}' stays for now",
                change.domain
            );
            return Ok((RolledBack, text));
        }
        self.finish_layer_change(change)?;
        let text = format!(
            "the image '{shown}', which domain '{}' did not need any more, is gone",
            change.domain
        );
        Ok((RolledForward, text))
    }
}
