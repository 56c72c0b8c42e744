//! Installing Debian packages by name, from the machine's own sources.

use super::sources;
use crate::shell::{Context, Failure, Outcome, as_root, fail, on_path, program, run, target};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages built from one source package: all of them are installed from one suite, since
/// each depends on or conflicts with other versions of the rest.
const QEMU: &[&str] = &["qemu-utils", "qemu-system-x86"];

/// Never asks, takes nothing that is only recommended, removes nothing, and waits when
/// another package run is under way.
const OPTIONS: &[&str] = &[
    "--yes",
    "--quiet=2",
    "--no-install-recommends",
    "--no-remove",
    "-oDPkg::Lock::Timeout=600",
    "-oDpkg::Use-Pty=0",
    "-oAcquire::Retries=3",
];

/// The versions of those of `names` that are installed and configured.
pub(crate) fn installed(names: &[&str]) -> Outcome<BTreeMap<String, String>> {
    if !on_path("dpkg-query") {
        return fail(format_args!(
            "this machine has no dpkg, so packages cannot be installed by Debian's names. \
             Install what gives these, and run the suites by hand: {}",
            names.join(" ")
        ));
    }
    // dpkg-query fails when any name is unknown, and still prints the others.
    let result = program(
        "dpkg-query",
        ["-W", "-f=${Package} ${db:Status-Status} ${Version}\\n"],
    )
    .args(names)
    .stderr(Stdio::null())
    .output()
    .context("dpkg-query")?;
    let text = String::from_utf8_lossy(&result.stdout);
    let versions = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, status, version) = (words.next()?, words.next()?, words.next()?);
        (status == "installed").then(|| (name.to_string(), version.to_string()))
    });
    Ok(versions.collect())
}

/// Installs `names`.
pub(crate) fn install(names: &[&str]) -> Outcome<()> {
    if !on_path("apt-get") {
        return fail(format_args!(
            "this machine has no apt-get; install these by hand: {}",
            names.join(" ")
        ));
    }
    let (qemu, plain): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| QEMU.contains(name));
    if !qemu.is_empty() {
        match backport(QEMU)? {
            Some(suite) => install_from(&suite, &qemu)?,
            None => install_plain(&qemu)?,
        }
    }
    if plain.is_empty() {
        return Ok(());
    }
    install_plain(&plain)
}

fn install_plain(names: &[&str]) -> Outcome<()> {
    run(&mut apt_get(&[], &["update"], &[])?)?;
    run(&mut apt_get(&[], &["install"], names)?)
}

/// The backports suite, where the machine has one of `family` from there: Debian 12's own
/// qemu-system-x86 conflicts with the newer qemu-utils of such a machine.
fn backport(family: &[&str]) -> Outcome<Option<String>> {
    let newer = installed(family)?
        .values()
        .any(|version| version.contains("~bpo"));
    if newer {
        Ok(Some(format!("{}-backports", codename()?)))
    } else {
        Ok(None)
    }
}

/// The name of this machine's Debian release, as in its package sources.
fn codename() -> Outcome<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_string());
    name.ok_or_else(|| Failure("/etc/os-release names no VERSION_CODENAME".into()))
}

/// Installs `names` from `suite`, with lists and sources of our own under `target/`, so that
/// the machine's package configuration stays as it is.
fn install_from(suite: &str, names: &[&str]) -> Outcome<()> {
    let folder = target().join("xtask").join("apt");
    let lists = folder.join("lists");
    write_sources(&folder.join("parts"), Some(suite))?;
    fs::create_dir_all(lists.join("partial")).context(lists.display())?;
    let options = [
        format!("-oDir::Etc::SourceParts={}", folder.join("parts").display()),
        "-oDir::Etc::SourceList=/dev/null".into(),
        format!("-oDir::State::Lists={}", lists.display()),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    run(&mut apt_get(&options, &["update"], &[])?)?;
    run(&mut apt_get(&options, &["install", "-t", suite], names)?)
}

/// Writes the machine's sources, and the same for `suite`, into `folder`; gives the files.
fn write_sources(folder: &Path, suite: Option<&str>) -> Outcome<Vec<PathBuf>> {
    if folder.exists() {
        fs::remove_dir_all(folder).context(folder.display())?;
    }
    fs::create_dir_all(folder).context(folder.display())?;
    let base = codename()?;
    let mut written = Vec::new();
    let mut derived = false;
    for (index, file) in source_files()?.iter().enumerate() {
        let text = fs::read_to_string(file).context(file.display())?;
        let style = sources::Style::of(file);
        let mut write = |name: String, text: &str| {
            let copy = folder.join(format!("{name}.{}", style.extension()));
            fs::write(&copy, text).context(copy.display())?;
            written.push(copy);
            Ok(())
        };
        write(index.to_string(), &text)?;
        let extra = suite.and_then(|suite| sources::for_suite(&text, style, &base, suite));
        if let Some(extra) = extra {
            write(format!("{index}-newer"), &extra)?;
            derived = true;
        }
    }
    match suite {
        Some(suite) if !derived => fail(format_args!(
            "no package source of this machine has the suite `{base}`, so `{suite}` cannot be \
             derived from it"
        )),
        _ => Ok(written),
    }
}

/// The package sources of this machine, for building a file system from.
pub(crate) struct Sources {
    /// The release's name.
    pub(crate) suite: String,
    /// The suite that this machine has its QEMU from, if not `suite`.
    pub(crate) qemu_suite: Option<String>,
    /// The source files.
    pub(crate) files: Vec<PathBuf>,
}

impl Sources {
    /// Finds them, and writes copies below the build folder.
    pub(crate) fn of_this_machine() -> Outcome<Self> {
        let qemu_suite = backport(QEMU)?;
        let folder = target().join("xtask").join("sources");
        Ok(Self {
            suite: codename()?,
            files: write_sources(&folder, qemu_suite.as_deref())?,
            qemu_suite,
        })
    }
}

/// The machine's package source files that apt reads.
fn source_files() -> Outcome<Vec<PathBuf>> {
    let parts = Path::new("/etc/apt/sources.list.d");
    let mut files = Vec::new();
    let main = PathBuf::from("/etc/apt/sources.list");
    if main.is_file() {
        files.push(main);
    }
    if parts.is_dir() {
        let mut names = Vec::new();
        for entry in fs::read_dir(parts).context(parts.display())? {
            names.push(entry.context(parts.display())?.path());
        }
        names.sort();
        files.extend(names.into_iter().filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "list" || extension == "sources")
        }));
    }
    Ok(files)
}

fn apt_get(options: &[&str], action: &[&str], names: &[&str]) -> Outcome<Command> {
    let mut words = vec!["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get"];
    words.extend(OPTIONS);
    words.extend(options);
    words.extend(action);
    words.extend(names);
    let mut command = as_root("env", words)?;
    command.stdin(Stdio::null());
    Ok(command)
}
