//! Wiping volumes of the node's pools, with certificates in the node's chain.
//!
//! The record of a wipe lies in a folder of its own rather than in the
//! database: it holds a secret that must be overwritten in place when the wipe
//! ends, which a database file cannot promise.

use std::ops::ControlFlow;
use std::path::PathBuf;

use cenote_pools::certificate::{Issuer, NodeIdentity, PublicKey};
use cenote_pools::wipe::{
    self, Afterwards, Algorithm, Pending, Verify, WipeEvent, WipeRequest, Wiped, Wiper,
};
use cenote_pools::{Progress, VolumeId, VolumeKind};
use parking_lot::Mutex;

use crate::error::Result;
use crate::node::Node;
use crate::plan::Plan;

/// How to wipe a volume.
#[derive(Debug, Clone, Default)]
pub struct WipeOptions {
    /// The method.
    pub algorithm: Algorithm,
    /// How much of the last pass is read back.
    pub verify: Verify,
    /// Go on where nothing can be proved, and say so.
    pub best_effort: bool,
    /// Most bytes per second.
    pub limit: Option<u64>,
    /// Also the backing files that only this volume uses.
    pub chain: bool,
    /// Delete the volume when it is wiped.
    pub delete: bool,
}

/// One number over the passes and verifications of all volumes, for a bar.
struct Steps<'a> {
    progress: &'a dyn Progress,
    /// For each volume the work before its current part, done in that part,
    /// and in all.
    parts: Mutex<Vec<(u64, u64, u64)>>,
    verifies: bool,
}

impl<'a> Steps<'a> {
    fn new(progress: &'a dyn Progress, volumes: usize, verify: Verify) -> Self {
        let parts = Mutex::new(vec![(0, 0, 0); volumes]);
        Self {
            progress,
            parts,
            verifies: verify != Verify::None,
        }
    }

    fn event(&self, volume: usize, event: &WipeEvent<'_>) -> ControlFlow<()> {
        let mut parts = self.parts.lock();
        let Some(part) = parts.get_mut(volume) else {
            return ControlFlow::Continue(());
        };
        match *event {
            WipeEvent::Begin {
                stage,
                pass,
                passes,
                total,
                done,
                ..
            } => {
                let count = u64::from(passes.max(1)) + u64::from(self.verifies);
                let before = match stage {
                    wipe::Stage::Overwrite => u64::from(pass.saturating_sub(1)),
                    _ => u64::from(passes.max(1)),
                };
                *part = (
                    before.saturating_mul(total),
                    done,
                    count.saturating_mul(total),
                );
            }
            WipeEvent::Advanced { done } => part.1 = done,
            _ => return ControlFlow::Continue(()),
        }
        let done = parts.iter().map(|part| part.0.saturating_add(part.1)).sum();
        let total = parts.iter().map(|part| part.2).sum();
        drop(parts);
        self.progress.update(done, total)
    }
}

impl Node {
    /// Where the node's certificates of wiping lie.
    pub fn certificates_dir(&self) -> PathBuf {
        self.state_dir().join("certificates")
    }

    /// The number of the node's last certificate, 0 before the first.
    pub(crate) fn last_certificate(&self) -> Result<u64> {
        Ok(self.issuer()?.last_number().map_err(wipe::Error::from)?)
    }

    pub(crate) fn issuer(&self) -> Result<Issuer> {
        let key = self.state_dir().join("certificates.key");
        // The node is who holds its key.
        let public = cenote_pools::certificate::NodeKey::load_or_create(&key)
            .map_err(wipe::Error::from)?
            .public();
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let node = NodeIdentity {
            name,
            id: public.to_hex(),
        };
        Ok(Issuer::open(&self.certificates_dir(), &key, node).map_err(wipe::Error::from)?)
    }

    /// The key that checks the node's certificates; `None` before the first.
    ///
    /// # Errors
    /// The key file cannot be read.
    pub fn certificate_key(&self) -> Result<Option<PublicKey>> {
        let key = self.state_dir().join("certificates.key");
        if !key.exists() {
            return Ok(None);
        }
        let key = cenote_pools::certificate::NodeKey::load_or_create(&key);
        Ok(Some(key.map_err(wipe::Error::from)?.public()))
    }

    fn wipe_as(&self, volume: &VolumeId, options: &WipeOptions) -> Result<WipeRequest> {
        let afterwards = if options.delete {
            Afterwards::Remove
        } else {
            Afterwards::Keep
        };
        Ok(WipeRequest {
            algorithm: options.algorithm,
            verify: options.verify,
            best_effort: options.best_effort,
            limit: options.limit,
            chain: options.chain,
            afterwards,
            ..self.wipe_request(volume)?
        })
    }

    /// What [`Node::volumes_wipe`] would do.
    ///
    /// # Errors
    /// Those of [`Node::volumes_wipe`] that come before anything is written,
    /// except for the lack of a proof, which the plan's verdict tells.
    pub fn volume_wipe_plan(&self, volume: &VolumeId, options: &WipeOptions) -> Result<wipe::Plan> {
        let request = self.wipe_as(volume, options)?;
        Ok(wipe::Plan::of(&request, self)?)
    }

