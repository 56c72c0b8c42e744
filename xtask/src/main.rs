//! The workspace driver, run as `cargo xtask …`: it brings a machine to the point where the
//! project builds and its tests run, and runs them.
//!
//! It promises that every step it takes is printed, that the first failure ends it with a
//! non-zero status, and that it can be run again at any time. It never writes a package
//! source's address down: packages are installed by name from the sources the machine already
//! has. It has no dependencies, because everyone compiles it before anything else.

#[cfg(test)]
mod arrows;
mod bench;
mod demo;
mod installer;
mod lab;
mod setup;
mod shell;
mod test;

use shell::{Failure, Outcome};
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  demo                       a walk through what Cenote does, with real commands
  setup [--check] [GROUP…]   install what the machine lacks (groups: test lab bench fuzz)
  installer                  build the kickstart installer that tests run
  lab [OPTION…] -- COMMAND…  run a command on an emulated host with a real /dev/kvm
  test                       everything that CI checks, in order, with times
  bench NAME                 benchmarks beside the program a user would take instead

Each command takes --help.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(code) => code,
        Err(Failure(message)) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Outcome<ExitCode> {
    let Some((command, rest)) = arguments.split_first() else {
        println!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    match command.as_str() {
        "setup" => setup::command(rest),
        "demo" => demo::command(rest),
        "installer" => installer::command(rest),
        "bench" => bench::command(rest),
        "lab" => lab::command(rest),
        "test" => test::command(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => {
            eprintln!("xtask: no command `{other}`\n\n{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}
