//! `console` and `logs`.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Seek as _, Write as _};
use std::net::Shutdown;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use cenote_engine::Node;
use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::Target;
use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out;
use crate::verb::{Example, Kind, Verb, example};

/// Ctrl-], which leaves a console.
const ESCAPE: u8 = 0x1d;
/// How often a log that is followed is looked at when its domain says nothing.
const INTERVAL: Duration = Duration::from_millis(200);

/// Attach to a domain's console; Ctrl-] leaves it
#[derive(Args, Debug)]
pub(super) struct ConsoleVerb {
    #[command(flatten)]
    target: Target,
    /// Take it over from whoever is attached
    #[arg(long)]
    force: bool,
    /// Accepted; only one can be attached at a time in any case
    #[arg(long)]
    safe: bool,
    /// Name of another device; refused, since machines have one serial port
    #[arg(long, value_name = "NAME")]
    devname: Option<String>,
}

impl Verb for ConsoleVerb {
    const NAME: &'static str = "console";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example("Talk to the guest", "cenote console web"),
        example("Take the console over", "cenote console web --force"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        if let Some(name) = &self.devname
            && !["serial0", "console0"].contains(&name.as_str())
        {
            return Err(
                Failure::new(Code::E0605, format!("there is no console '{name}'"))
                    .why("machines have one serial port, 'serial0'")
                    .fix("leave --devname out"),
            );
        }
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        attach(context, &node, &info.uuid, self.force)
    }
}

/// Puts the terminal back when dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        match tcsetattr(&stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may have gone away.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Attaches until the domain ends, somebody else takes over, or Ctrl-] is typed on a terminal.
pub(super) fn attach(context: &Context, node: &Node, domain: &str, force: bool) -> Result<()> {
    let console = node.domain_console(domain, force)?;
    context.note(&format!("Connected to domain '{}'", console.domain));
    let on_terminal = io::stdin().is_terminal();
    if on_terminal {
        context.note("Escape character is ^] (Ctrl + ])");
    }
    let broken = |error: io::Error| {
        Failure::new(Code::E0101, "the connection to the console broke").source(error)
    };
    let raw = Raw::enter();
    let typing = console.stream.try_clone().map_err(broken)?;
    thread::spawn(move || type_into(typing, on_terminal));
    let mut stream = &console.stream;
    let mut buffer = [0; 16384];
    let result = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(read) => {
                let mut stdout = io::stdout().lock();
                let heard = buffer.get(..read).unwrap_or_default();
                if stdout
                    .write_all(heard)
                    .and_then(|()| stdout.flush())
                    .is_err()
                {
                    break Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break Ok(()),
            Err(error) => break Err(broken(error)),
        }
    };
    drop(raw);
    if on_terminal {
        context.note("");
    }
    result
}

/// Passes on what is typed; on a terminal up to Ctrl-], which lets go of the console.
fn type_into(stream: std::os::unix::net::UnixStream, on_terminal: bool) {
    let mut stdin = io::stdin();
    let mut buffer = [0; 1024];
    let mut to = &stream;
    while let Ok(read) = stdin.read(&mut buffer) {
        let typed = buffer.get(..read).unwrap_or_default();
        if typed.is_empty() {
            // The end of a file is not the end of the console.
            return;
        }
        let end = typed.iter().position(|byte| on_terminal && *byte == ESCAPE);
        let passed = typed.get(..end.unwrap_or(typed.len())).unwrap_or_default();
        if to.write_all(passed).is_err() {
            return;
        }
        if end.is_some() {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Print what a domain's console has said
#[derive(Args, Debug)]
pub(super) struct Logs {
    #[command(flatten)]
    target: Target,
    /// Go on with what it says until it ends
    #[arg(short = 'f', long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// What the monitor said instead, such as why a start failed
    #[arg(long, conflicts_with = "supervisor")]
    monitor: bool,
    /// What the supervisor said instead
    #[arg(long)]
    supervisor: bool,
    /// What its installer printed instead
    #[arg(long, conflicts_with_all = ["monitor", "supervisor"])]
    install: bool,
}

impl Verb for Logs {
    const NAME: &'static str = "logs";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example("Its last words", "cenote logs web --tail 20"),
        example("Why a start failed", "cenote logs web --monitor"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        // Logs outlive a transient domain, and are found by its name then.
        let known = node.domain(&self.target.domain);
        let name = match &known {
            Ok(info) => info.name.clone(),
            Err(_) => self.target.domain.clone(),
        };
        let file = match (self.monitor, self.supervisor, self.install) {
            (true, ..) => "monitor.log",
            (_, true, _) => "supervisor.log",
            (.., true) => "install.log",
            _ => "console.log",
        };
        let path = node.domain_log_dir(&name).join(file);
        let Ok(mut log) = File::open(&path) else {
            return match known {
                // It was not started yet.
                Ok(_) => Ok(()),
                Err(_) => context.domain(&node, &self.target.domain).map(drop),
            };
        };
        let mut text = Vec::new();
        let failed = |error: io::Error| {
            Failure::new(Code::E0101, format!("cannot read '{}'", path.display())).source(error)
        };
        log.read_to_end(&mut text).map_err(failed)?;
        print(last_lines(&text, self.tail))?;
        if !self.follow {
            return Ok(());
        }
        loop {
            let mut more = Vec::new();
            // What is written before the domain is seen to have ended is still printed.
            let runs = node.domain(&name).is_ok_and(|info| info.id.is_some());
            log.read_to_end(&mut more).map_err(failed)?;
            print(&more)?;
            if more.is_empty() {
                if !runs {
                    break;
                }
                if has_been_rotated(&mut log, &path) {
                    log = File::open(&path).map_err(failed)?;
                    continue;
                }
                thread::sleep(INTERVAL);
            }
        }
        Ok(())
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    out::write(&String::from_utf8_lossy(bytes))
}

/// Whether the name means another file than the one that was read to its end.
fn has_been_rotated(log: &mut File, path: &PathBuf) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let at = log.stream_position().unwrap_or_default();
    let (Ok(own), Ok(named)) = (log.metadata(), std::fs::metadata(path)) else {
        return false;
    };
    own.ino() != named.ino() && at >= own.len()
}

fn last_lines(text: &[u8], count: Option<usize>) -> &[u8] {
    let Some(count) = count else { return text };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let breaks = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    let start = match count {
        0 => text.len(),
        count => breaks
            .map(|(at, _)| at + 1)
            .nth(count - 1)
            .unwrap_or_default(),
    };
    text.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_whole_lines() {
        let text = b"a\nb\nc\n";
        assert_eq!(last_lines(text, None), text);
        assert_eq!(last_lines(text, Some(0)), b"");
        assert_eq!(last_lines(text, Some(1)), b"c\n");
        assert_eq!(last_lines(text, Some(2)), b"b\nc\n");
        assert_eq!(last_lines(text, Some(9)), text);
        assert_eq!(last_lines(b"a\nb", Some(1)), b"b");
    }
}
