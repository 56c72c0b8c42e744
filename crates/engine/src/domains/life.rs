//! The life of domains as commands change it: starting, pausing, saving, ending.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;

use cenote_model::Document as _;
use cenote_model::domain::Domain;

use super::define::{give_identity, parse, uuid_of};
use super::error::Error as DomainError;
use super::launch::{MONITOR, NETWORK};
use super::lifecycle::Cause;
use super::read::parse_stored;
use super::table::{self, DomainRow};
use super::translate::NetworkServices;
use super::{save, translate};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::state::make_private_dir;
use crate::supervisor::protocol::{self, Order, Reply, Request, Restore};
use crate::teardown::domain_subject;

/// How a domain is started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StartOptions {
    /// The guest is left standing until it is resumed.
    pub paused: bool,
    /// A managed save is thrown away.
    pub force_boot: bool,
    /// The domain ends when [`Started::hold`] is dropped, or its process dies.
    pub autodestroy: bool,
    /// What the guest's network has beyond the document.
    pub services: NetworkServices,
}

/// Whether a restored guest is let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Resumption {
    /// As it was when it was saved.
    #[default]
    AsSaved,
    /// It is.
    Running,
    /// It is left standing.
    Paused,
}

impl Resumption {
    fn run(self) -> Option<bool> {
        match self {
            Resumption::AsSaved => None,
            Resumption::Running => Some(true),
            Resumption::Paused => Some(false),
        }
    }
}

/// A domain that was started.
#[derive(Debug)]
pub struct Started {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its id.
    pub id: u32,
    /// What the user is to know.
    pub notes: Vec<String>,
    /// What an autodestroyed domain is tied to.
    pub hold: Option<Hold>,
}

/// What a domain is tied to: it ends when this is dropped, or its process dies.
#[derive(Debug)]
pub struct Hold(ChildStdout);

impl Hold {
    /// Waits until the domain has ended.
    pub fn wait(&mut self) {
        let mut nothing = [0; 16];
        while io::Read::read(&mut self.0, &mut nothing).is_ok_and(|read| read > 0) {}
    }
}

/// A connection to a domain's console.
#[derive(Debug)]
pub struct ConsoleStream {
    /// What the guest says and what is typed, as bytes.
    pub stream: UnixStream,
    /// The domain's name.
    pub domain: String,
}

/// What the processes of a running domain have used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunStats {
    /// The monitor's process.
    pub monitor: u32,
    /// How long the guest has run since its machine was put together, pauses not counted.
    pub ran_milliseconds: u64,
}

/// Starting.
impl Node {
    /// Starts a defined domain: from its managed save if it has one, which is consumed, else from
    /// nothing.
    ///
    /// # Errors
    /// It runs already; something it needs is missing; the monitor cannot start it. In each case
    /// nothing was started.
    pub fn domain_start(&self, key: &str, options: StartOptions) -> Result<Started> {
        self.start(key, options, Cause::Command)
    }

    pub(crate) fn start(&self, key: &str, options: StartOptions, cause: Cause) -> Result<Started> {
        // What a killed command left half done is not to be started from.
        self.repair_on(&domain_subject(&self.domain_row(key)?.name))?;
        let (row, lock) = self.lock_domain(key)?;
        if row.is_active() {
            return Err(already_active(&row.name));
        }
        let documents = self.documents_of(&row)?;
        let document = parse_stored(&row.name, &documents.definition.unwrap_or_default())?;
        let path = self.managed_save_path(&row.uuid);
        if !self.is_read_only() {
            save::remove_unfinished(&path);
        }
        if options.force_boot && !self.is_read_only() {
            remove_save(&path)?;
        }
        if path.exists() && !options.force_boot {
            let resumption = if options.paused {
                Resumption::Paused
            } else {
                Resumption::AsSaved
            };
            let trailer = save::read(&path).map_err(|error| force_boot_hint(&row.name, error))?;
            let document = parse_stored(&row.name, &trailer.document)?;
            let running = resumption.run().unwrap_or(trailer.running);
            let options = StartOptions {
                paused: !running,
                ..options
            };
            let restore = Restore {
                path,
                consume: true,
                snapshot: false,
            };
            return self.run_document(&document, Some(restore), options, cause, lock.as_ref());
        }
        self.run_document(&document, None, options, cause, lock.as_ref())
    }

