//! What a verb works with: the settings, the node, the way out.

use std::io::{self, Write as _};
use std::path::PathBuf;

use crate::consent::Consent;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::{Output, View};
use crate::plan::Plan;
use crate::settings::Settings;
use crate::view::Done;

/// The connection URIs that mean this machine.
const LOCAL: [&str; 3] = ["local", "cenote:///system", "cenote:///session"];

/// Everything a verb needs to run.
pub struct Context {
    /// The settings in force.
    pub settings: Settings,
    /// How results are printed.
    pub output: Output,
    /// What the command line agreed to.
    pub consent: Consent,
}

impl Context {
    /// The folder of the node's state: as chosen, else the system's or the user's.
    ///
    /// # Errors
    /// The URI is not local, or nothing says where a user's state goes.
    pub fn state_dir(&self) -> Result<PathBuf> {
        self.check_connection()?;
        if let Some(folder) = &self.settings.state_dir {
            return Ok(folder.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/cenote"));
        }
        let absolute = |name: &str| {
            let value = std::env::var_os(name).map(PathBuf::from);
            value.filter(|path| path.is_absolute())
        };
        absolute("XDG_DATA_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".local/share")))
            .map(|folder| folder.join("cenote"))
            .ok_or_else(|| {
                Failure::new(Code::E0104, "cannot tell where the node's state lives")
                    .why("neither HOME nor XDG_DATA_HOME is set")
                    .fix("set HOME, or name a folder with --state-dir")
                    .next("cenote --state-dir ./node doctor")
            })
    }

    fn check_connection(&self) -> Result<()> {
        let uri = self.settings.connect.as_str();
        if !LOCAL.contains(&uri) {
            return Err(
                Failure::new(Code::E0005, format!("cannot connect to '{uri}'"))
                    .why("this cenote works on the local node only")
                    .fix(format!(
                        "leave --connect out, or use one of: {}",
                        LOCAL.join(", ")
                    ))
                    .next("cenote pool-list --all"),
            );
        }
        let root = rustix::process::geteuid().is_root();
        if uri == "cenote:///system" && !root && self.settings.state_dir.is_none() {
            return Err(Failure::new(Code::E0102, "the system node belongs to root")
                .fix("run as root, or use your own node: cenote:///session")
                .next("sudo cenote -c cenote:///system pool-list --all"));
        }
        if uri == "cenote:///session" && root && self.settings.state_dir.is_none() {
            return Err(Failure::new(Code::E0005, "root has no session node")
                .why("root's node is the system node")
                .fix("use cenote:///system, or name a folder with --state-dir")
                .next("cenote -c cenote:///system pool-list --all"));
        }
        Ok(())
    }

    /// Prints a result on standard output.
    ///
    /// # Errors
    /// See [`Output::print`].
    pub fn print(&self, view: &impl View) -> Result<()> {
        self.output.print(view)
    }

    /// Prints what a changing command did; `-q` leaves only machine formats.
    ///
    /// # Errors
    /// See [`Output::print`].
    pub fn done(&self, done: &Done) -> Result<()> {
        use crate::globals::OutputFormat::{Table, Wide};
        if self.settings.quiet && matches!(self.output.format, Table | Wide) {
            return Ok(());
        }
        self.output.print(done)
    }

    /// A message for the person, on standard error.
    pub fn note(&self, text: &str) {
        if !self.settings.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Prints the plan and answers false with `--dry-run`; else answers true once there is
    /// agreement.
    ///
    /// # Errors
    /// The user declined, or could not be asked.
    pub fn go_on(&self, plan: &Plan) -> Result<bool> {
        if self.consent.dry_run {
            self.output.print(plan)?;
            return Ok(false);
        }
        self.consent.require(plan.asks, &plan.deed, &plan.name)?;
        Ok(true)
    }
}
