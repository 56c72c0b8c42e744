//! The suites that ordinary machines cannot run: those that need real KVM, and those that need
//! kernel features only the lab has.
//!
//! A Rust suite is an integration test whose file is named `kvm_*.rs` (needs a `/dev/kvm` that
//! runs 64-bit kernels) or `lab_*.rs` (needs the lab itself, such as device-mapper); its tests
//! are `#[ignore]`d with that reason, so that a plain `cargo test` says what it left out. A
//! shell suite for the lab is a script in `tests/lab/`.

use super::{SEED, Steps};
use crate::lab;
use crate::setup::{self, Group};
use crate::shell::{Context, Failure, Outcome, cargo, fail, workspace};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the suites may take in the lab altogether.
const LAB_TIME: Duration = Duration::from_secs(2100);

/// One guest at a time: the emulated host has one processor, and a guest that waits for another
/// takes longer than its test's patience.
const ONE_BY_ONE: &str = "--test-threads=1";

/// Where suites with special needs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    Kvm,
    Lab,
}

/// An integration test of a crate.
struct Suite {
    package: String,
    target: String,
    needs: Needs,
}

/// Runs them all: the KVM suites on this machine's own `/dev/kvm` where that is real, else in
/// the lab.
pub(super) fn run(steps: &mut Steps) -> Outcome<()> {
    let suites = suites()?;
    let here = real_kvm();
    let (own, emulated): (Vec<&Suite>, Vec<&Suite>) = suites
        .iter()
        .partition(|suite| suite.needs == Needs::Kvm && here.is_ok());
    match &here {
        Ok(()) => println!("\nKVM suites run on this machine's own /dev/kvm"),
        Err(why) => println!("\nKVM suites run in the lab: {why}"),
    }
    for suite in own {
        let name = format!("{} {}", suite.package, suite.target);
        let arguments = ["test", "--package", &suite.package, "--test", &suite.target];
        let flags = ["--", "--ignored", ONE_BY_ONE];
        steps.run(&name, cargo(arguments).args(flags))?;
    }
    steps.step("lab", || {
        setup::ensure(&[Group::Lab])?;
        let mut packages: Vec<String> = emulated.iter().map(|s| s.package.clone()).collect();
        packages.dedup();
        let run = lab::Run {
            command: vec!["sh".into(), "-c".into(), script(&emulated)?],
            programs: lab::Programs {
                tests: packages,
                ..lab::Programs::default()
            },
            media: true,
            // One guest of the monitor has 5 GiB.
            memory: 6144,
            timeout: LAB_TIME,
            ..lab::Run::default()
        };
        let status = run.run().or_else(|Failure(why)| {
            // An emulated host now and then dies of itself; suites that fail have a status.
            println!("{why}\nno status came back; the suites run once more");
            run.run()
        })?;
        match status {
            0 => Ok(()),
            code => fail(format_args!(
                "a suite in the lab ended with status {code}; what it left is in target/lab/last"
            )),
        }
    })
}

/// The commands that run the suites inside, up to the first that fails.
fn script(suites: &[&Suite]) -> Outcome<String> {
    let mut script = String::from("set -e\n");
    for suite in suites {
        script.push_str(&format!(
            "echo \"--- {} {}\"\n{} --ignored {ONE_BY_ONE}\n",
            suite.package, suite.target, suite.target
        ));
    }
    for name in scripts(&workspace().join("tests").join("lab"))? {
        script.push_str(&format!(
            "echo \"--- tests/lab/{name}\"\nbash tests/lab/{name} {SEED}\n"
        ));
    }
    Ok(script)
}

/// The names of the shell scripts in `folder`, in order.
pub(super) fn scripts(folder: &Path) -> Outcome<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for path in children(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".sh") {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

fn children(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).context(folder.display())? {
        paths.push(entry.context(folder.display())?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The Rust suites with special needs, in order of package.
fn suites() -> Outcome<Vec<Suite>> {
    let root = workspace();
    let mut folders = children(&root)?;
    folders.extend(children(&root.join("crates"))?);
    let mut suites = Vec::new();
    for folder in folders {
        let tests = folder.join("tests");
        if !folder.join("Cargo.toml").is_file() || !tests.is_dir() {
            continue;
        }
        let package = package_name(&folder.join("Cargo.toml"))?;
        for file in children(&tests)? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let needs = if name.starts_with("kvm_") {
                Needs::Kvm
            } else if name.starts_with("lab_") {
                Needs::Lab
            } else {
                continue;
            };
            if file.extension().is_some_and(|extension| extension == "rs") {
                suites.push(Suite {
                    package: package.clone(),
                    target: name.into_owned(),
                    needs,
                });
            }
        }
    }
    Ok(suites)
}

/// The first `name = "…"` of a manifest, which is the package's.
fn package_name(manifest: &Path) -> Outcome<String> {
    let text = fs::read_to_string(manifest).context(manifest.display())?;
    let name = text.lines().find_map(|line| {
        let value = line.strip_prefix("name")?.trim_start().strip_prefix('=')?;
        Some(value.trim().trim_matches('"').to_string())
    });
    match name {
        Some(name) => Ok(name),
        None => fail(format_args!("{}: names no package", manifest.display())),
    }
}

/// Whether this machine's `/dev/kvm` runs ordinary 64-bit kernels; if not, why.
pub(crate) fn real_kvm() -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| format!("/dev/kvm: {error}"))?;
    let cpus = fs::read_to_string("/proc/cpuinfo").map_err(|error| error.to_string())?;
    let flags = cpus.lines().find(|line| line.starts_with("flags"));
    let virtual_cpu = flags.is_some_and(|flags| {
        flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    });
    if virtual_cpu {
        Ok(())
    } else {
        // Such a KVM runs the guest in its instruction emulator, which lacks much of 64-bit
        // code.
        Err("this CPU shows neither vmx nor svm, so its /dev/kvm only emulates".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_this_crate_is_found() {
        let manifest = workspace().join("xtask").join("Cargo.toml");
        assert_eq!(package_name(&manifest).expect("a name"), "xtask");
    }

    #[test]
    fn the_script_stops_at_the_first_failure() {
        let suite = Suite {
            package: "p".into(),
            target: "false".into(),
            needs: Needs::Lab,
        };
        let script = script(&[&suite]).expect("a script");
        let output = crate::shell::program("sh", ["-c", &script])
            .output()
            .expect("sh runs");
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), "--- p false", "nothing ran after it");
    }
}
