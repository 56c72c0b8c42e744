//! The network of one guest.

use cenote_net::{config::Description, process, slirp::Slirp};
use clap::Parser;
use std::{error::Error, io::Write as _, path::PathBuf, process::ExitCode};

/// Gives one guest a network without root: NAT, DHCP, DNS, TFTP, port forwards.
///
/// The description names the descriptor of a socket that the monitor has the other end of. The
/// process ends when that end closes.
///
/// Exit status: 0 after the monitor ended, 1 if the network failed or cannot be started, 2 for a
/// wrong command line.
#[derive(Debug, Parser)]
#[command(name = "cenote-net", version)]
struct Arguments {
    /// The network's description (JSON)
    #[arg(long, value_name = "FILE")]
    network: PathBuf,
    /// Make everything that the description asks for, let go of it again, and run nothing
    #[arg(long)]
    check: bool,
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
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("cenote-net: {error}");
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

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let description = Description::read(&arguments.network)?;
    tracing::debug!(libslirp = Slirp::version(), "network described");
    if arguments.check {
        process::check(&description)?;
        println!(
            "{}: the network can be started",
            arguments.network.display()
        );
        return Ok(());
    }
    process::run(&description)?;
    Ok(())
}