    /// Overwrites volumes, `parallel` at a time, reads them back and certifies
    /// them; takes up an interrupted wipe of the same volume and options. The
    /// results are in the order of `volumes`.
    ///
    /// # Errors
    /// For all: a volume is not there, or the node's records cannot be used.
    /// For one: it is in use, others depend on it, a proof is not possible and
    /// not waived, or it was stopped; then its record stays for
    /// [`Node::wipe_resume`]. That bytes are left is no error: the report's
    /// verdict says so.
    pub fn volumes_wipe(
        &self,
        volumes: &[VolumeId],
        options: &WipeOptions,
        parallel: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<Result<Wiped>>> {
        let mut requests = Vec::with_capacity(volumes.len());
        for volume in volumes {
            requests.push(self.wipe_as(volume, options)?);
        }
        let subjects = volumes.iter().map(VolumeId::to_string).collect();
        let results = self.wipe_job(subjects, progress, |progress| {
            let steps = Steps::new(progress, volumes.len(), options.verify);
            self.with_wiper(|wiper| {
                Ok(wiper.wipe_all(&requests, parallel, &|volume, event| {
                    steps.event(volume, event)
                }))
            })
        })?;
        let finish = |result: wipe::Result<Wiped>| self.after_wipe(result?);
        Ok(results.into_iter().map(finish).collect())
    }

    /// Overwrites files that are no volumes, certifies and removes them. The caller is an
    /// operation that has them.
    pub(crate) fn files_wipe(
        &self,
        files: &[PathBuf],
        options: &WipeOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Wiped>> {
        let request = |path: &PathBuf| WipeRequest {
            algorithm: options.algorithm,
            verify: options.verify,
            best_effort: options.best_effort,
            limit: options.limit,
            afterwards: Afterwards::Remove,
            ..WipeRequest::new(path.clone(), cenote_image::Format::Raw)
        };
        let requests: Vec<_> = files.iter().map(request).collect();
        let steps = Steps::new(progress, files.len(), options.verify);
        let results = self.with_wiper(|wiper| {
            Ok(wiper.wipe_all(&requests, 1, &|file, event| steps.event(file, event)))
        })?;
        let results = results.into_iter().map(|result| Ok(result?));
        results.collect()
    }

    /// Interrupted wipes, oldest first.
    ///
    /// # Errors
    /// Their records cannot be read.
    pub fn wipes_pending(&self) -> Result<Vec<Pending>> {
        if !self.state_dir().join("wipes").exists() {
            return Ok(Vec::new());
        }
        let journal = self.wipe_journal()?;
        Ok(Wiper::new(&journal, self).pending()?)
    }

    /// Takes up an interrupted wipe.
    ///
    /// # Errors
    /// There is none of that id, its volume is another now, or as
    /// [`Node::volumes_wipe`].
    pub fn wipe_resume(&self, id: &str, progress: &dyn Progress) -> Result<Wiped> {
        let pending = self.wipes_pending()?;
        let Some(pending) = pending.into_iter().find(|pending| pending.id == id) else {
            return Err(wipe::Error::NoSuchWipe { id: id.to_owned() }.into());
        };
        let subject = pending
            .volume
            .unwrap_or_else(|| pending.path.display().to_string());
        let mut results = self.wipe_job(vec![subject], progress, |progress| {
            let steps = Steps::new(progress, 1, Verify::All);
            let observer = |event: &WipeEvent<'_>| steps.event(0, event);
            self.with_wiper(|wiper| Ok(vec![wiper.resume(id, &observer)]))
        })?;
        self.after_wipe(results.swap_remove(0)?)
    }

    /// Runs `work` as a job, so that `job-list` shows it, `job-cancel` stops it
    /// and nothing else begins on its subjects.
    fn wipe_job(
        &self,
        subjects: Vec<String>,
        progress: &dyn Progress,
        work: impl FnOnce(&dyn Progress) -> Result<Vec<wipe::Result<Wiped>>>,
    ) -> Result<Vec<wipe::Result<Wiped>>> {
        let operation = self.begin(Plan::VolumeWipe { subjects })?;
        let progress = operation.progress(progress);
        let results = match work(&progress) {
            Ok(results) => results,
            error => return operation.finish(error),
        };
        let failure = results.iter().find_map(|result| match result {
            Err(error) => Some(error.to_string()),
            Ok(wiped) if wiped.report.verdict.is_failed() => Some(wiped.report.verdict.to_string()),
            Ok(_) => None,
        });
        // The volume is free again for what follows the wipe.
        operation.end(failure)?;
        Ok(results)
    }

    /// Drops the record of an interrupted wipe; the volume stays as it is.
    ///
    /// # Errors
    /// There is none of that id.
    pub fn wipe_forget(&self, id: &str) -> Result<()> {
        let journal = self.wipe_journal()?;
        Ok(Wiper::new(&journal, self).forget(id)?)
    }

    fn with_wiper<T>(&self, work: impl FnOnce(&Wiper<'_>) -> wipe::Result<T>) -> Result<T> {
        let journal = self.wipe_journal()?;
        let issuer = self.issuer()?;
        Ok(work(&Wiper::new(&journal, self).with_notary(&issuer))?)
    }

    /// A deleted volume leaves the node's records as well.
    fn after_wipe(&self, wiped: Wiped) -> Result<Wiped> {
        let report = &wiped.report;
        let removed =
            report.request.afterwards == Afterwards::Remove && !report.verdict.is_failed();
        let named = report
            .request
            .volume
            .as_deref()
            .and_then(|name| name.split_once('/'));
        if let (true, Some((pool, name))) = (removed, named) {
            let volume = VolumeId::new(pool, name);
            match self.volume(&volume) {
                // A logical volume is a device until its group lets go of it.
                Ok(info) if info.kind == VolumeKind::Block => self.volume_delete(&volume)?,
                _ => self.volume_wiped_away(&volume)?,
            }
        }
        Ok(wiped)
    }
}
