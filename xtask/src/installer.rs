//! `cargo xtask installer`: the kickstart installer of `fixtures/ks-installer` and its install
//! disc, built once from the machine's own package sources.

use crate::lab;
use crate::setup::{self, Group};
use crate::shell::{
    Context, Outcome, as_root, fail, output, program, run, target, time, workspace,
};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "\
Usage: cargo xtask installer

Builds the kickstart installer for tests under target/ks-installer, where it is not there, and
prints the folder: vmlinuz, initrd.img, and debian.iso with both and a repository of packages.
fixtures/ks-installer/README.md says what it does.";

/// Runs `cargo xtask installer`.
pub(crate) fn command(arguments: &[String]) -> Outcome<ExitCode> {
    match arguments.first().map(String::as_str) {
        None => {}
        Some("--help" | "-h") => {
            println!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        Some(other) => {
            return fail(format_args!(
                "installer: unknown argument `{other}`\n\n{USAGE}"
            ));
        }
    }
    println!("{}", ready()?.display());
    Ok(ExitCode::SUCCESS)
}

/// The folder with the installer, built when it is not there or was made by another recipe.
pub(crate) fn ready() -> Outcome<PathBuf> {
    setup::ensure_quietly(&[Group::Test, Group::Lab])?;
    let folder = target().join("ks-installer");
    fs::create_dir_all(target()).context(target().display())?;
    let lock_file = target().join("ks-installer.lock");
    let lock = File::create(&lock_file).context(lock_file.display())?;
    lock.lock().context(lock_file.display())?;
    let key = recipe()?;
    let mark = folder.join("recipe");
    if fs::read_to_string(&mark).is_ok_and(|built| built == key) {
        return Ok(folder);
    }
    println!("installer: building it (a minute, once)");
    let begun = Instant::now();
    let sources = setup::Sources::of_this_machine()?;
    let script = source().join("build.sh");
    let mut words = vec![
        script.display().to_string(),
        folder.display().to_string(),
        setup::python_packages()?.display().to_string(),
        sources.suite.clone(),
    ];
    words.extend(sources.files.iter().map(|file| file.display().to_string()));
    run(&mut as_root("sh", words)?)?;
    // By whoever may write there: root made the folder.
    let written = target().join("ks-installer.recipe");
    fs::write(&written, &key).context(written.display())?;
    run(&mut as_root("cp", [written.as_os_str(), mark.as_os_str()])?)?;
    println!("installer: built in {}", time(begun.elapsed()));
    Ok(folder)
}

fn source() -> PathBuf {
    workspace().join("fixtures").join("ks-installer")
}

/// What it is built by: a digest of all files of the recipe.
fn recipe() -> Outcome<String> {
    let listed = output(&mut program(
        "find",
        [
            source().as_os_str(),
            "-type".as_ref(),
            "f".as_ref(),
            "-not".as_ref(),
            "-name".as_ref(),
            "*.md".as_ref(),
        ],
    ))?;
    let mut files: Vec<&str> = listed.lines().collect();
    files.sort_unstable();
    let mut bytes = Vec::new();
    for file in files {
        bytes.extend(file.bytes());
        bytes.extend(fs::read(file).context(file)?);
    }
    Ok(format!("{:016x}", lab::hash(bytes.into_iter())))
}
