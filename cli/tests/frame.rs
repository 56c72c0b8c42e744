//! The promises that hold for every command: spellings, help, exit codes, streams, colour.

mod common;

use std::collections::HashMap;

use cenote::verb::Kind;
use cenote::verbs;
use common::{Cenote, run, text, tool};

#[test]
fn both_spellings_print_the_same_help() {
    let cenote = Cenote::new();
    let mut pairs = 0;
    let mut descriptions = HashMap::new();
    for entry in verbs::all() {
        let flat = cenote.run(&format!("{} --help", entry.name)).ok();
        let description = flat.stdout.lines().next().unwrap_or_default().to_owned();
        if let Some(other) = descriptions.insert(description, entry.name) {
            panic!("{} and {other} are described alike: {flat:?}", entry.name);
        }
        assert!(
            flat.stdout.contains("Examples:\n"),
            "{}: {flat:?}",
            entry.name
        );
        assert!(flat.stderr.is_empty());
        if let Some((noun, action)) = entry.spaced() {
            let spaced = cenote.run(&format!("{noun} {action} --help")).ok();
            assert_eq!(flat.stdout, spaced.stdout, "{}", entry.name);
            pairs += 1;
        }
        let help = cenote.run(&format!("help {}", entry.name)).ok();
        assert!(
            help.stdout
                .contains(&format!("Usage: cenote {}", entry.name)),
            "{help:?}"
        );
    }
    assert!(pairs > 0);
}

#[test]
fn every_changing_command_has_a_dry_run_and_every_reading_one_columns() {
    let cenote = Cenote::new();
    for entry in verbs::all() {
        let help = cenote.ok(&format!("{} --help", entry.name));
        assert_eq!(
            help.contains("--dry-run"),
            entry.kind == Kind::Change,
            "{}",
            entry.name
        );
        assert_eq!(
            help.contains("--columns"),
            entry.kind == Kind::Read,
            "{}",
            entry.name
        );
    }
}

#[test]
fn mistakes_are_told_and_nothing_is_run() {
    let cenote = Cenote::new();
    let table = [
        ("explian E0301", "did you mean 'explain'?"),
        ("conifg show", "did you mean 'config'?"),
        ("config shwo", "did you mean 'show'?"),
        ("config-show --orign", "did you mean '--origin'?"),
        ("nodeinfo -o jsno", "did you mean 'json'?"),
        ("explain", "<CODE>"),
        ("frobnicate", "there is no command 'frobnicate'"),
        ("nodeinfo --columns cpu", "did you mean 'cpus'?"),
        ("-q -v nodeinfo", "cannot be used with"),
    ];
    for (line, says) in table {
        let run = cenote.run(line).fails(2, says);
        assert!(run.stdout.is_empty(), "{run:?}");
        assert!(run.stderr.contains("next: "), "{run:?}");
    }
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let cenote = Cenote::new();
    let listed = cenote.ok("help exit-codes");
    for exit in cenote::exit::Exit::ALL {
        let line = format!("{:>4}  {}", exit.code(), exit.meaning());
        assert!(listed.contains(&line), "{line}");
    }
    let table = [
        (0, "version"),
        (2, "frobnicate"),
        (3, "explain E9999"),
        (3, "help nonsense"),
        (6, "-c qemu:///system doctor"),
    ];
    for (code, line) in table {
        let run = cenote.run(line);
        assert_eq!(run.code, code, "{line}: {run:?}");
    }
}

#[test]
fn every_error_code_is_explained() {
    let cenote = Cenote::new();
    for code in cenote::explain::Code::ALL {
        let run = cenote.run(&format!("explain {code} -o json")).ok();
        let page = run.json();
        assert_eq!(page["code"], code.as_str());
        assert_eq!(page["exit"], code.exit().code());
    }
}