    /// Starts a domain from a document without defining it: it is forgotten when it ends. If a
    /// domain of that name and UUID is defined, that definition stays and this document is what
    /// runs.
    ///
    /// # Errors
    /// As [`Node::domain_start`] and [`Node::domain_define`].
    pub fn domain_create(&self, xml: &str, options: StartOptions) -> Result<Started> {
        let mut document = parse(xml)?.inactive();
        let had_uuid = document.uuid.is_some();
        give_identity(&mut document);
        self.run_new(&document, had_uuid, None, options)
    }

    /// Starts a domain from a file that [`Node::domain_save`] wrote. The file stays, and can be
    /// restored again; it must not be changed while the domain runs.
    ///
    /// # Errors
    /// The file is not a saved domain; else as [`Node::domain_create`].
    pub fn domain_restore(
        &self,
        path: &Path,
        resumption: Resumption,
        document: Option<&str>,
    ) -> Result<Started> {
        let path = absolute(path)?;
        let trailer = save::read(&path)?;
        let saved = parse_stored("(saved)", &trailer.document)?;
        let document = match document {
            Some(text) => same_domain(&saved, parse(text)?)?,
            None => saved,
        };
        let options = StartOptions {
            paused: !resumption.run().unwrap_or(trailer.running),
            ..StartOptions::default()
        };
        let restore = Restore {
            path,
            consume: false,
            snapshot: false,
        };
        self.run_new(&document, true, Some(restore), options)
    }

    /// Runs a document whose domain may be unknown.
    fn run_new(
        &self,
        document: &Domain,
        had_uuid: bool,
        restore: Option<Restore>,
        options: StartOptions,
    ) -> Result<Started> {
        let uuid = uuid_of(document);
        let lock = match self.is_read_only() {
            true => None,
            false => Some(self.lock_uuid(&uuid, &document.name)?),
        };
        for row in self.domain_rows()? {
            let same_name = row.name == document.name.as_str();
            let same_uuid = row.uuid == uuid;
            if same_name && same_uuid && row.is_active() {
                return Err(already_active(&row.name));
            }
            if same_name && !same_uuid {
                return Err(DomainError::NameTaken {
                    name: row.name,
                    uuid: row.uuid,
                    document_has_uuid: had_uuid,
                }
                .into());
            }
            if same_uuid && !same_name {
                return Err(DomainError::UuidTaken {
                    name: row.name,
                    uuid: row.uuid,
                }
                .into());
            }
        }
        self.run_document(document, restore, options, Cause::Command, lock.as_ref())
    }

    /// Runs a document under the domain's command lock. A node that is a copy only looks whether
    /// it could be.
    pub(super) fn run_document(
        &self,
        document: &Domain,
        restore: Option<Restore>,
        options: StartOptions,
        cause: Cause,
        lock: Option<&File>,
    ) -> Result<Started> {
        let name = document.name.to_string();
        // Looked at here, where an error can still name the remedy; the supervisor looks again.
        let setting = translate::Setting {
            node: self,
            allow_emulation: self.allows_emulation(),
            check_use: true,
            services: &options.services,
        };
        let machine = translate::machine(document, setting)?;
        check_kvm(&name)?;
        let monitor = self.program(MONITOR)?;
        let is_user = |joined: &translate::Joined| matches!(joined, translate::Joined::User(_));
        let network = match machine.joined.iter().any(is_user) {
            true => Some(self.program(NETWORK)?),
            false => None,
        };
        let uuid = uuid_of(document);
        let (id, notes, pipe) = match lock {
            None => (0, machine.notes, None),
            Some(lock) => {
                let order = Order {
                    uuid: uuid.clone(),
                    name: name.clone(),
                    document: document.inactive().to_xml(),
                    restore,
                    paused: options.paused,
                    autodestroy: options.autodestroy,
                    cause,
                    allow_emulation: self.allows_emulation(),
                    backing_dirs: self.backing_dirs().to_vec(),
                    monitor,
                    network,
                    services: options.services.clone(),
                };
                let launched = self.launch(&order, lock)?;
                (launched.id, launched.notes, Some(launched.pipe))
            }
        };
        let hold = pipe.filter(|_| options.autodestroy).map(Hold);
        Ok(Started {
            name,
            uuid,
            id,
            notes,
            hold,
        })
    }
}

