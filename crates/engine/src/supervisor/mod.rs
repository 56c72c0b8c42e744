//! The supervisor: the process that owns the life of one running domain.
//!
//! `cenote-supervisor` is started by the command that starts the domain and outlives it. It starts
//! the monitor, sees why that ended, does what the document wants done then (`on_poweroff`,
//! `on_reboot`, `on_crash`), keeps the console's log, and alone records the domain's states and
//! events. Commands reach it over a Unix socket in the domain's run directory.
//!
//! It may be killed at any time: the kernel then kills the monitor, lets go of the life lock, and
//! the next command records the end.

mod act;
pub(crate) mod console;
mod end;
mod live;
mod monitor;
pub(crate) mod network;
pub(crate) mod protocol;
mod record;
mod serve;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;

use cenote_model::domain::Domain;

use crate::domains::define::parse;
use crate::domains::lifecycle::Lifecycle;
use crate::domains::lock;
use crate::domains::state::{DomainState, PausedReason, RunningReason};
use crate::domains::translate;
use crate::domains::truth::LAST_BREATH;
use crate::node::Node;
use crate::paths::NodeOptions;
use crate::state::make_private_dir;
use crate::teardown::domain_subject;

use self::act::Supervisor;
use self::console::Console;
use self::monitor::{Monitor, Setting};
use self::protocol::{Order, Ready};
use self::record::Record;
use self::serve::Message;

/// Name of the monitor's log.
pub(crate) const MONITOR_LOG: &str = "monitor.log";

/// What the supervisor's program is started with.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    state_dir: PathBuf,
    runtime_dir: PathBuf,
    order: PathBuf,
    /// Whether this process is to start the supervisor and end, so that the supervisor is
    /// nobody's child.
    launch: bool,
}

impl Arguments {
    /// The words of the command line.
    pub(crate) fn words(node: &Node, order: &Path) -> Vec<std::ffi::OsString> {
        vec![
            "launch".into(),
            node.state_dir().into(),
            node.runtime_dir().into(),
            order.into(),
        ]
    }

    fn of_process() -> Option<Arguments> {
        let words: Vec<_> = std::env::args_os().skip(1).collect();
        let [verb, state_dir, runtime_dir, order] = words.as_slice() else {
            return None;
        };
        Some(Arguments {
            state_dir: state_dir.into(),
            runtime_dir: runtime_dir.into(),
            order: order.into(),
            launch: match verb.to_str()? {
                "launch" => true,
                "run" => false,
                _ => return None,
            },
        })
    }
}

/// The program `cenote-supervisor`.
///
/// Standard input is the domain's command lock, which it holds until the domain has been started
/// or not; standard output is where it says which; standard error is a log.
#[must_use]
pub fn main() -> ExitCode {
    let Some(arguments) = Arguments::of_process() else {
        let _ = writeln!(
            io::stderr(),
            "cenote-supervisor is started by cenote, once for each running domain; see \
             'cenote start --help'"
        );
        return ExitCode::from(2);
    };
    if arguments.launch {
        return launch();
    }
    match supervise(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            say(&Ready::Failed { reason });
            ExitCode::FAILURE
        }
    }
}

/// Starts the supervisor in a session of its own and leaves it to the system's first process.
fn launch() -> ExitCode {
    // A process that leads a session already stays in it, which does no harm.
    let _ = rustix::process::setsid();
    let started = std::env::current_exe().and_then(|program| {
        let words = std::env::args_os().skip(2);
        std::process::Command::new(program)
            .arg("run")
            .args(words)
            .spawn()
    });
    match started {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            let reason = format!("cannot start the supervisor: {error}");
            say(&Ready::Failed { reason });
            ExitCode::FAILURE
        }
    }
}

/// Tells the command that waits. It may be gone.
fn say(ready: &Ready) {
    let _ = protocol::send(&mut io::stdout().lock(), ready);
}

/// Lets go of the command lock, which is standard input.
fn unlock() -> io::Result<()> {
    rustix::fs::flock(io::stdin(), rustix::fs::FlockOperation::Unlock)?;
    Ok(())
}

