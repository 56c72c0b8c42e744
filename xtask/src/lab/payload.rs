//! What a run takes into the lab: the project's programs, its sources, the command.

use super::base::Base;
use crate::shell::{Context, Outcome, cargo, fail, output, program, quoted, target, workspace};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What of the project is to be on the path of the command.
#[derive(Default)]
pub(crate) struct Programs {
    /// Whose programs come along; all of the workspace's if empty.
    pub(crate) packages: Vec<String>,
    /// Built in the release profile instead of the development one.
    pub(crate) release: bool,
    /// Packages whose test programs come along, under the names of their targets.
    pub(crate) tests: Vec<String>,
    /// Examples to come along, as `PACKAGE:NAME`.
    pub(crate) examples: Vec<String>,
    /// Further files and folders.
    pub(crate) extra: Vec<PathBuf>,
}

/// The files of a run: where each comes from and where it goes, below `/lab/payload`.
pub(crate) struct Payload {
    /// Source outside and path inside.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// The script to run.
    pub(crate) command: Option<String>,
}

impl Programs {
    /// Builds what is asked for and lists it.
    pub(crate) fn collect(&self, base: &Base) -> Outcome<Payload> {
        let mut files = Vec::new();
        let mut programs = if self.packages.is_empty() {
            self.build(&["--workspace", "--bins", "--exclude", "xtask"])?
        } else {
            Vec::new()
        };
        for package in &self.packages {
            programs.extend(self.build(&["--package", package, "--bins"])?);
        }
        for example in &self.examples {
            let Some((package, name)) = example.split_once(':') else {
                return fail(format_args!(
                    "lab: --example takes PACKAGE:NAME, not `{example}`"
                ));
            };
            programs.extend(self.build(&["--package", package, "--example", name])?);
        }
        for (name, path) in &programs {
            files.push((path.clone(), Path::new("bin").join(name)));
        }
        let mut tests = Vec::new();
        for package in &self.tests {
            tests.extend(self.build(&["--package", package, "--tests"])?);
        }
        for (name, path) in &tests {
            files.push((path.clone(), Path::new("tests").join(name)));
        }
        let built = programs.iter().chain(&tests).map(|(_, path)| path);
        for library in missing_libraries(built, base)? {
            let name = library.file_name().unwrap_or_default().to_owned();
            files.push((library, Path::new("lib").join(name)));
        }
        for extra in &self.extra {
            let whole = fs::canonicalize(extra).context(extra.display())?;
            let name = whole.file_name().unwrap_or_default().to_owned();
            files.push((whole, Path::new("with").join(name)));
        }
        files.extend(sources()?);
        Ok(Payload {
            files,
            command: None,
        })
    }

    /// Builds with cargo; gives the names of the targets and their executables.
    fn build(&self, selection: &[&str]) -> Outcome<Vec<(String, PathBuf)>> {
        let tests = selection.contains(&"--tests");
        let verb: &[&str] = if tests {
            &["test", "--no-run"]
        } else {
            &["build"]
        };
        let mut command = cargo(verb);
        command.args(selection);
        command.args(["--quiet", "--message-format=json-render-diagnostics"]);
        if self.release {
            command.arg("--release");
        }
        let messages = output(command.stdin(Stdio::null()))?;
        Ok(messages
            .lines()
            .filter_map(executable)
            .filter(|built| built.test == tests)
            .map(|built| (built.name, built.path))
            .collect())
    }
}

/// An executable that cargo built.
#[derive(Debug, PartialEq, Eq)]
struct Executable {
    name: String,
    path: PathBuf,
    /// Whether it is a test program.
    test: bool,
}

/// The executable that a line of cargo's messages tells of.
fn executable(line: &str) -> Option<Executable> {
    let path = PathBuf::from(json_text(line, "executable")?);
    let (_, target) = line.split_once("\"target\":")?;
    let (_, profile) = line.split_once("\"profile\":")?;
    Some(Executable {
        name: json_text(target, "name")?,
        path,
        test: profile.split_once('}')?.0.contains("\"test\":true"),
    })
}

/// The text of the first member `name` in a line of cargo's JSON, whose texts are paths and
/// names; a path with a character that JSON escapes is not one of ours.
fn json_text(line: &str, name: &str) -> Option<String> {
    let rest = line.split_once(&format!("\"{name}\":\""))?.1;
    let text = rest.split_once('"')?.0;
    (!text.contains('\\')).then(|| text.to_string())
}

/// The files that git tracks or would track, to the place of the workspace.
fn sources() -> Outcome<Vec<(PathBuf, PathBuf)>> {
    let listed = output(&mut program(
        "git",
        ["ls-files", "-co", "--exclude-standard", "--deduplicate"],
    ))?;
    let root = workspace();
    Ok(listed
        .lines()
        .map(|line| (root.join(line), Path::new("src").join(line)))
        .filter(|(from, _)| from.is_file())
        .collect())
}

