//! Programs that no one here wrote, as judges.
#![allow(dead_code)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a tool; its absence is a failure that names the package.
pub(crate) fn run(program: &str, package: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; install {package}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A tool that refuses early closes its end.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Runs a tool that must succeed; gives its standard output.
pub(crate) fn ok(program: &str, package: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run(program, package, arguments, input);
    assert!(
        output.status.success(),
        "{program} {arguments:?}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
