//! The configuration of SYSLINUX, ISOLINUX and EXTLINUX (the SYSLINUX wiki's page *Config*).

use super::Entry;

#[derive(Debug, Default)]
struct Label {
    name: String,
    entry: Entry,
    is_default: bool,
}

/// The entry that is started when nobody chooses one. `path` is the configuration's own, which
/// names in it may be relative to.
///
/// # Errors
/// As text.
pub(super) fn choose(text: &str, path: &str) -> Result<Entry, String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let absolute = |name: &str| match name.starts_with('/') {
        true => name.to_owned(),
        false => format!("{folder}/{name}"),
    };
    let mut wanted = None;
    let mut global_append = String::new();
    let mut labels: Vec<Label> = Vec::new();
    for line in text.lines() {
        let (word, rest) = line
            .trim()
            .split_once(char::is_whitespace)
            .unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        let label = labels.last_mut();
        match (word.to_ascii_lowercase().as_str(), label) {
            ("default", _) => wanted = Some(rest.to_owned()),
            // Takes the place of a default that is a menu program.
            ("ontimeout", _) if rest.split(' ').count() == 1 => wanted = Some(rest.to_owned()),
            ("label", _) => labels.push(Label {
                name: rest.to_owned(),
                entry: Entry {
                    title: rest.to_owned(),
                    ..Entry::default()
                },
                is_default: false,
            }),
            ("menu", Some(label)) if rest.eq_ignore_ascii_case("default") => {
                label.is_default = true;
            }
            ("kernel" | "linux", Some(label)) => label.entry.kernel = absolute(rest),
            ("initrd", Some(label)) => {
                label.entry.initrds = rest.split(',').map(absolute).collect();
            }
            ("append", Some(label)) => label.entry.command_line = rest.to_owned(),
            ("append", None) => global_append = rest.to_owned(),
            _ => {}
        }
    }
    let by_name = wanted.and_then(|name| labels.iter().position(|label| label.name == name));
    let index = by_name
        .or_else(|| labels.iter().position(|label| label.is_default))
        .unwrap_or(0);
    let Some(label) = labels.into_iter().nth(index) else {
        return Err("it has no LABEL".to_owned());
    };
    let mut entry = label.entry;
    if entry.kernel.is_empty() || entry.kernel.ends_with(".c32") {
        return Err(format!("the label '{}' starts no kernel", label.name));
    }
    if entry.command_line.is_empty() {
        entry.command_line = global_append;
    }
    // `-` is an empty one; an initrd may be named among the words.
    let mut words = Vec::new();
    for word in entry.command_line.split_whitespace() {
        match word.strip_prefix("initrd=") {
            Some(names) if entry.initrds.is_empty() => {
                entry.initrds = names.split(',').map(absolute).collect();
            }
            Some(_) => {}
            None if word == "-" => {}
            None => words.push(word),
        }
    }
    entry.command_line = words.join(" ");
    Ok(entry)
}
