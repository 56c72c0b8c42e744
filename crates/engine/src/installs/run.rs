//! The deed, and the watch over phase one.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use cenote_pools::{Error as StorageError, Progress, VolumeId, crash};
use cenote_provision::initrd;
use cenote_provision::install::{End, Step};

use super::error::Error as InstallError;
use super::evidence::{Listener, Run, Verdict};
use super::files::{fresh_folder, remove_file, write};
use super::prepare::{INITRD, KERNEL, MARKER, Prepared, SEED};
use super::protocol::{Install, STARTED};
use crate::domains::StartOptions;
use crate::error::{Error, Result};
use crate::events;
use crate::journal::Operation;
use crate::node::Node;

/// How long the watch sleeps if nothing happens on the node; guests write without telling.
const INTERVAL: Duration = Duration::from_millis(250);

/// What an install tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A volume was made.
    Volume(VolumeId),
    /// Phase one runs, and what the user is to know of its machine.
    PhaseOne(Vec<String>),
    /// The installer did something.
    Installer(Step),
    /// Phase one has ended well.
    Installed {
        /// It said so itself.
        confirmed: bool,
    },
}

/// Who watches an install. Breaking its progress off undoes it.
pub trait InstallWatch: Progress {
    /// Something happened.
    fn tell(&self, told: &Told);
}

/// An install that has come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The domain.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The installer reported success; otherwise it reset, as one does that is done.
    pub confirmed: bool,
    /// Whether the domain runs now.
    pub started: bool,
    /// What could not be done of the second phase.
    pub note: Option<String>,
}

impl Node {
    /// Installs a domain: makes its volumes, runs the installer to its end, and starts the domain
    /// from its disk. Killed anywhere, it is undone, or goes on.
    ///
    /// # Errors
    /// Something could not be made, and nothing is left of it; the installer failed or was not
    /// done in time, and what was asked for in this case is left; it was stopped.
    pub fn install(&self, prepared: Prepared, watch: &dyn InstallWatch) -> Result<Installed> {
        let mut install = prepared.install.clone();
        let mut operation = self.begin(install.plan())?;
        let verdict = match self.phase_one(&mut operation, &mut install, &prepared, watch) {
            Ok(verdict) => verdict,
            // Undone; or if phase one runs already, left to that.
            Err(error) => return operation.finish(Err(error)),
        };
        let step = install.decided(verdict.clone());
        note(&mut operation, step, &install)?;
        let confirmed = verdict == Verdict::Confirmed;
        if !verdict.is_done() {
            return operation.finish(Err(self.failure(&install, verdict)));
        }
        watch.tell(&Told::Installed { confirmed });
        let note = operation.part(|| install.complete(self));
        let note = operation.finish(note)?;
        Ok(Installed {
            started: install.start && note.is_none(),
            name: install.name,
            uuid: install.uuid,
            confirmed,
            note,
        })
    }

    fn failure(&self, install: &Install, verdict: Verdict) -> Error {
        let (domain, kept) = (install.name.clone(), install.is_kept());
        let log = install.serial_log.clone();
        let error = match verdict {
            Verdict::Failed(reason) => InstallError::Failed {
                domain,
                reason,
                kept,
                log,
            },
            Verdict::TimedOut(reason) => InstallError::TimedOut {
                domain,
                reason,
                kept,
                log,
            },
            _ => InstallError::Cancelled(domain),
        };
        error.into()
    }

    /// Makes what phase one needs, starts it, and watches it to its end.
    fn phase_one(
        &self,
        operation: &mut Operation<'_>,
        install: &mut Install,
        prepared: &Prepared,
        watch: &dyn InstallWatch,
    ) -> Result<Verdict> {
        // Again, now that nobody else can begin anything on these names.
        self.name_is_free(&install.name)?;
        for (pool, new) in &prepared.volumes {
            self.make_volume(operation, install, pool, new)?;
            watch.tell(&Told::Volume(VolumeId::new(pool, &new.name)));
        }
        prepared.write_files()?;
        crash::point("install-files");
        install.since = events::newest(self.state())?;
        let wait = i64::try_from(prepared.timeout.as_secs()).unwrap_or(i64::MAX);
        install.deadline = jiff::Timestamp::now().as_second().saturating_add(wait);
        note(operation, STARTED, install)?;
        let started = self.domain_create(&install.one, StartOptions::default())?;
        watch.tell(&Told::PhaseOne(started.notes));
        self.watch(operation, install, watch)
    }

