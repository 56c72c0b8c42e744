//! The installers' own judges, where the machine has them: ksvalidator (pykickstart),
//! debconf-set-selections (debconf), cloud-init.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::{Kind, is_hashed};

/// How long a judge may take.
const TIME: Duration = Duration::from_secs(60);
/// Most output that is kept, in bytes.
const MAX_OUTPUT: u64 = 64 << 10;

/// What a judge said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing against it.
    Accepted,
    /// Something against it, in the judge's words, without hashes.
    Refused {
        /// What it said.
        reasons: Vec<String>,
    },
    /// The machine has no judge of this kind, or there is none at all.
    Absent {
        /// What is missing, and where it would come from.
        what: &'static str,
    },
}

/// The judges, by the names or paths they are run by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judges {
    /// pykickstart's.
    pub ksvalidator: OsString,
    /// debconf's.
    pub debconf: OsString,
    /// cloud-init.
    pub cloud_init: OsString,
}

impl Default for Judges {
    /// Those on the search path.
    fn default() -> Self {
        Self {
            ksvalidator: "ksvalidator".into(),
            debconf: "debconf-set-selections".into(),
            cloud_init: "cloud-init".into(),
        }
    }
}

impl Judges {
    /// Asks the judge of a kind of answer file.
    ///
    /// # Errors
    /// Where the judge is there and cannot be run, or takes over a minute.
    pub fn ask(&self, kind: Kind, text: &str) -> io::Result<Verdict> {
        match kind {
            Kind::Kickstart => ask(&self.ksvalidator, "ksvalidator (pykickstart)", &[], text),
            Kind::Preseed => {
                let what = "debconf-set-selections (debconf)";
                ask(&self.debconf, what, &["-c"], text)
            }
            Kind::CloudInit => {
                let what = "cloud-init (cloud-init)";
                ask(&self.cloud_init, what, &["schema", "-c"], text)
            }
            Kind::Autoinstall => Ok(Verdict::Absent {
                what: "a judge of autoinstall files: Subiquity's is not packaged",
            }),
        }
    }
}

fn ask(program: &OsStr, what: &'static str, arguments: &[&str], text: &str) -> io::Result<Verdict> {
    // Created so that its owner alone can read it, and removed at the end.
    let mut file = tempfile::Builder::new().suffix(".cfg").tempfile()?;
    file.write_all(text.as_bytes())?;
    file.flush()?;
    let mut words: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    words.push(file.path().into());
    let child = Command::new(program)
        .args(&words)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Verdict::Absent { what });
        }
        Err(error) => return Err(error),
    };
    let (sender, receiver) = mpsc::channel();
    let mut readers = 0;
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child
            .stdout
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
        child
            .stderr
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        readers += 1;
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut output = Vec::new();
            let mut stream = stream;
            let read = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut output);
            let drained = read.and_then(|_| io::copy(&mut stream, &mut io::sink()));
            let _ = sender.send(drained.map(|_| output));
        });
    }
    let mut output = Vec::new();
    for _ in 0..readers {
        match receiver.recv_timeout(TIME) {
            Ok(part) => output.extend(part?),
            Err(_) => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{what} takes over {} s", TIME.as_secs()),
                ));
            }
        }
    }
    let output = String::from_utf8_lossy(&output);
    // debconf warns of a type it does not know, skips the line, and is content.
    if child.wait()?.success() && !output.starts_with("warning: ") {
        return Ok(Verdict::Accepted);
    }
    let path = file.path().to_string_lossy();
    Ok(Verdict::Refused {
        reasons: reasons(&output, &path),
    })
}

/// Lines with something in them, without the name of our file and without hashes.
fn reasons(output: &str, path: &str) -> Vec<String> {
    let word = |word: &str| {
        let bare = word.rsplit('=').next().unwrap_or(word);
        let bare = bare.trim_matches(['\'', '"', ',', ';', ')', '(']);
        if is_hashed(bare) && bare.len() > 2 {
            word.replace(bare, "…")
        } else {
            word.to_owned()
        }
    };
    output
        .replace(path, "the answer file")
        .lines()
        .map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" "))
        .filter(|line| !line.trim().is_empty())
        .take(50)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_cut_from_what_a_judge_says() {
        let said = "bad line in /tmp/x.cfg:\n\nrootpw --iscrypted $6$salt$abcdef --what\n\
                    user --password='$6$salt$abc'\n";
        let reasons = reasons(said, "/tmp/x.cfg");
        assert_eq!(
            reasons,
            [
                "bad line in the answer file:",
                "rootpw --iscrypted … --what",
                "user --password='…'",
            ]
        );
    }
}
