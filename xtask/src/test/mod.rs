//! `cargo xtask test`: everything that CI checks, in order.

mod kvm;

pub(crate) use kvm::real_kvm;

use crate::setup::{self, Group};
use crate::shell::{Failure, Outcome, cargo, fail, program, run, shown, time, workspace};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const USAGE: &str = "\
Usage: cargo xtask test

Installs what is missing, then checks formatting, lints and documentation, runs the tests of
every crate, the suites under tests/, and in the lab (or on real KVM) the suites that need
it. Stops at the first failure.";

/// The seed of the random suites in this run; other seeds are run by hand.
const SEED: &str = "1";

/// Runs `cargo xtask test`.
pub(crate) fn command(arguments: &[String]) -> Outcome<ExitCode> {
    match arguments.first().map(String::as_str) {
        None => {}
        Some("--help" | "-h") => {
            println!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        Some(other) => return fail(format_args!("test: unknown argument `{other}`\n\n{USAGE}")),
    }
    let mut steps = Steps::default();
    let outcome = all(&mut steps);
    steps.summary(outcome.as_ref().err());
    outcome.map(|()| ExitCode::SUCCESS)
}

fn all(steps: &mut Steps) -> Outcome<()> {
    steps.step("setup", || setup::ensure(&[Group::Test]))?;
    steps.run("format", &mut cargo(["fmt", "--all", "--check"]))?;
    let lints = ["--all-targets", "--", "-D", "warnings"];
    steps.run(
        "lints",
        cargo(["clippy", "--quiet", "--workspace"]).args(lints),
    )?;
    steps.run(
        "documentation",
        cargo(["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    steps.run("crates", &mut cargo(["test", "--workspace"]))?;
    steps.run("programs", &mut cargo(["build", "--workspace", "--bins"]))?;
    for suite in kvm::scripts(&workspace().join("tests"))? {
        let name = format!("tests/{suite}");
        steps.run(&name, &mut program("bash", [name.as_str(), SEED]))?;
    }
    kvm::run(steps)
}

/// The steps taken so far and how long each took.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// Takes a step: names it, times it, and passes its failure on.
    pub(crate) fn step(&mut self, name: &str, action: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        println!("\n=== {name}");
        let begun = Instant::now();
        let outcome = action();
        let taken = begun.elapsed();
        self.done.push((name.to_string(), taken));
        match outcome {
            Ok(()) => {
                println!("=== {name}: passed in {}", time(taken));
                Ok(())
            }
            Err(Failure(why)) => fail(format_args!("{name} failed after {}: {why}", time(taken))),
        }
    }

    /// Takes a step that is one command.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) -> Outcome<()> {
        self.step(name, || {
            println!("$ {}", shown(command));
            run(command)
        })
    }

    fn summary(&self, failure: Option<&Failure>) {
        println!("\n=== summary");
        let last = self.done.len().saturating_sub(1);
        for (index, (name, taken)) in self.done.iter().enumerate() {
            let failed = failure.is_some() && index == last;
            let mark = if failed { "FAILED" } else { "passed" };
            println!("{mark}  {:>14}  {name}", time(*taken));
        }
        if failure.is_some() {
            println!("later steps were not run");
        }
    }
}
