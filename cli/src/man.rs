//! Man pages, one for `cenote` and one per command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap_mangen::Man;

use crate::{help, verbs};

/// Writes all pages into `folder` and gives their paths.
///
/// # Errors
/// The folder cannot be made or a page not written.
pub fn write_pages(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder)?;
    let mut written = Vec::new();
    let mut root = crate::command();
    // The page of the whole program has its own list of commands.
    let topics: Vec<String> = help::TOPICS
        .iter()
        .filter_map(|(name, _)| help::topic(name))
        .collect();
    root = root.bin_name("cenote").after_help(format!(
        "{}\n\n{}",
        help::overview(),
        topics.join("\n")
    ));
    root.build();
    let globals: Vec<clap::Arg> = root.get_arguments().cloned().collect();
    written.push(write_page(folder, "cenote", root)?);
    for entry in verbs::all() {
        let name = format!("cenote-{}", entry.name);
        let mut command = entry.command(entry.name).args(
            globals
                .iter()
                .filter(|argument| argument.is_global_set() && argument.get_id() != "help"),
        );
        command = command
            .display_name(name.clone())
            .version(env!("CARGO_PKG_VERSION"));
        written.push(write_page(folder, &name, command)?);
    }
    Ok(written)
}

fn write_page(folder: &Path, name: &str, command: clap::Command) -> io::Result<PathBuf> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    let version = format!("cenote {}", env!("CARGO_PKG_VERSION"));
    Man::new(command)
        .title(name.to_uppercase())
        .source(version)
        .manual("Cenote")
        .render(&mut page)?;
    fs::write(&path, page)?;
    Ok(path)
}