/// What a running domain is asked for.
impl Node {
    /// Stops the guest; its memory stays. Does nothing if it stands still.
    ///
    /// # Errors
    /// The domain does not run.
    pub fn domain_suspend(&self, key: &str) -> Result<String> {
        self.ask(key, "suspend", &Request::Suspend)
    }

    /// Lets a suspended guest go on.
    ///
    /// # Errors
    /// The domain does not run, or is not suspended.
    pub fn domain_resume(&self, key: &str) -> Result<String> {
        self.ask(key, "resume", &Request::Resume)
    }

    /// Pushes the power button. What follows is up to the guest.
    ///
    /// # Errors
    /// The domain does not run, or is suspended.
    pub fn domain_shutdown(&self, key: &str) -> Result<String> {
        self.ask(key, "shut down", &Request::PowerButton { reboot: false })
    }

    /// Pushes the power button and starts the guest again when it has switched itself off; the
    /// domain's id stays.
    ///
    /// # Errors
    /// As [`Node::domain_shutdown`].
    pub fn domain_reboot(&self, key: &str) -> Result<String> {
        self.ask(key, "reboot", &Request::PowerButton { reboot: true })
    }

    /// Resets the guest at once, as a reset button does.
    ///
    /// # Errors
    /// The domain does not run.
    pub fn domain_reset(&self, key: &str) -> Result<String> {
        self.ask(key, "reset", &Request::Reset)
    }

    /// Ends the domain at once, as pulling the plug does. With `graceful` a monitor that does not
    /// end is not killed.
    ///
    /// # Errors
    /// The domain does not run; the monitor did not end.
    pub fn domain_destroy(&self, key: &str, graceful: bool) -> Result<String> {
        let cause = Cause::Command;
        let request = Request::Destroy {
            graceful,
            cause,
            for_snapshot: false,
        };
        self.ask(key, "destroy", &request)
    }

    /// Saves a running domain to a file and ends it. `document` takes the place of its own in the
    /// file.
    ///
    /// # Errors
    /// The domain does not run, or the file cannot be written; the guest then goes on.
    pub fn domain_save(
        &self,
        key: &str,
        path: &Path,
        resumption: Resumption,
        document: Option<&str>,
    ) -> Result<String> {
        let path = absolute(path)?;
        let (row, _lock) = self.lock_domain(key)?;
        let document = match document {
            Some(text) => {
                let live = self.documents_of(&row)?.live.unwrap_or_default();
                if live.is_empty() {
                    return Err(not_running(&row.name));
                }
                let own = parse_stored(&row.name, &live)?;
                Some(same_domain(&own, parse(text)?)?.inactive().to_xml())
            }
            None => None,
        };
        let request = Request::Save {
            path,
            document,
            run: resumption.run(),
        };
        self.ask_row(&row, "save", &request)?;
        Ok(row.name)
    }

