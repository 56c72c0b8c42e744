//! Boot media made with Debian's boot loaders, built once and kept beside the base.

use super::base::{self, Base};
use crate::setup;
use crate::shell::{Context, Outcome, as_root, run, time};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

const RECIPE: &str = include_str!("media.sh");

/// The folder with the media in `folder`, built when they are not there or were made by another
/// recipe or from another base.
pub(crate) fn ready(folder: &Path, base: &Base) -> Outcome<PathBuf> {
    let lock_file = folder.join("media.lock");
    let lock = File::create(&lock_file).context(lock_file.display())?;
    lock.lock().context(lock_file.display())?;
    let key = base::hash(RECIPE.bytes().chain(base.name().bytes()));
    let parent = folder.join(format!("media-{key:016x}"));
    // The command finds it under this name.
    let media = parent.join("media");
    if !parent.join("complete").exists() {
        build(folder, base, &parent)?;
    }
    Ok(media)
}

fn build(folder: &Path, base: &Base, parent: &Path) -> Outcome<()> {
    println!("lab: building boot media (about half a minute, once)");
    let begun = Instant::now();
    let recipe = folder.join("media.sh");
    fs::write(&recipe, RECIPE).context(recipe.display())?;
    let sources = setup::Sources::of_this_machine()?;
    let partial = folder.join("media.partial");
    let mut words = vec![
        recipe.display().to_string(),
        partial.display().to_string(),
        base.disk().display().to_string(),
        sources.suite.clone(),
    ];
    words.extend(sources.files.iter().map(|file| file.display().to_string()));
    run(&mut as_root("sh", words)?)?;
    base::remove_old(folder, "media-")?;
    run(&mut as_root("mkdir", ["-p".as_ref(), parent.as_os_str()])?)?;
    run(&mut as_root(
        "mv",
        [partial.as_path(), &parent.join("media")],
    )?)?;
    run(&mut as_root("touch", [parent.join("complete")])?)?;
    println!("lab: built in {}", time(begun.elapsed()));
    Ok(())
}
