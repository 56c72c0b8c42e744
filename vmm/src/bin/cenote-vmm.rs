//! The monitor: runs one machine and reports how it ended.

use cenote_vmm::{
    kvm::Host,
    machine::{Description, ExitCause, ExitReport, Machine, Place, control},
    sandbox::{self, Enforcement, Entered},
    snapshot::{SnapshotError, SnapshotFile},
};
use clap::Parser;
use std::{
    error::Error, io::Write as _, os::fd::OwnedFd, path::PathBuf, process::ExitCode, time::Duration,
};

/// Runs one virtual machine on KVM.
///
/// Exit status: 0 if the guest switched itself off or was told to end, 1 if the monitor failed, 2
/// for a wrong command line, 3 if the guest's kernel panicked, 4 after a triple fault.
#[derive(Debug, Parser)]
#[command(name = "cenote-vmm", version)]
struct Arguments {
    /// The machine description (JSON)
    #[arg(long, value_name = "FILE")]
    machine: PathBuf,
    /// Check the description and the host, and start nothing
    #[arg(long)]
    check: bool,
    /// Put the machine together and wait for 'resume' on the control socket
    #[arg(long)]
    paused: bool,
    /// Go on from a saved machine; the description is the one that it was saved with
    #[arg(long, value_name = "FILE")]
    restore: Option<PathBuf>,
    /// With --check and --restore: read all of the saved memory and verify it
    #[arg(long, requires = "check", requires = "restore")]
    verify: bool,
    /// Be killed by the kernel when the process with this number, which is to be the parent, ends
    #[arg(long, value_name = "PID")]
    with_parent: Option<i32>,
    /// Whether the monitor gives up its rights before the guest starts. Anything but 'on' is for
    /// finding faults: 'log' lets forbidden system calls pass and has the kernel log them
    #[arg(long, value_name = "MODE", default_value = "on")]
    sandbox: SandboxMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SandboxMode {
    /// Forbidden system calls end the monitor
    On,
    /// Forbidden system calls are logged by the kernel
    Log,
    /// No sandbox
    Off,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("CENOTE_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .init();
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let mut text = format!("cenote-vmm: {error}");
            let mut source = error.source();
            while let Some(inner) = source {
                text.push_str(&format!(": {inner}"));
                source = inner.source();
            }
            // Without standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

/// How long the end waits for answers that nobody reads.
const ANSWERS: Duration = Duration::from_secs(1);

fn run(arguments: &Arguments) -> Result<u8, Box<dyn Error>> {
    let description = Description::read(&arguments.machine)?;
    if arguments.check {
        return check(arguments, &description);
    }
    // Made before the sandbox closes, and empty until the monitor ends.
    let report_file = description
        .exit_report
        .as_ref()
        .map(|place| place.create("exit report"))
        .transpose()?;
    let report = start(arguments, description)
        .map(|machine| machine.run(arguments.paused))
        .unwrap_or_else(|error| ExitReport::failed(&*error));
    if let Some(mut file) = report_file {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        file.write_all(text.as_bytes())
            .map_err(|error| format!("exit report: {error}"))?;
    }
    control::finish_answers(ANSWERS);
    if report.cause == ExitCause::MonitorError {
        let detail = report.detail.as_deref().unwrap_or("no detail");
        let _ = writeln!(
            std::io::stderr(),
            "cenote-vmm: the machine failed: {detail}"
        );
    }
    Ok(report.cause.status())
}

/// Opens everything, shuts itself in, and puts the machine together.
fn start(arguments: &Arguments, mut description: Description) -> Result<Machine, Box<dyn Error>> {
    let host = Host::open(description.allow_emulation)?;
    let saved = open_saved(arguments)?;
    description.open_files()?;
    let listener = match &description.control {
        None => None,
        Some(Place::Path(path)) => Some(control::bind(path)?),
        Some(inherited) => Some(OwnedFd::from(inherited.create("control socket")?).into()),
    };
    enter_sandbox(arguments.sandbox, &description)?;
    if let Some(parent) = arguments.with_parent {
        end_with(parent)?;
    }

    let machine = Machine::build(&host, &description, saved.as_ref())?;
    if let Some(listener) = listener {
        control::serve(listener, machine.remote())?;
    }
    Ok(machine)
}

fn open_saved(arguments: &Arguments) -> Result<Option<SnapshotFile>, SnapshotError> {
    let path = arguments.restore.as_deref();
    path.map(SnapshotFile::open).transpose()
}

fn check(arguments: &Arguments, description: &Description) -> Result<u8, Box<dyn Error>> {
    Host::open(description.allow_emulation)?;
    for disk in &description.disks {
        disk.try_open()?;
    }
    for (position, drive) in &description.ide {
        drive.try_open(*position)?;
    }
    let saved = open_saved(arguments)?;
    if let (true, Some(saved)) = (arguments.verify, saved) {
        saved.verify_memory()?;
    }
    let entered = enter_sandbox(arguments.sandbox, description)?;
    println!(
        "{}: the machine can be started",
        arguments.machine.display()
    );
    for line in entered.iter().flat_map(|entered| &entered.holds) {
        println!("sandbox: {line}");
    }
    for line in entered.iter().flat_map(|entered| &entered.missing) {
        println!("sandbox lacks: {line}");
    }
    Ok(0)
}

/// Has the kernel kill this process when its parent ends (`PR_SET_PDEATHSIG`). To be called when
/// the process is who it will be: the kernel forgets it when a process changes its user.
fn end_with(parent: i32) -> Result<(), Box<dyn Error>> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have ended before that.
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if now != parent {
        return Err(format!("process {parent} is not the parent, {now} is").into());
    }
    Ok(())
}

fn enter_sandbox(
    wanted: SandboxMode,
    description: &Description,
) -> Result<Option<Entered>, Box<dyn Error>> {
    let enforcement = match wanted {
        SandboxMode::On => Enforcement::Kill,
        SandboxMode::Log => {
            tracing::warn!("system calls that the sandbox forbids are logged only");
            Enforcement::Log
        }
        SandboxMode::Off => {
            tracing::warn!("there is no sandbox: a guest that breaks out has this user's rights");
            return Ok(None);
        }
    };
    let entered = sandbox::enter(enforcement, description.user)?;
    for line in &entered.holds {
        tracing::debug!("sandbox: {line}");
    }
    for line in &entered.missing {
        tracing::info!("the sandbox lacks something: {line}");
    }
    Ok(Some(entered))
}
