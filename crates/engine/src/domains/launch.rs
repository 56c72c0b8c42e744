//! Starting a domain's supervisor.

use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};

use super::error::Error as DomainError;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::state::make_private_dir;
use crate::supervisor::console::{open_log, rotate};
use crate::supervisor::protocol::{self, Order, Ready};
use crate::supervisor::{Arguments, MONITOR_LOG};

/// The supervisor's program.
const SUPERVISOR: &str = "cenote-supervisor";
/// The monitor's program.
pub(crate) const MONITOR: &str = "cenote-vmm";
/// The user-mode network's program.
pub(crate) const NETWORK: &str = "cenote-net";
/// Where packages put programs that nobody calls by hand.
const LIBEXEC: [&str; 2] = ["/usr/libexec/cenote", "/usr/lib/cenote"];
/// Name of the supervisor's log.
const SUPERVISOR_LOG: &str = "supervisor.log";

/// A domain whose supervisor has started it.
pub(crate) struct Launched {
    pub(crate) id: u32,
    pub(crate) notes: Vec<String>,
    /// What an autodestroyed domain is tied to.
    pub(crate) pipe: ChildStdout,
}

impl Node {
    /// Starts the supervisor of a domain and waits until it has started the domain, or not.
    /// `lock` is the domain's command
    /// lock; the supervisor shares it until then, so that nobody else begins anything should
    /// this process die.
    pub(crate) fn launch(&self, order: &Order, lock: &File) -> Result<Launched> {
        // Beside the run directory, which belongs to the last supervisor until that has ended.
        let path = self
            .run_dir(&order.uuid, &order.name)
            .with_added_extension("order");
        let at = |action, path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        make_private_dir(&self.domains_dir()).map_err(at("make the directory of", &path))?;
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| protocol::send(&mut file, order));
        written.map_err(at("write", &path))?;
        let log = self.domain_log_dir(&order.name).join(SUPERVISOR_LOG);
        rotate(&log);
        let messages = open_log(&log, true).map_err(at("open the log", &log))?;
        let program = self.program(SUPERVISOR)?;
        let mut child = Command::new(&program)
            .args(Arguments::words(self, &path))
            .stdin(
                lock.try_clone()
                    .map_err(at("share the lock beside", &path))?,
            )
            .stdout(Stdio::piped())
            .stderr(messages)
            .spawn()
            .map_err(at("run", &program))?;
        let mut pipe = child.stdout.take();
        // It is the launcher, which ends at once.
        let _ = child.wait();
        let ready = pipe.as_mut().and_then(|pipe| {
            let mut answer = BufReader::with_capacity(1, pipe);
            protocol::receive(&mut answer).ok().flatten()
        });
        let reason = match (ready, pipe) {
            (Some(Ready::Started { id, notes }), Some(pipe)) => {
                return Ok(Launched { id, notes, pipe });
            }
            (Some(Ready::Failed { reason }), _) => reason,
            _ => format!("the supervisor died; its log is {}", log.display()),
        };
        Err(DomainError::StartFailed {
            domain: order.name.clone(),
            reason,
            log: self.domain_log_dir(&order.name).join(MONITOR_LOG),
        }
        .into())
    }

    /// The path of one of Cenote's programs: where the options say, else beside the running one,
    /// where packages put it, or on the path.
    pub(crate) fn program(&self, name: &'static str) -> Result<PathBuf> {
        let found = match self.programs_dir() {
            Some(dir) => Some(dir.join(name)).filter(|path| path.is_file()),
            None => {
                let own = std::env::current_exe().ok();
                let own = own.as_deref().and_then(std::path::Path::parent);
                let beside = own.map(std::path::Path::to_owned).into_iter();
                let packaged = LIBEXEC.iter().map(PathBuf::from);
                let path = std::env::var_os("PATH").unwrap_or_default();
                let path: Vec<_> = std::env::split_paths(&path).collect();
                beside
                    .chain(packaged)
                    .chain(path)
                    .filter(|dir| dir.is_absolute())
                    .map(|dir| dir.join(name))
                    .find(|path| path.is_file())
            }
        };
        found.ok_or_else(|| DomainError::NoProgram(name).into())
    }
}