#[test]
fn pipes_and_no_color_get_no_escape() {
    let cenote = Cenote::new();
    for line in [
        "--help",
        "version",
        "config show --origin",
        "frobnicate",
        "doctor",
        "explain",
    ] {
        for set in [None, Some("NO_COLOR"), Some("CLICOLOR_FORCE")] {
            let mut command = cenote.command();
            command.args(line.split(' '));
            if let Some(name) = set {
                command.env(name, "1");
            }
            let run = run(&mut command);
            let escapes = run.stdout.contains('\u{1b}') || run.stderr.contains('\u{1b}');
            assert!(
                !escapes || set == Some("CLICOLOR_FORCE"),
                "{line} {set:?}: {run:?}"
            );
            assert!(!run.stdout.contains('\r') && !run.stderr.contains('\r'));
        }
    }
    let always = cenote.run("--color always frobnicate");
    assert!(always.stderr.contains("\u{1b}["), "{always:?}");
    let never = run(cenote
        .command()
        .args(["--color=never", "x"])
        .env("CLICOLOR_FORCE", "1"));
    assert!(!never.stderr.contains('\u{1b}'), "{never:?}");
}

#[test]
fn machine_formats_parse_and_messages_stay_out_of_them() {
    let cenote = Cenote::new();
    for line in ["version", "nodeinfo", "config show", "explain E0001"] {
        let json = cenote.run(&format!("{line} -o json")).ok();
        assert!(json.stderr.is_empty(), "{json:?}");
        let path = cenote.path("out.json");
        std::fs::write(&path, &json.stdout).expect("written");
        assert_eq!(tool("jq", "jq", &[".", text(&path)]).code, 0);
        let yaml = cenote.run(&format!("{line} -o yaml")).ok();
        let value: serde_json::Value =
            serde_norway::from_str(&yaml.stdout).expect("the YAML output parses");
        assert!(!value.is_null());
    }
    let error = cenote.run("-o json explain E9999");
    let data: serde_json::Value = serde_json::from_str(&error.stderr).expect("one JSON line");
    assert_eq!(data["error"]["code"], "E0010");
    assert_eq!(data["error"]["exit"], 3);
}

#[test]
fn settings_come_from_the_strongest_place() {
    let cenote = Cenote::new();
    std::fs::write(cenote.path(".cenote.toml"), "output = 'yaml'\n").expect("written");
    let shown = |words: &[&str]| run(cenote.command().args(words)).ok().stdout;
    assert!(shown(&["config", "show", "--columns", "key,layer"]).contains("key: output"));
    let flag = shown(&["config", "show", "--origin", "-o", "table"]);
    let line = flag
        .lines()
        .find(|line| line.contains(" output "))
        .expect("listed");
    assert!(line.contains("flag") && line.contains("--output"), "{line}");
    std::fs::write(cenote.path(".cenote.toml"), "colour = 'never'\n").expect("written");
    cenote.run("version").fails(2, "did you mean 'color'?");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let cenote = Cenote::new();
    let line = format!("{} --help | head -n 1", env!("CARGO_BIN_EXE_cenote"));
    let mut command = cenote.command();
    command.args(["version"]);
    let mut shell = std::process::Command::new("bash");
    shell.args([
        "-c",
        &format!("set -o pipefail; for i in 1 2 3 4 5 6 7 8 9; do {line}; done"),
    ]);
    let run = run(&mut shell);
    assert!(
        !run.stderr.contains("panic") && !run.stderr.contains("Broken"),
        "{run:?}"
    );
}

#[test]
fn man_pages_render_without_warnings() {
    let cenote = Cenote::new();
    cenote.ok("man pages");
    let mut pages = 0;
    for page in std::fs::read_dir(cenote.path("pages"))
        .expect("written")
        .flatten()
    {
        let path = page.path();
        let arguments = [
            "--warnings",
            "-E",
            "UTF-8",
            "-l",
            "-Tutf8",
            "-Z",
            text(&path),
        ];
        let run = tool("man", "man-db", &arguments);
        assert_eq!(run.code, 0, "{path:?}: {run:?}");
        assert!(run.stderr.is_empty(), "{path:?}: {}", run.stderr);
        pages += 1;
    }
    assert_eq!(pages, verbs::all().len() + 1);
}

#[test]
fn completion_scripts_are_accepted_by_their_shells() {
    let cenote = Cenote::new();
    for (shell, package, check) in [
        ("bash", "bash", "-n"),
        ("zsh", "zsh", "-n"),
        ("fish", "fish", "-n"),
    ] {
        let script = cenote.ok(&format!("completions {shell}"));
        let path = cenote.path(&format!("script.{shell}"));
        std::fs::write(&path, script).expect("written");
        let run = tool(shell, package, &[check, text(&path)]);
        assert_eq!(run.code, 0, "{shell}: {run:?}");
    }
}
