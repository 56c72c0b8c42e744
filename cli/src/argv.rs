//! virsh lets positional arguments be given by name: `vol-create-as --pool default --name a`.
//!
//! clap keeps options and positionals apart, so such words are put into their places before it
//! reads the line. A line without them is passed on untouched.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// The command line with named positionals in their places. `command` must be built.
#[must_use]
pub fn positionals_by_name(command: &Command, line: Vec<OsString>) -> Vec<OsString> {
    let Some((leaf, start)) = leaf(command, &line) else {
        return line;
    };
    rearrange(leaf, &line, start).unwrap_or(line)
}

/// The command that the line names and the index of the word after its name.
fn leaf<'a>(root: &'a Command, line: &[OsString]) -> Option<(&'a Command, usize)> {
    let mut command = root;
    let mut index = 1;
    loop {
        let word = line.get(index)?.to_str()?;
        if word == "--" {
            return None;
        }
        if word.starts_with('-') && word.len() > 1 {
            index += if takes_next(command, word) { 2 } else { 1 };
            continue;
        }
        command = command.find_subcommand(word)?;
        index += 1;
        if !command.has_subcommands() {
            return Some((command, index));
        }
    }
}

/// Whether an option word is followed by a word of its own.
fn takes_next(command: &Command, word: &str) -> bool {
    let valued = |argument: &Arg| argument.get_action().takes_values();
    if let Some(long) = word.strip_prefix("--") {
        return !long.contains('=')
            && by_long(command, long).is_some_and(valued)
            && !by_long(command, long).is_some_and(has_optional_value);
    }
    let mut letters = word.chars().skip(1).peekable();
    while let Some(letter) = letters.next() {
        let found = command
            .get_arguments()
            .find(|argument| argument.get_short() == Some(letter));
        if found.is_some_and(valued) {
            return letters.peek().is_none();
        }
    }
    false
}

fn has_optional_value(argument: &Arg) -> bool {
    argument
        .get_num_args()
        .is_some_and(|range| range.min_values() == 0)
}

fn by_long<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(long))
}

/// The new line, or nothing when no positional was named or the names leave a gap.
fn rearrange(leaf: &Command, line: &[OsString], start: usize) -> Option<Vec<OsString>> {
    let places: Vec<String> = leaf
        .get_positionals()
        .map(|argument| argument.get_id().as_str().replace('_', "-"))
        .collect();
    let mut named: BTreeMap<usize, OsString> = BTreeMap::new();
    let mut plain: Vec<OsString> = Vec::new();
    let mut options: Vec<OsString> = Vec::new();
    let mut words = line.get(start..)?.iter();
    while let Some(word) = words.next() {
        let text = word.to_str().unwrap_or_default();
        if text == "--" {
            plain.extend(words.by_ref().cloned());
        } else if let Some((place, inline)) = named_positional(leaf, &places, text) {
            let value = match inline {
                Some(value) => value,
                None => words.next()?.clone(),
            };
            named.insert(place, value);
        } else if text.starts_with('-') && text.len() > 1 {
            options.push(word.clone());
            if takes_next(leaf, text) {
                options.extend(words.next().cloned());
            }
        } else {
            plain.push(word.clone());
        }
    }
    if named.is_empty() {
        return None;
    }
    let total = named.len() + plain.len();
    let mut plain = plain.into_iter();
    let mut placed = Vec::with_capacity(total);
    for place in 0..total {
        placed.push(named.remove(&place).or_else(|| plain.next())?);
    }
    let mut rebuilt = line.get(..start)?.to_vec();
    rebuilt.extend(options);
    rebuilt.push(OsString::from("--"));
    rebuilt.extend(placed);
    Some(rebuilt)
}

/// The place of `--name` or `--name=value`, unless the command has a real option of that name.
fn named_positional(
    leaf: &Command,
    places: &[String],
    text: &str,
) -> Option<(usize, Option<OsString>)> {
    let long = text.strip_prefix("--")?;
    let (name, value) = match long.split_once('=') {
        Some((name, value)) => (name, Some(OsStr::new(value).to_owned())),
        None => (long, None),
    };
    if by_long(leaf, name).is_some() {
        return None;
    }
    let place = places.iter().position(|place| place == name)?;
    Some((place, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(line: &str) -> String {
        let mut command = crate::command();
        command.build();
        let words = line.split(' ').map(OsString::from).collect();
        let words = positionals_by_name(&command, words);
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn virsh_lines_become_ours() {
        let table = [
            (
                "cenote vol-create-as --pool p --name a --capacity 1M --format raw",
                "cenote vol-create-as --format raw -- p a 1M",
            ),
            (
                "cenote pool-define-as --target /t --name p --type dir",
                "cenote pool-define-as --target /t -- p dir",
            ),
            (
                "cenote --state-dir d -o json pool define-as p --type=dir",
                "cenote --state-dir d -o json pool define-as -- p dir",
            ),
            (
                "cenote vol-info --vol a --pool p",
                "cenote vol-info --pool p -- a",
            ),
        ];
        for (line, expected) in table {
            assert_eq!(rewrite(line), expected);
        }
    }

    #[test]
    fn other_lines_are_left_alone() {
        for line in [
            "cenote",
            "cenote vol-info a --pool p",
            "cenote vol-info -o json a",
            "cenote nonsense --pool x",
            "cenote pool-define-as --type dir",
            "cenote vol-list --pool",
            "cenote vol-list -- --pool",
        ] {
            assert_eq!(rewrite(line), line);
        }
    }
}
