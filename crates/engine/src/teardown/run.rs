//! The deed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cenote_pools::wipe::Wiped;
use cenote_pools::{Error as StorageError, Progress, crash};

use super::{Inventory, STOPPED, Teardown, TeardownOptions, TornDown, WIPED};
use crate::domains::{DefineOptions, Error as DomainError, UndefineOptions, XmlOptions};
use crate::error::{Error, Result};
use crate::journal::Operation;
use crate::node::Node;
use crate::plan::Plan;
use crate::wipes::WipeOptions;

impl Node {
    /// Takes a domain away with all that is its own: stops it, wipes its volumes and files if
    /// that is asked for, deletes them, and forgets the definition. What others have a share in
    /// is kept, and the answer names it. Killed anywhere, the next command goes on with it, or
    /// says how.
    ///
    /// # Errors
    /// There is no such domain; something of it is in use; a wipe was refused, stopped or could
    /// not be proved. What is left is still defined then, and the same call goes on.
    pub fn domain_teardown(
        &self,
        key: &str,
        options: &TeardownOptions,
        progress: &dyn Progress,
    ) -> Result<TornDown> {
        let inventory = self.domain_inventory(key, options)?;
        let teardown = Teardown {
            name: inventory.name.clone(),
            uuid: inventory.uuid.clone(),
            volumes: inventory.volumes.clone(),
            files: inventory.files.clone(),
            wipe: options.wipe.is_some(),
            options: options.words(),
        };
        let mut operation = self.begin(Plan::Teardown(teardown.clone()))?;
        match self.tear_down(&mut operation, &teardown, &inventory, options, progress) {
            Ok((wiped, certificate)) => {
                operation.finish(Ok(()))?;
                Ok(TornDown {
                    inventory,
                    wiped,
                    certificate,
                })
            }
            Err(error) => {
                operation.revise(STOPPED, |_| {})?;
                operation.finish(Err(error))
            }
        }
    }

    fn tear_down(
        &self,
        operation: &mut Operation<'_>,
        teardown: &Teardown,
        inventory: &Inventory,
        options: &TeardownOptions,
        progress: &dyn Progress,
    ) -> Result<(Vec<Wiped>, Option<PathBuf>)> {
        if !inventory.persistent {
            // A transient domain would be forgotten with its guest, and with it what is its own.
            let document = XmlOptions {
                inactive: true,
                secure: true,
                ..XmlOptions::default()
            };
            let xml = self.domain_xml(&inventory.uuid, document)?;
            self.domain_define(&xml, DefineOptions::default())?;
            crash::point("teardown-defined");
        }
        let mut wiped = Vec::new();
        if let Some(wipe) = &options.wipe {
            teardown.stop(self)?;
            self.note_inventory(inventory)?;
            crash::point("teardown-noted");
            let progress = operation.progress(progress);
            operation.part(|| teardown.wipe(self, wipe, &progress, &mut wiped))?;
            operation.revise(WIPED, |_| {})?;
        }
        let certificate = operation.part(|| teardown.finish(self))?;
        Ok((wiped, certificate))
    }
}

impl Teardown {
    /// Ends the guest, if it runs.
    fn stop(&self, node: &Node) -> Result<()> {
        let runs = match node.domain(&self.uuid) {
            Ok(info) => info.id.is_some(),
            Err(Error::Domain(DomainError::NotFound(_))) => false,
            Err(error) => return Err(error),
        };
        if !runs {
            return Ok(());
        }
        match node.domain_destroy(&self.uuid, false) {
            Ok(_) => {}
            // It may have ended by itself meanwhile.
            Err(error) => {
                if node.domain(&self.uuid)?.id.is_some() {
                    return Err(error);
                }
            }
        }
        crash::point("teardown-stopped");
        Ok(())
    }

    /// Overwrites and removes everything, one after the other: a volume that others of the
    /// domain stand on is let go by them first.
    fn wipe(
        &self,
        node: &Node,
        options: &WipeOptions,
        progress: &dyn Progress,
        wiped: &mut Vec<Wiped>,
    ) -> Result<()> {
        let options = WipeOptions {
            chain: false,
            delete: true,
            ..options.clone()
        };
        for volume in &self.volumes {
            let results = node.volumes_wipe(std::slice::from_ref(volume), &options, 1, progress)?;
            for result in results {
                let result = result?;
                let verdict = &result.report.verdict;
                if verdict.is_failed() {
                    let what = format!("volume '{volume}'");
                    let reason = format!("it is not wiped: {verdict}");
                    return Err(StorageError::Invalid { what, reason }.into());
                }
                wiped.push(result);
            }
            crash::point("teardown-volume-wiped");
        }
        let files = self.files.iter().filter(|path| path.exists());
        // A log without anything in it has nothing to be overwritten.
        let filled = |path: &&std::path::PathBuf| fs::metadata(path).is_ok_and(|m| m.len() > 0);
        let files: Vec<_> = files.filter(filled).cloned().collect();
        wiped.extend(node.files_wipe(&files, &options, progress)?);
        Ok(())
    }

    /// Deletes what is there of it, then forgets the domain. Each step can be taken twice.
    /// Answers the certificate of the whole, where it was wiped.
    pub(super) fn finish(&self, node: &Node) -> Result<Option<PathBuf>> {
        self.stop(node)?;
        for volume in &self.volumes {
            match node.volume_delete(volume) {
                Ok(()) | Err(Error::Storage(StorageError::VolumeNotFound { .. })) => {}
                Err(error) => return Err(error),
            }
            crash::point("teardown-volume");
        }
        for path in &self.files {
            remove_file(path)?;
            crash::point("teardown-file");
        }
        let options = UndefineOptions {
            managed_save: true,
            nvram: Some(true),
            snapshots_metadata: true,
        };
        match node.domain_undefine(&self.uuid, options) {
            Ok(_) | Err(Error::Domain(DomainError::NotFound(_))) => {}
            Err(error) => return Err(error),
        }
        crash::point("teardown-undefined");
        // What the supervisor wrote after the inventory was made.
        node.domain_remove_logs(&self.name)?;
        let certificate = if self.wipe {
            node.certify_teardown(&self.uuid)?
        } else {
            None
        };
        node.forget_inventory(&self.uuid)?;
        Ok(certificate)
    }
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