/// Shared libraries that the programs load and the emulated host does not have.
fn missing_libraries<'a>(
    programs: impl Iterator<Item = &'a PathBuf>,
    base: &Base,
) -> Outcome<BTreeSet<PathBuf>> {
    let paths = base.paths()?;
    let inside: BTreeSet<&str> = paths
        .lines()
        .filter_map(|path| path.rsplit_once('/').map(|(_, name)| name))
        .collect();
    let mut missing = BTreeSet::new();
    for program_file in programs {
        // A static program makes ldd fail, and needs nothing.
        let listed = program("ldd", [program_file])
            .stderr(Stdio::null())
            .output()
            .context("ldd")?;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some((name, place)) = line.trim().split_once(" => ") else {
                continue;
            };
            if inside.contains(name) {
                continue;
            }
            match place.split_once(" (") {
                Some((file, _)) => missing.insert(PathBuf::from(file)),
                None => {
                    return fail(format_args!(
                        "{} needs {name}, which is not on this machine",
                        program_file.display()
                    ));
                }
            };
        }
    }
    Ok(missing)
}

impl Payload {
    /// Lays the files out below `folder`, with hard links where the file system allows them.
    pub(crate) fn lay_out(&self, folder: &Path) -> Outcome<()> {
        for name in ["bin", "tests", "src", "lib"] {
            let child = folder.join(name);
            fs::create_dir_all(&child).context(child.display())?;
        }
        for (from, to) in &self.files {
            let to = folder.join(to);
            let parent = to.parent().unwrap_or(folder);
            fs::create_dir_all(parent).context(parent.display())?;
            if from.is_dir() {
                crate::shell::run(program("cp", ["-a"]).arg(from).arg(&to))?;
                continue;
            }
            // Writing to a name that is there already would write to what it is linked to.
            if to.exists() {
                fs::remove_file(&to).context(to.display())?;
            }
            if fs::hard_link(from, &to).is_err() {
                fs::copy(from, &to).context(from.display())?;
            }
        }
        // Test programs know the folders of the build by their absolute paths.
        let root = workspace();
        let file = folder.join("workspace");
        fs::write(&file, root.display().to_string()).context(file.display())?;
        if let Ok(inside) = target().strip_prefix(&root) {
            let build = folder.join("src").join(inside);
            fs::create_dir_all(build.join("tmp")).context(build.display())?;
            for profile in ["debug", "release"] {
                let link = build.join(profile);
                std::os::unix::fs::symlink("/lab/bin", &link).context(link.display())?;
            }
        }
        if let Some(script) = &self.command {
            let file = folder.join("command");
            fs::write(&file, script).context(file.display())?;
        }
        Ok(())
    }
}

/// The script that runs `command` inside; settings of ours and of Rust's run time go along.
pub(crate) fn script(command: &[String], as_user: bool) -> String {
    let mut script = String::from(
        "export PATH=/lab/bin:/lab/tests:$PATH CENOTE_LAB=1 XDG_RUNTIME_DIR=/run/user/0\n\
         [ -z \"$(ls -A /lab/payload/lib)\" ] || export LD_LIBRARY_PATH=/lab/payload/lib\n",
    );
    for (name, value) in std::env::vars() {
        if name.starts_with("CENOTE_") || name == "RUST_LOG" || name == "RUST_BACKTRACE" {
            script.push_str(&format!("export {name}={}\n", quoted(&value)));
        }
    }
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    let words = words.join(" ");
    if as_user {
        script.push_str(
            "chown -R lab:lab /lab/payload/src\n\
             export HOME=/home/lab USER=lab XDG_RUNTIME_DIR=/run/user/1000\n",
        );
        script.push_str("cd /lab/src\n");
        script.push_str(&format!(
            "exec setpriv --reuid=lab --regid=lab --init-groups -- {words}\n"
        ));
    } else {
        script.push_str(&format!("cd /lab/src\nexec {words}\n"));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_passes_words_unchanged() {
        let odd = ["printf", "%s|", "a b", "$HOME", "it's"].map(String::from);
        let script = script(&odd, false);
        let last = script.lines().last().expect("a last line");
        let printed = output(&mut program("sh", ["-c", last])).expect("sh runs");
        assert_eq!(printed, "a b|$HOME|it's|");
    }

    #[test]
    fn names_and_paths_are_found_in_cargo_messages() {
        let line = |test: bool| {
            let target = r#""target":{"kind":["bin"],"name":"cenote","test":true}"#;
            format!(
                r#"{{"reason":"compiler-artifact",{target},"profile":{{"opt_level":"0","test":{test}}},"executable":"/t/cenote"}}"#
            )
        };
        for test in [true, false] {
            let expected = Executable {
                name: "cenote".into(),
                path: "/t/cenote".into(),
                test,
            };
            assert_eq!(executable(&line(test)), Some(expected));
        }
        assert_eq!(executable(r#"{"executable":null}"#), None);
    }
}
