//! What a verb works with: the settings, the node, the way out.

use std::io::{self, Write as _};
use std::path::PathBuf;

use cenote_engine::{Node, NodeOptions, Progress};

use crate::consent::Consent;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::out::{Output, View};
use crate::plan::Plan;
use crate::progress::Watch;
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
    /// Opens the node, repairing what an interrupted command left, and says so.
    /// With `--dry-run` nothing is written, not even a repair.
    ///
    /// # Errors
    /// The URI is not local, or the node's state cannot be used.
    pub fn node(&self) -> Result<Node> {
        let options = self.node_options()?;
        let node = Node::open(&options)?;
        for repair in node.repairs() {
            self.note(&format!(
                "repaired: {} of {}: {}",
                repair.kind, repair.subject, repair.message
            ));
        }
        Ok(node)
    }

    /// The folder of the node's state: as chosen, else the system's or the user's.
    ///
    /// # Errors
    /// The URI is not local, or nothing says where a user's state goes.
    pub fn state_dir(&self) -> Result<PathBuf> {
        Ok(self.node_options()?.directories()?.0)
    }

    /// How to open the node.
    ///
    /// # Errors
    /// The URI is not local.
    pub fn node_options(&self) -> Result<NodeOptions> {
        self.check_connection()?;
        Ok(NodeOptions {
            state_dir: self.settings.state_dir.clone(),
            backing_dirs: self.settings.backing_dirs.clone(),
            read_only: self.consent.dry_run,
            programs: std::env::var_os("CENOTE_PROGRAMS").map(PathBuf::from),
            allow_emulation: std::env::var_os("CENOTE_ALLOW_EMULATION").is_some(),
            ..NodeOptions::default()
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

    /// Runs a long operation under a progress display that Ctrl-C can stop.
    ///
    /// # Errors
    /// What `operation` fails with; a cancellation by signal becomes an interruption.
    pub fn long<T, E: Into<Failure>>(
        &self,
        name: impl Into<String>,
        operation: impl FnOnce(&dyn Progress) -> Result<T, E>,
    ) -> Result<T> {
        let interrupt = Interrupt::install().map_err(|error| {
            Failure::new(Code::E0101, "cannot install signal handlers").source(error)
        })?;
        let name = name.into();
        let Settings {
            progress, quiet, ..
        } = self.settings;
        let watch = Watch::new(progress, quiet, name.clone(), interrupt.clone());
        let result = operation(&watch).map_err(|error| {
            let failure: Failure = error.into();
            if !interrupt.is_asked() || failure.code() != Code::E0009 {
                return failure;
            }
            Failure::new(Code::E0009, format!("{name} was stopped by a signal"))
                .why("what had been done was undone")
                .fix("run the command again to start over")
                .next("cenote job-list --all")
                .exit_with(interrupt.exit())
        });
        watch.finish(result.as_ref().err());
        result
    }
}
