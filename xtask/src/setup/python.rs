//! Python programs that the distribution does not package, in an environment of their own
//! below the build folder.

use crate::shell::{Context, Outcome, program, run, target};
use std::path::PathBuf;

/// A program, the package that has it, and the one reason it is here.
pub(crate) struct PythonPackage {
    /// The program.
    pub(crate) program: &'static str,
    /// Name and version of the package.
    pub(crate) package: &'static str,
    /// The reason.
    pub(crate) why: &'static str,
}

/// What the tests take.
pub(crate) const PACKAGES: &[PythonPackage] = &[PythonPackage {
    program: "ksvalidator",
    package: "pykickstart==3.78",
    why: "judges the kickstart files that we write",
}];

/// Where the programs are.
fn programs() -> PathBuf {
    target().join("xtask").join("python").join("bin")
}

/// The folder with the packages themselves, which a guest may be given.
pub(crate) fn packages() -> Outcome<PathBuf> {
    let lib = target().join("xtask").join("python").join("lib");
    let found = std::fs::read_dir(&lib).context(lib.display())?;
    for entry in found {
        let folder = entry.context(lib.display())?.path().join("site-packages");
        if folder.join("pykickstart").is_dir() {
            return Ok(folder);
        }
    }
    crate::shell::fail(format_args!("{}: has no pykickstart", lib.display()))
}

/// Those whose program is not there.
pub(crate) fn missing() -> Vec<&'static PythonPackage> {
    let have = |package: &&PythonPackage| programs().join(package.program).is_file();
    PACKAGES.iter().filter(|package| !have(package)).collect()
}

/// Installs what is missing.
pub(crate) fn install(packages: &[&PythonPackage]) -> Outcome<()> {
    let folder = target().join("xtask").join("python");
    if !folder.join("bin").join("pip").is_file() {
        let words = ["-m".as_ref(), "venv".as_ref(), folder.as_os_str()];
        run(&mut program("/usr/bin/python3", words))?;
    }
    let mut words = vec!["install", "--quiet", "--disable-pip-version-check"];
    words.extend(packages.iter().map(|package| package.package));
    run(&mut program(programs().join("pip"), words))
}
