//! Help that is not one command's: the overview, the groups and the topics.

use std::fmt::Write as _;

use crate::exit::Exit;
use crate::settings;
use crate::verb::NOUNS;
use crate::verbs;

/// The layout of `cenote --help`: the list of commands is ours, grouped.
pub const TEMPLATE: &str =
    "{about-with-newline}\n{usage-heading} {usage}\n\n{after-help}\n\nOptions:\n{options}";

/// The first lines of the overview.
const QUICK_START: &str = "Examples:
  # List the storage pools
  cenote pool-list --all
  # Make a volume of 10 GiB in the pool 'default'
  cenote vol-create-as default disk.qcow2 10G --format qcow2
  # Look at the chain of files it stands on
  cenote vol-chain disk.qcow2
";

/// The topics of `cenote help TOPIC`: name and one line.
pub const TOPICS: [(&str, &str); 6] = [
    (
        "terms",
        "what node, hypervisor, domain, pool and volume mean",
    ),
    ("exit-codes", "what the exit codes mean"),
    ("output", "formats, columns, colour and progress"),
    ("config", "settings: files, environment, options"),
    ("confirm", "dry runs and the three levels of agreement"),
    ("names", "how pools and volumes are named and found"),
];

/// Everything below the usage line of `cenote --help`.
#[must_use]
pub fn overview() -> String {
    let mut text = String::from(QUICK_START);
    let widest = verbs::all().iter().map(|entry| entry.name.len()).max();
    let width = widest.unwrap_or_default();
    for section in verbs::SECTIONS {
        let _ = write!(text, "\n{}:\n", section.title);
        for entry in section.entries {
            let about = about_of(entry);
            let _ = writeln!(text, "  {:<width$}  {about}", entry.name);
        }
    }
    text.push_str("\nThe commands with a noun have a second spelling: 'cenote vol list' is 'cenote vol-list'.\n");
    text.push_str("Topics, with 'cenote help TOPIC':\n");
    for (name, about) in TOPICS {
        let _ = writeln!(text, "  {name:<width$}  {about}");
    }
    text.trim_end().to_owned()
}

/// What bare `cenote` prints.
#[must_use]
pub fn brief() -> String {
    let mut text = String::from(
        "Keep, provision, run and wipe virtual machines\n\nUsage: cenote [OPTIONS] COMMAND\n\n",
    );
    text.push_str(QUICK_START);
    text.push('\n');
    for (noun, about) in NOUNS {
        let _ = writeln!(text, "  cenote {noun} --help    {about}");
    }
    text.push_str("\nAll commands: cenote --help    Is this machine ready? cenote doctor\n");
    text
}

fn about_of(entry: &crate::verb::Entry) -> String {
    let command = entry.command(entry.name);
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// The examples below the help of a noun.
#[must_use]
pub fn group_examples(noun: &str) -> String {
    let mut text = String::from("Examples:");
    let entries = verbs::all().iter();
    let of_noun = entries.filter(|entry| entry.spaced().is_some_and(|(other, _)| other == noun));
    for entry in of_noun.take(3) {
        if let Some(example) = entry.examples.first() {
            let _ = write!(text, "\n  # {}\n  {}", example.what, example.line);
        }
    }
    text
}

/// The text of a topic.
#[must_use]
pub fn topic(name: &str) -> Option<String> {
    match name {
        "terms" => Some(TERMS.to_owned()),
        "exit-codes" => Some(exit_codes()),
        "output" => Some(OUTPUT.to_owned()),
        "config" => Some(config()),
        "confirm" => Some(CONFIRM.to_owned()),
        "names" => Some(NAMES.to_owned()),
        _ => None,
    }
}

const TERMS: &str = "\
TERMS

node        One physical machine and the state Cenote keeps on it.
hypervisor  The software that runs domains on a node: Cenote's own monitor on Linux KVM.
domain      One virtual machine, as its document describes it, running or not.
pool        A place that holds volumes: a directory, a file system, an LVM volume group.
volume      One disk in a pool, a file or a logical volume.
backing     The volume or file from which a qcow2 volume reads what it does not hold itself.
overlay     A volume with a backing file; it records what differs from it.
chain       An overlay, its backing file, that one's backing file and so on to the base.
snapshot    A state kept inside a qcow2 volume (internal) or in a file of its own (external).
job         A long operation with a number, which can be watched and cancelled.
";

const OUTPUT: &str = "\
OUTPUT

Data goes to standard output, messages and progress to standard error.

-o table    what virsh prints: aligned columns or 'Name: value' lines
-o wide     the same with every column
-o json     as docs/schemas describes; sizes are bytes; errors are one JSON line
-o yaml     the same as YAML
-o name     names only, one per line

--columns a,b   only these columns; the names are those of the JSON document
--noheader      tables without their header
--color         auto, always, never; NO_COLOR, CLICOLOR_FORCE and TERM=dumb count
--progress      auto, bar, jsonl, none; the last JSON line has 'result'
-q              no messages, no progress; -v and -vv say more; RUST_LOG is respected

Tables are cut to the width of a terminal and written in full to a pipe.
";

const CONFIRM: &str = "\
AGREEMENT

--dry-run on a command that changes something prints its plan and touches nothing.

Commands ask for agreement at three levels:
  none        what can be undone, or makes something new
  y/N         what loses data; --yes answers
  type NAME   what leaves nothing to recover; --confirm NAME answers, --yes does not

Without a terminal a command that would ask refuses with exit code 9.
";

const NAMES: &str = "\
NAMES

A pool is given by its name or UUID. A volume is given by
  its name, with --pool when several pools have one of that name,
  'pool/name', its path, or its key.
A name has 1 to 255 bytes, no '/', no control characters and no '.' in front.
A file given as '-' is standard input or standard output.
Sizes take units: 10G and 10GiB are powers of 1024, 10GB of 1000; no unit means bytes.
";

fn exit_codes() -> String {
    let mut text = String::from("EXIT CODES\n\n");
    for exit in Exit::ALL {
        let _ = writeln!(text, "{:>4}  {}", exit.code(), exit.meaning());
    }
    text.push_str("\nEach error also has a code of its own; 'cenote explain E0301' tells more.\n");
    text
}

fn config() -> String {
    let mut text = String::from(
        "SETTINGS\n\nThe strongest place that has a setting decides:\n\
         \x20 1. the option, such as --output json\n\
         \x20 2. the environment, such as CENOTE_OUTPUT=json\n\
         \x20 3. the project: the nearest .cenote.toml from the working directory upwards,\n\
         \x20    if it belongs to you or to root\n\
         \x20 4. the user: $XDG_CONFIG_HOME/cenote/config.toml or ~/.config/cenote/config.toml\n\
         \x20 5. the system: /etc/cenote/config.toml\n\n\
         'backing-dirs' lists folders, separated by colons, that backing files may lie in besides\n\
         those of the pools.\n\n\
         The keys, with their built-in values:\n",
    );
    for (key, value) in settings::KEYS {
        let shown = if value.is_empty() { "\"\"" } else { value };
        let _ = writeln!(text, "  {key:<12} {shown}");
    }
    text.push_str(
        "\n'cenote config-show --origin' says what is in force and where it comes from.\n",
    );
    text
}
