//! Judges that no one here wrote: libvirt's schemas and its test driver.
#![allow(dead_code)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use cenote_model::{Document, Parsed, ReadOptions};

/// Runs a tool; its absence is a failure that names the package.
pub(crate) fn run(program: &str, package: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; install the package {package}"));
    let mut stdin = child.stdin.take().unwrap();
    // A tool that refuses early closes its end.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Fails unless the document validates against libvirt's schema of that name.
pub(crate) fn validate(schema: &str, xml: &str) {
    let output = run("virt-xml-validate", "libvirt-clients", &["-", schema], xml);
    assert!(
        output.status.success(),
        "{schema} does not validate:\n{}\n{xml}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Feeds commands to virsh on its test driver, one process for all of them.
pub(crate) fn virsh(commands: &str) -> Output {
    run(
        "virsh",
        "libvirt-clients",
        &["-c", "test:///default"],
        commands,
    )
}

/// Reads, failing with the error's text.
pub(crate) fn read<T: Document>(xml: &str) -> Parsed<T> {
    T::from_xml(xml, &ReadOptions::default()).unwrap_or_else(|error| panic!("{error}\n{xml}"))
}

/// The error that reading gives.
pub(crate) fn error<T: Document>(xml: &str) -> String {
    match T::from_xml(xml, &ReadOptions::default()) {
        Err(error) => error.to_string(),
        Ok(parsed) => panic!("accepted, printing as\n{}", parsed.document.to_xml()),
    }
}

/// Prints, reads back and prints again: the document and the bytes are the same. Gives the text.
pub(crate) fn stable<T: Document + PartialEq + std::fmt::Debug>(document: &T) -> String {
    let first = document.to_xml();
    let again = read::<T>(&first);
    assert_eq!(
        &again.document, document,
        "changed by a round trip:\n{first}"
    );
    assert_eq!(again.document.to_xml(), first);
    first
}