    /// Makes a volume, having noted before that it is this install's.
    fn make_volume(
        &self,
        operation: &mut Operation<'_>,
        install: &mut Install,
        pool: &str,
        new: &crate::volumes::NewVolume,
    ) -> Result<()> {
        let id = VolumeId::new(pool, &new.name);
        if self.volumes(pool)?.iter().any(|info| info.name == new.name) {
            return Err(StorageError::VolumeExists(id).into());
        }
        install.own(&id, true);
        note(operation, 0, install)?;
        match operation.part(|| self.volume_create(pool, new)) {
            Ok(_) => Ok(()),
            Err(error) => {
                // Nothing was made, and what may be there is somebody else's.
                install.own(&id, false);
                note(operation, 0, install)?;
                Err(error)
            }
        }
    }

    /// Watches phase one until something is decided.
    fn watch(
        &self,
        operation: &Operation<'_>,
        install: &Install,
        watch: &dyn InstallWatch,
    ) -> Result<Verdict> {
        let caller: &dyn Progress = watch;
        let progress = operation.progress(caller);
        let mut watcher = self.watch_events(None)?;
        let mut listener = Listener::new(install);
        let mut last = Instant::now();
        let silence = Duration::from_secs(install.silence);
        loop {
            // Whether it has ended is asked before it is listened to: its last words are written
            // before its end is recorded.
            let run = self.first_run(&install.uuid, install.since)?;
            let (steps, heard) = listener.listen()?;
            if heard {
                last = Instant::now();
            }
            for step in steps {
                watch.tell(&Told::Installer(step));
            }
            let end = match run {
                Run::Over(end) => Some(end),
                _ if install.is_late() => Some(End::TimeUp),
                _ if last.elapsed() >= silence => Some(End::Silence),
                _ => None,
            };
            if let Some(verdict) = listener.decide(install, end) {
                return Ok(verdict);
            }
            if let ControlFlow::Break(()) = progress.update(0, 0) {
                return Ok(Verdict::Cancelled);
            }
            watcher.next(Some(INTERVAL))?;
        }
    }
}

/// Records how far an install is.
fn note(operation: &mut Operation<'_>, step: i64, install: &Install) -> Result<()> {
    operation.revise(step, |plan| *plan = install.plan())
}

impl Prepared {
    /// Kernel, initrd with what was put into it, and seed; the guest finds no reports of an
    /// earlier install.
    fn write_files(&self) -> Result<()> {
        let install = &self.install;
        let folder = &install.folder;
        fresh_folder(folder)?;
        if let Some(media) = &self.media {
            let kernel = media.kernel.read_all().map_err(InstallError::from)?;
            write(&folder.join(KERNEL), &kernel)?;
            crash::point("install-kernel");
            let mut archive = media.initrd.read_all().map_err(InstallError::from)?;
            if !self.files.is_empty() {
                (archive, _) = initrd::inject(&archive, &self.files).map_err(InstallError::from)?;
            }
            write(&folder.join(INITRD), &archive)?;
        }
        if let Some(seed) = &self.seed_image {
            write(&folder.join(SEED), seed)?;
        }
        if install.token.is_some() {
            write(&folder.join(MARKER), b"")?;
        }
        for log in [&install.serial_log, &install.installer_log] {
            if let Some(parent) = log.parent() {
                crate::state::make_private_dir(parent).map_err(super::files::at("make", parent))?;
            }
            remove_file(log)?;
        }
        Ok(())
    }
}
