//! Running other programs: printed, checked, and with an error that says what was run.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What went wrong, written for the person at the terminal.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

/// The result of a step of the driver.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// A failure with this message.
pub(crate) fn fail<T>(message: impl Display) -> Outcome<T> {
    Err(Failure(message.to_string()))
}

/// Puts into a failure what was being done when `self` failed.
pub(crate) trait Context<T> {
    /// The value, or a failure that reads "`doing`: reason".
    fn context(self, doing: impl Display) -> Outcome<T>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl Display) -> Outcome<T> {
        self.map_err(|error| Failure(format!("{doing}: {error}")))
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The root folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The folder cargo builds into.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// `program` with `arguments`, to run in the root of the workspace.
pub(crate) fn program<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace());
    command
}

/// `cargo` with `arguments`: the one that runs this driver.
pub(crate) fn cargo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    program(cargo, arguments)
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let name = Path::new(command.get_program());
    let name = name.file_name().unwrap_or(command.get_program());
    std::iter::once(name)
        .chain(command.get_args())
        .map(|word| quoted(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// `word` as a POSIX shell reads it back.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs the command with our standard streams and fails when it does.
pub(crate) fn run(command: &mut Command) -> Outcome<()> {
    let status = command.status().context(shown(command))?;
    if status.success() {
        Ok(())
    } else {
        fail(format_args!("`{}` failed: {status}", shown(command)))
    }
}

/// Runs the command and gives what it printed on standard output; its messages go to ours.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let result = command
        .stderr(Stdio::inherit())
        .stdin(Stdio::null())
        .output()
        .context(shown(command))?;
    if !result.status.success() {
        return fail(format_args!(
            "`{}` failed: {}",
            shown(command),
            result.status
        ));
    }
    String::from_utf8(result.stdout).context(shown(command))
}

/// Whether a program of this name is on the path.
pub(crate) fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Whether this process is root, asked from the kernel through `id`.
pub(crate) fn is_root() -> bool {
    output(&mut program("id", ["-u"])).is_ok_and(|id| id.trim() == "0")
}

/// The command with root's rights: itself for root, else through `sudo -n`.
pub(crate) fn as_root<A: AsRef<OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Outcome<Command> {
    if is_root() {
        return Ok(program(name, arguments));
    }
    let may = on_path("sudo")
        && program("sudo", ["-n", "true"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    if !may {
        return fail(format_args!(
            "`{name}` needs root, and `sudo -n` does not give it here. \
             Run the same command as root, or allow sudo without a password"
        ));
    }
    let mut command = program("sudo", ["-n", "--", name]);
    command.args(arguments);
    Ok(command)
}

/// A duration for people: `0.4 s`, `58.1 s`, `3 min 12 s`.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_a_shell_reads_them() {
        assert_eq!(quoted("--color=auto"), "--color=auto");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        for word in ["a b", "$HOME", "`x`", "a'b\"c", "*"] {
            let printed = output(&mut program(
                "sh",
                ["-c", &format!("printf %s {}", quoted(word))],
            ));
            assert_eq!(printed.expect("sh runs"), word);
        }
    }

    #[test]
    fn a_failed_command_is_named() {
        let error = run(&mut program("sh", ["-c", "exit 3"])).expect_err("it fails");
        assert!(error.0.contains("sh -c 'exit 3'"), "{error}");
    }
}