    /// Saves a running domain where its next start finds it, and ends it.
    ///
    /// # Errors
    /// As [`Node::domain_save`]; the domain is transient.
    pub fn domain_managed_save(&self, key: &str, resumption: Resumption) -> Result<String> {
        let (row, _lock) = self.lock_domain(key)?;
        if !row.persistent {
            let reason = "cannot do managed save for transient domain";
            let hint = format!("save it to a file: cenote save {} FILE", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        let path = self.managed_save_path(&row.uuid);
        let dir = self.save_dir();
        make_private_dir(&dir).map_err(|source| Error::Io {
            action: "make",
            path: dir,
            source,
        })?;
        save::remove_unfinished(&path);
        let request = Request::Save {
            path,
            document: None,
            run: resumption.run(),
        };
        self.ask_row(&row, "save", &request)?;
        Ok(row.name)
    }

    /// Throws a managed save away; the next start is from nothing. Answers the domain's name and
    /// whether there was one.
    ///
    /// # Errors
    /// There is no such domain; the file cannot be removed.
    pub fn domain_managed_save_remove(&self, key: &str) -> Result<(String, bool)> {
        let (row, _lock) = self.lock_domain(key)?;
        let path = self.managed_save_path(&row.uuid);
        let there = path.exists();
        if !self.is_read_only() {
            remove_save(&path)?;
        }
        Ok((row.name, there))
    }

    /// The file of a domain's managed save.
    ///
    /// # Errors
    /// There is no such domain, or it has none.
    pub fn domain_managed_save_file(&self, key: &str) -> Result<PathBuf> {
        let row = self.domain_row(key)?;
        let path = self.managed_save_path(&row.uuid);
        if path.exists() {
            return Ok(path);
        }
        let reason = "domain does not have managed save image";
        let hint = format!("save it first: cenote managedsave {}", row.name);
        Err(DomainError::invalid(&row.name, reason, Some(hint)).into())
    }

    /// Attaches to a domain's console. With `force` whoever is attached is let go.
    ///
    /// # Errors
    /// The domain does not run or has no console; somebody is attached.
    pub fn domain_console(&self, key: &str, force: bool) -> Result<ConsoleStream> {
        let row = self.domain_row(key)?;
        if !row.is_active() {
            return Err(not_running(&row.name));
        }
        let live = self.documents_of(&row)?.live.unwrap_or_default();
        if !parse_stored(&row.name, &live)?.has_console() {
            return Err(DomainError::NoConsole(row.name).into());
        }
        let request = Request::Console { force };
        let (stream, reply) = self.converse(&row.uuid, &row.name, &request)?;
        if let Reply::Invalid { reason } = &reply {
            let hint = format!("take it over: cenote console {} --force", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        accepted("attach to", &row.name, reply)?;
        Ok(ConsoleStream {
            stream,
            domain: row.name,
        })
    }

    /// What the processes of a running domain have used.
    ///
    /// # Errors
    /// The domain does not run.
    pub fn domain_run_stats(&self, key: &str) -> Result<RunStats> {
        let row = self.domain_row(key)?;
        if !row.is_active() {
            return Err(not_running(&row.name));
        }
        match self.converse(&row.uuid, &row.name, &Request::Stats)?.1 {
            Reply::Stats {
                monitor,
                ran_milliseconds,
                ..
            } => Ok(RunStats {
                monitor,
                ran_milliseconds,
            }),
            other => {
                accepted("ask", &row.name, other)?;
                Err(not_running(&row.name))
            }
        }
    }

    /// Asks under the domain's command lock; answers the domain's name.
    fn ask(&self, key: &str, action: &'static str, request: &Request) -> Result<String> {
        let (row, _lock) = self.lock_domain(key)?;
        self.ask_row(&row, action, request)?;
        Ok(row.name)
    }

    pub(super) fn ask_row(
        &self,
        row: &DomainRow,
        action: &'static str,
        request: &Request,
    ) -> Result<()> {
        if !row.is_active() {
            return Err(not_running(&row.name));
        }
        if self.is_read_only() {
            return Ok(());
        }
        self.asked(row, action, request).map(drop)
    }

    /// Asks a running domain's supervisor and gives its answer, unless that is a refusal.
    pub(crate) fn asked(
        &self,
        row: &DomainRow,
        action: &'static str,
        request: &Request,
    ) -> Result<Reply> {
        let (_, reply) = self.converse(&row.uuid, &row.name, request)?;
        accepted(action, &row.name, reply)
    }

    fn converse(&self, uuid: &str, name: &str, request: &Request) -> Result<(UnixStream, Reply)> {
        let answer = protocol::ask(&self.run_dir(uuid, name), request);
        answer.map_err(|error| {
            // It ended meanwhile, or its supervisor died: whichever, it does not run.
            match table::find(self.state(), uuid) {
                Ok(Some(row)) if row.is_active() => match self.bury(&row, Cause::SupervisorDied) {
                    Ok(false) => DomainError::Monitor {
                        action: "ask",
                        domain: name.to_owned(),
                        reason: error.to_string(),
                    }
                    .into(),
                    Ok(true) => not_running(name),
                    Err(error) => error,
                },
                Ok(_) => not_running(name),
                Err(error) => error,
            }
        })
    }
}

/// Saved domains as files.
impl Node {
    /// The document of a saved domain.
    ///
    /// # Errors
    /// The file is not a saved domain.
    pub fn saved_document(&self, path: &Path, secure: bool) -> Result<String> {
        let trailer = save::read(path)?;
        let document = parse_stored("(saved)", &trailer.document)?;
        Ok(if secure {
            document
        } else {
            document.without_secrets()
        }
        .to_xml())
    }

    /// Puts another document, or another wish whether the guest is let go, into a saved domain.
    ///
    /// # Errors
    /// The file is not a saved domain or cannot be written; the document is another domain's.
    pub fn define_saved(
        &self,
        path: &Path,
        document: Option<&str>,
        resumption: Resumption,
    ) -> Result<()> {
        let mut trailer = save::read(path)?;
        if let Some(text) = document {
            let saved = parse_stored("(saved)", &trailer.document)?;
            trailer.document = same_domain(&saved, parse(text)?)?.inactive().to_xml();
        }
        if let Some(run) = resumption.run() {
            trailer.running = run;
        }
        if !self.is_read_only() {
            save::replace(path, &trailer)?;
        }
        Ok(())
    }
}

fn accepted(action: &'static str, name: &str, reply: Reply) -> Result<Reply> {
    match reply {
        Reply::Invalid { reason } => {
            let hint = format!("see how it stands: cenote domstate {name} --reason");
            Err(DomainError::invalid(name, &reason, Some(hint)).into())
        }
        Reply::Failed { reason } => Err(DomainError::Monitor {
            action,
            domain: name.to_owned(),
            reason,
        }
        .into()),
        answer => Ok(answer),
    }
}

fn not_running(name: &str) -> Error {
    let hint = format!("start it first: cenote start {name}");
    DomainError::invalid(name, "domain is not running", Some(hint)).into()
}

fn already_active(name: &str) -> Error {
    let hint = format!("see how it stands: cenote domstate {name} --reason");
    DomainError::invalid(name, "domain is already active", Some(hint)).into()
}

fn force_boot_hint(name: &str, error: DomainError) -> Error {
    let hint = format!("throw the save away: cenote start {name} --force-boot");
    DomainError::invalid(name, &error.to_string(), Some(hint)).into()
}

fn remove_save(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io {
            action: "remove the managed save",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Error::Io {
        action: "find the absolute path of",
        path: path.to_owned(),
        source,
    })
}

/// `new`, if it is a document of the same domain and machine as `old`.
fn same_domain(old: &Domain, mut new: Domain) -> Result<Domain> {
    let differs = |what: &str| {
        let text = format!("the document has another {what} than the saved domain");
        Err(DomainError::InvalidArgument(text).into())
    };
    if new.uuid.is_none()
        && let Some(uuid) = old.uuid
    {
        new.set_uuid(uuid);
    }
    if new.name != old.name {
        return differs("name");
    }
    if new.uuid != old.uuid {
        return differs("UUID");
    }
    if new.vcpu != old.vcpu {
        return differs("number of processors");
    }
    if (new.memory, new.current_memory) != (old.memory, old.current_memory) {
        return differs("amount of memory");
    }
    Ok(new)
}

/// That KVM is there and may be used.
fn check_kvm(name: &str) -> Result<()> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(DomainError::ComponentMissing {
            domain: name.to_owned(),
            component: format!("/dev/kvm: {error}"),
            remedy: "see what this machine lacks: cenote doctor".to_owned(),
        }
        .into()),
    }
}
