//! The emulated host's disk and kernel, built once and kept.

use crate::setup;
use crate::shell::{Context, Outcome, as_root, fail, run, target, time};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The recipe: each file's name and text. What is cached was made by exactly these.
const RECIPE: &[(&str, &str)] = &[
    ("build.sh", include_str!("build.sh")),
    ("init.sh", include_str!("init.sh")),
    ("guest-init.sh", include_str!("guest-init.sh")),
    ("udhcpc.sh", include_str!("udhcpc.sh")),
];

/// A built base. Its files are shared by all runs and never written to.
pub(crate) struct Base {
    folder: PathBuf,
}

impl Base {
    /// The disk of the emulated host, raw.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("root.img")
    }

    /// The kernel of the emulated host, ELF with a PVH entry.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// Its folder's name, which tells it from bases of other recipes.
    pub(crate) fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Every path on its disk, one per line.
    pub(crate) fn paths(&self) -> Outcome<String> {
        let file = self.folder.join("rootfs.list");
        fs::read_to_string(&file).context(file.display())
    }
}

/// Where bases are kept: `CENOTE_LAB_CACHE`, so that several work trees can share one, else
/// the build folder.
pub(crate) fn folder() -> PathBuf {
    match std::env::var_os("CENOTE_LAB_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => target().join("lab"),
    }
}

/// The base in `folder`, built when it is not there, was made by another recipe, or `rebuild`
/// asks for it.
pub(crate) fn ready(folder: &Path, rebuild: bool) -> Outcome<Base> {
    // One builds, others wait for it; the lock goes with the process.
    let lock_file = folder.join("base.lock");
    let lock = File::create(&lock_file).context(lock_file.display())?;
    lock.lock().context(lock_file.display())?;
    let base = folder.join(format!("base-{:016x}", key()));
    if rebuild || !base.join("complete").exists() {
        build(folder, &base)?;
    }
    Ok(Base { folder: base })
}

fn build(folder: &Path, base: &Path) -> Outcome<()> {
    println!("lab: building the emulated host (a few minutes, once)");
    let begun = Instant::now();
    let recipe = folder.join("recipe");
    fs::create_dir_all(&recipe).context(recipe.display())?;
    for (name, text) in RECIPE {
        let file = recipe.join(name);
        fs::write(&file, text).context(file.display())?;
    }
    let sources = setup::Sources::of_this_machine()?;
    let partial = folder.join("base.partial");
    let mut words = vec![
        recipe.join("build.sh").display().to_string(),
        partial.display().to_string(),
        sources.suite.clone(),
        sources.qemu_suite.clone().unwrap_or_else(|| "-".into()),
    ];
    words.extend(sources.files.iter().map(|file| file.display().to_string()));
    run(&mut as_root("sh", words)?)?;
    remove_old(folder, "base-")?;
    run(&mut as_root("mv", [partial.as_os_str(), base.as_os_str()])?)?;
    run(&mut as_root("touch", [base.join("complete")])?)?;
    if !base.join("complete").exists() {
        return fail(format_args!("{}: was not built", base.display()));
    }
    println!("lab: built in {}", time(begun.elapsed()));
    Ok(())
}

/// Removes what earlier recipes made: the folders whose names begin with `prefix`.
pub(crate) fn remove_old(folder: &Path, prefix: &str) -> Outcome<()> {
    for entry in fs::read_dir(folder).context(folder.display())? {
        let path = entry.context(folder.display())?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with(prefix) && path.is_dir() {
            run(&mut as_root("rm", ["-rf".as_ref(), path.as_os_str()])?)?;
        }
    }
    Ok(())
}

/// Tells recipes apart.
fn key() -> u64 {
    let parts = RECIPE.iter();
    hash(parts.flat_map(|(name, text)| name.bytes().chain(text.bytes())))
}

/// FNV-1a.
pub(crate) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