/// Starts the domain and serves it to its end.
///
/// # Errors
/// Why it could not be started; later nobody would hear it.
fn supervise(arguments: &Arguments) -> Result<(), String> {
    let text = |error: crate::Error| error.to_string();
    let order = read_order(&arguments.order)?;
    let node = Node::open(&NodeOptions {
        backing_dirs: order.backing_dirs.clone(),
        state_dir: Some(arguments.state_dir.clone()),
        runtime_dir: Some(arguments.runtime_dir.clone()),
        skip_repair: true,
        ..NodeOptions::default()
    })
    .map_err(text)?;
    let life = lock::life_path(&node.domains_dir(), &order.uuid);
    let life = lock::acquire(&life, LAST_BREATH).map_err(text)?;
    let Some(life) = life else {
        return Err("its last supervisor does not end".to_owned());
    };
    // It belongs to whoever holds the life lock.
    let run_dir = node.run_dir(&order.uuid, &order.name);
    remove_run_dir(&run_dir);
    make_private_dir(&run_dir)
        .map_err(|error| format!("cannot make the run directory: {error}"))?;
    let started = start(&node, &order, &run_dir);
    let (supervisor, messages) = match started {
        Ok(started) => started,
        Err(reason) => {
            record::failed(&node, &order, &reason);
            remove_run_dir(&run_dir);
            return Err(reason);
        }
    };
    if let Err(error) = unlock() {
        tracing::warn!(%error, "the command lock cannot be let go");
    }
    supervisor.run(messages);
    remove_run_dir(&run_dir);
    drop(life);
    go_on(arguments, &order);
    Ok(())
}

/// Goes on with what the domain's run was a part of, such as an install, if the command that
/// would is gone.
fn go_on(arguments: &Arguments, order: &Order) {
    let node = Node::open(&NodeOptions {
        state_dir: Some(arguments.state_dir.clone()),
        runtime_dir: Some(arguments.runtime_dir.clone()),
        programs: order.monitor.parent().map(Path::to_owned),
        allow_emulation: order.allow_emulation,
        skip_repair: true,
        ..NodeOptions::default()
    });
    let result = node.and_then(|node| node.repair_on(&domain_subject(&order.name)));
    if let Err(error) = result {
        tracing::warn!(%error, "what the domain was a part of waits for the next command");
    }
}

fn read_order(path: &Path) -> Result<Order, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot read the order: {error}"))?;
    // It holds the document with its secrets, which nobody needs in a file any more.
    let _ = std::fs::remove_file(path);
    serde_json::from_slice(&text).map_err(|error| format!("cannot read the order: {error}"))
}

fn remove_run_dir(run_dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(run_dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %run_dir.display(), %error, "the run directory stays");
    }
}

