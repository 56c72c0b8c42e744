//! The monitor: runs one machine and reports how it ended.

use cenote_vmm::{
    kvm::Host,
    machine::{Description, ExitCause, ExitReport, Machine, control},
    sandbox::{self, Enforcement, Entered},
    snapshot::SnapshotFile,
};
use clap::Parser;
use std::{
    error::Error,
    fs::File,
    io::Write as _,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::ExitCode,
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

fn run(arguments: &Arguments) -> Result<u8, Box<dyn Error>> {
    let mut description = Description::read(&arguments.machine)?;
    let host = Host::open(description.allow_emulation)?;
    let saved = arguments
        .restore
        .as_deref()
        .map(SnapshotFile::open)
        .transpose()?;
    if arguments.check {
        return check(arguments, &description, saved.as_ref());
    }
    description.open_files()?;
    let listener = description
        .control
        .as_deref()
        .map(control::bind)
        .transpose()?;
    let report_file = description
        .exit_report
        .as_deref()
        .map(create_report)
        .transpose()?;
    enter_sandbox(arguments.sandbox, &description)?;

    let report = start(&host, &description, saved, listener)
        .map(|machine| machine.run(arguments.paused))
        .unwrap_or_else(|error| ExitReport::failed(&*error));
    if let Some(file) = report_file {
        write_report(file, &report)?;
    }
    if report.cause == ExitCause::MonitorError {
        let detail = report.detail.as_deref().unwrap_or("no detail");
        let _ = writeln!(
            std::io::stderr(),
            "cenote-vmm: the machine failed: {detail}"
        );
    }
    Ok(report.cause.status())
}

/// Puts the machine together, within the sandbox.
fn start(
    host: &Host,
    description: &Description,
    saved: Option<SnapshotFile>,
    listener: Option<UnixListener>,
) -> Result<Machine, Box<dyn Error>> {
    let machine = Machine::build(host, description, saved.as_ref())?;
    if let Some(listener) = listener {
        control::serve(listener, machine.remote())?;
    }
    Ok(machine)
}

fn check(
    arguments: &Arguments,
    description: &Description,
    saved: Option<&SnapshotFile>,
) -> Result<u8, Box<dyn Error>> {
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

/// Makes the report's file before the sandbox closes. It stays empty until the monitor ends.
fn create_report(path: &Path) -> Result<File, Box<dyn Error>> {
    File::create(path).map_err(|error| format!("exit report {}: {error}", path.display()).into())
}

/// Writes the report in one piece.
fn write_report(mut file: File, report: &ExitReport) -> Result<(), Box<dyn Error>> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    file.write_all(text.as_bytes())
        .map_err(|error| format!("exit report: {error}").into())
}
