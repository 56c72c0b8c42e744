//! Running the host's storage programs (mount, mkfs, lvm).

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};

/// Most of a program's error output shown to the user, in characters.
const SHOWN: usize = 600;

/// Runs `program` with `arguments`, no shell, in the C locale, and returns what
/// it printed.
///
/// # Errors
/// [`Error::MissingProgram`] names the Debian package that brings it;
/// [`Error::Program`] has its error output.
pub(crate) fn run<I, S>(
    program: &'static str,
    package: &'static str,
    arguments: I,
) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let output = output(program, package, arguments)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let mut reason: String = text.trim().chars().take(SHOWN).collect();
        if reason.is_empty() {
            reason = output.status.to_string();
        }
        return Err(Error::Program { program, reason });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`run`], giving the exit code (-1 for a signal) instead of failing on one
/// that is not 0.
pub(crate) fn status<I, S>(
    program: &'static str,
    package: &'static str,
    arguments: I,
) -> Result<(i32, String)>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let output = output(program, package, arguments)?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.code().unwrap_or(-1), printed))
}

fn output<I, S>(program: &'static str, package: &'static str, arguments: I) -> Result<Output>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    // The administrator's programs are often not in a user's PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
        .stdin(Stdio::null());
    tracing::debug!(?command, "running");
    command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::MissingProgram { program, package },
        _ => Error::Program {
            program,
            reason: source.to_string(),
        },
    })
}