/// Starts the monitor, records that the domain runs, and lets the guest go.
fn start<'n>(
    node: &'n Node,
    order: &Order,
    run_dir: &Path,
) -> Result<(Supervisor<'n>, mpsc::Receiver<Message>), String> {
    let document = parse(&order.document).map_err(|error| error.to_string())?;
    let machine = translate::machine(&document, translation(node, order))
        .map_err(|error| error.to_string())?;
    translate::empty(&machine.emptied)?;
    let log_dir = node.domain_log_dir(&order.name);
    let console = match &machine.console {
        Some(console) => Some(
            Console::open(&log_dir, &console.files)
                .map_err(|error| format!("cannot open the console's log: {error}"))?,
        ),
        None => None,
    };
    let log = log_dir.join(MONITOR_LOG);
    console::rotate(&log);
    let (sender, messages) = mpsc::channel();
    let restore = order.restore.as_ref();
    let setting = Setting {
        program: &order.monitor,
        run_dir,
        log: &log,
        machine: &machine,
        network: order.network.as_deref(),
        restore: restore.map(|restore| restore.path.as_path()),
        has_console: console.is_some(),
    };
    let (mut monitor, ends) =
        Monitor::start(&setting, sender.clone(), Message::Ended, Message::Noticed)?;
    let output = join(console.as_ref(), ends)?;
    let listener = protocol::listen(run_dir, protocol::SOCKET)
        .map_err(|error| format!("cannot listen: {error}"))?;
    let (state, events) = first_state(order);
    let mut live = document.clone();
    live::name_parts(&mut live, run_dir, &mut monitor);
    let record = Record::started(node, order, &mut live, state, &events)
        .map_err(|error| error.to_string())?;
    if let Some(restore) = restore.filter(|restore| restore.consume) {
        // The machine has its memory mapped and keeps what it needs of the file.
        let _ = std::fs::remove_file(&restore.path);
    }
    if !order.paused
        && let Err(reason) = monitor.call("resume")
    {
        // It ended at once; what is recorded next says so.
        tracing::warn!(reason, "the guest cannot be let go");
    }
    say(&Ready::Started {
        id: record.id(),
        notes: machine.notes.clone(),
    });
    let shared = serve::listen(listener, sender.clone(), console.clone(), &monitor)
        .map_err(|error| format!("cannot serve: {error}"))?;
    if order.autodestroy {
        serve::tie_to_caller(sender.clone(), Arc::clone(&shared))
            .map_err(|error| format!("cannot serve: {error}"))?;
    }
    let supervisor = Supervisor {
        record,
        order: order.clone(),
        policies: policies(&document),
        document,
        node,
        run_dir: run_dir.to_owned(),
        log,
        console,
        output,
        shared,
        sender,
        phase: act::Phase::Up {
            monitor,
            paused: order.paused,
        },
        button: None,
        quick_restarts: 0,
    };
    Ok((supervisor, messages))
}

/// How a domain's machine is made here: the monitor itself sees to it that nobody else has the
/// images.
fn translation<'a>(node: &'a Node, order: &'a Order) -> translate::Setting<'a> {
    translate::Setting {
        node,
        allow_emulation: order.allow_emulation,
        check_use: false,
        services: &order.services,
    }
}

/// Joins a monitor's ends to the console.
fn join(
    console: Option<&Arc<Console>>,
    ends: monitor::Ends,
) -> Result<Option<std::thread::JoinHandle<()>>, String> {
    match (console, ends) {
        (Some(console), Some((input, output))) => console
            .join(input, output)
            .map(Some)
            .map_err(|error| format!("cannot read the console: {error}")),
        _ => Ok(None),
    }
}

/// What follows the guest's ends.
fn policies(document: &Domain) -> act::Policies {
    act::Policies {
        on_poweroff: document.on_poweroff,
        on_reboot: document.on_reboot,
        on_crash: document.on_crash,
    }
}

fn first_state(order: &Order) -> (DomainState, Vec<Lifecycle>) {
    let snapshot = |restore: &protocol::Restore| restore.snapshot;
    match (&order.restore, order.paused) {
        (Some(restore), false) if snapshot(restore) => (
            DomainState::Running(RunningReason::FromSnapshot),
            vec![Lifecycle::StartedSnapshot],
        ),
        (Some(restore), true) if snapshot(restore) => (
            DomainState::Paused(PausedReason::FromSnapshot),
            vec![Lifecycle::StartedSnapshot, Lifecycle::SuspendedSnapshot],
        ),
        (None, false) => (
            DomainState::Running(RunningReason::Booted),
            vec![Lifecycle::StartedBooted],
        ),
        (None, true) => (
            DomainState::Paused(PausedReason::User),
            vec![Lifecycle::StartedBooted, Lifecycle::SuspendedPaused],
        ),
        (Some(_), false) => (
            DomainState::Running(RunningReason::Restored),
            vec![Lifecycle::StartedRestored],
        ),
        (Some(_), true) => (
            DomainState::Paused(PausedReason::User),
            vec![Lifecycle::StartedRestored, Lifecycle::SuspendedRestored],
        ),
    }
}
