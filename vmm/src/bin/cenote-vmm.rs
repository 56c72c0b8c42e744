//! The monitor: runs one machine and reports how it ended.

use cenote_vmm::{
    kvm::Host,
    machine::{Description, ExitCause, ExitReport, Machine, control},
    snapshot::SnapshotFile,
};
use clap::Parser;
use std::{error::Error, io::Write as _, path::PathBuf, process::ExitCode};

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
    let description = Description::read(&arguments.machine)?;
    let host = Host::open(description.allow_emulation)?;
    let saved = arguments
        .restore
        .as_deref()
        .map(SnapshotFile::open)
        .transpose()?;
    if arguments.check {
        if let (true, Some(saved)) = (arguments.verify, &saved) {
            saved.verify_memory()?;
        }
        println!(
            "{}: the machine can be started",
            arguments.machine.display()
        );
        return Ok(0);
    }
    let machine = Machine::build(&host, &description, saved.as_ref())?;
    drop(saved);
    if let Some(path) = &description.control {
        control::serve(control::bind(path)?, machine.remote())?;
    }
    let report = machine.run(arguments.paused);
    if let Some(path) = &description.control {
        // A socket left behind would be replaced by the next monitor.
        let _ = std::fs::remove_file(path);
    }
    if let Some(path) = &description.exit_report {
        write_report(path, &report)?;
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

/// Writes the report beside its place and moves it there, so that a reader never sees half.
fn write_report(path: &std::path::Path, report: &ExitReport) -> Result<(), Box<dyn Error>> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|error| format!("exit report {}: {error}", path.display()))?;
    Ok(())
}
