//! Code that runs in the monitor's place tries to get out of its sandbox.
//!
//! This program starts itself once for each attempt. The child enters the sandbox as the monitor
//! does, becomes a thread of a class and tries. Each attempt is also made without a sandbox,
//! where it must succeed, so that a refusal is known to be the sandbox's; and with all but the
//! filter of system calls, so that the walls are known to hold one by one.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.
#![allow(unsafe_code)] // What an attacker would do.

use cenote_vmm::sandbox::{Class, Enforcement, User, enter, restrict_thread};
use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    thread,
};

const CLASSES: [(&str, Class); 6] = [
    ("vcpu", Class::Vcpu),
    ("device", Class::Device),
    ("control", Class::Control),
    ("worker", Class::Worker),
    ("disk", Class::Disk),
    ("machine", Class::Machine),
];

/// How much of the sandbox is there.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layer {
    Nothing,
    /// Landlock, namespaces, user, capabilities.
    Walls,
    All,
}

/// What an attempt is given: a file that is open, its path, and the address of a server.
struct Given {
    held: File,
    path: String,
    server: String,
}

type Attempt = fn(&mut Given) -> io::Result<()>;

/// Attempts by name, and whether the walls alone refuse them.
const ATTEMPTS: &[(&str, Attempt, bool)] = &[
    ("open", |_| File::open("/etc/passwd").map(drop), true),
    (
        "open what it holds",
        |g| File::open(&g.path).map(drop),
        true,
    ),
    (
        "create",
        |g| File::create_new(g.path.clone() + ".new").map(drop),
        true,
    ),
    ("remove", |g| std::fs::remove_file(&g.path), true),
    ("list", |_| std::fs::read_dir("/etc").map(drop), true),
    ("connect", |g| TcpStream::connect(&g.server).map(drop), true),
    (
        "become root",
        |_| Ok(rustix::thread::set_thread_uid(rustix::fs::Uid::ROOT)?),
        true,
    ),
    ("exec", exec, true),
    ("socket", socket, false),
    (
        "local socket",
        |_| std::os::unix::net::UnixDatagram::unbound().map(drop),
        false,
    ),
    ("fork", fork, false),
    ("make code", make_code, false),
    ("set up an io_uring", make_ring, false),
    (
        "signal",
        |_| {
            Ok(rustix::process::test_kill_process(
                rustix::process::getppid().unwrap(),
            )?)
        },
        false,
    ),
];

fn socket(_: &mut Given) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType};
    Ok(rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).map(drop)?)
}

fn exec(_: &mut Given) -> io::Result<()> {
    let program = c"/bin/true";
    let words = [program.as_ptr(), std::ptr::null()];
    // SAFETY: a string and a list that ends as it has to. It only comes back with an error.
    unsafe { libc::execv(program.as_ptr(), words.as_ptr()) };
    Err(io::Error::last_os_error())
}

fn fork(_: &mut Given) -> io::Result<()> {
    // SAFETY: the child does nothing but end.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends without running anything of Rust's.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

fn make_code(_: &mut Given) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
    // SAFETY: new memory, which nobody uses.
    unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, all, MapFlags::PRIVATE) }?;
    Ok(())
}

/// It could be asked for files and sockets, past the filter.
fn make_ring(_: &mut Given) -> io::Result<()> {
    // `struct io_uring_params` is 120 bytes long.
    let mut parameters = [0u32; 30];
    // SAFETY: the kernel reads and writes the structure, which is long enough.
    match unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, &raw mut parameters) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What every thread is left with: the use of what is open, and memory.
fn use_held(given: &mut Given) -> io::Result<()> {
    // Reading to the end would ask for the size, which not every class may.
    let mut text = [0; 8];
    let length = given.held.read(&mut text)?;
    if &text[..length] != b"held" {
        return Err(io::Error::other("something else was read"));
    }
    let memory = vec![1u8; 8 << 20];
    writeln!(
        io::stdout(),
        "{}",
        memory.iter().map(|b| u64::from(*b)).sum::<u64>()
    )
}

/// What the thread that decides may do more: start a worker, which is restricted further.
fn start_worker(given: &mut Given) -> io::Result<()> {
    given.held.rewind()?;
    given.held.set_len(1)?;
    given.held.sync_all()?;
    let worker = thread::Builder::new().name("later".to_owned()).spawn(|| {
        restrict_thread(Class::Worker);
    })?;
    worker.join().map_err(|_| io::Error::other("a panic"))
}

const DUTIES: &[(&str, Attempt)] = &[("use held", use_held), ("start worker", start_worker)];

/// Exit statuses of a child.
const SUCCEEDED: u8 = 0;
const REFUSED: u8 = 10;
const WALLS_MISSING: u8 = 11;

fn child(words: &[String]) -> ExitCode {
    let [class, layer, attempt, path, server, user] = words else {
        unreachable!("the parent gives six words");
    };
    let (_, class) = CLASSES.into_iter().find(|(name, _)| name == class).unwrap();
    let mut given = Given {
        held: File::options().read(true).write(true).open(path).unwrap(),
        path: path.clone(),
        server: server.clone(),
    };
    let attempts = ATTEMPTS.iter().map(|(name, attempt, _)| (*name, *attempt));
    let (_, attempt) = attempts
        .chain(DUTIES.iter().copied())
        .find(|(name, _)| name == attempt)
        .unwrap();
    if layer != "Nothing" {
        let user = user.parse().ok().map(|id| User { uid: id, gid: id });
        let entered = enter(Enforcement::Kill, user).unwrap();
        if layer == "Walls" && !entered.missing.is_empty() {
            // Older kernels lack Landlock's later walls, which no attempt here needs.
            for missing in &entered.missing {
                eprintln!("{missing}");
            }
            if !entered.holds.iter().any(|holds| holds.contains("Landlock"))
                || !entered.holds.iter().any(|holds| holds.contains("network"))
            {
                return ExitCode::from(WALLS_MISSING);
            }
        }
    }
    let all = layer == "All";
    let thread = thread::spawn(move || {
        if all {
            restrict_thread(class);
        }
        attempt(&mut given)
    });
    match thread.join().unwrap() {
        Ok(()) => ExitCode::from(SUCCEEDED),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(REFUSED)
        }
    }
}

struct Trial {
    folder: tempfile::TempDir,
    server: String,
}

impl Trial {
    fn run(&self, class: &str, layer: Layer, attempt: &str, user: &str) -> ExitStatus {
        let path = self.folder.path().join("held");
        std::fs::write(&path, "held").unwrap();
        let _ = std::fs::remove_file(self.folder.path().join("held.new"));
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["child", class, &format!("{layer:?}"), attempt])
            .arg(&path)
            .args([&self.server, user])
            .output()
            .unwrap();
        output.status
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "child") {
        return child(&words[1..]);
    }
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    // What Landlock refuses must not be refused for lack of rights already.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let trial = Trial {
        folder,
        server: server.local_addr().unwrap().to_string(),
    };
    let root = rustix::process::geteuid().is_root();
    let mut count = 0;
    let mut expect = |what: String, expected: bool, status: ExitStatus| {
        count += 1;
        assert!(expected, "{what}: {status}");
    };
    for (attempt, _, walls_refuse) in ATTEMPTS {
        let free = trial.run("machine", Layer::Nothing, attempt, "");
        let possible = root || *attempt != "become root";
        let code = if possible { SUCCEEDED } else { REFUSED };
        let as_it_should = free.code() == Some(code.into());
        expect(format!("{attempt} without a sandbox"), as_it_should, free);
        if *walls_refuse {
            let walled = trial.run("machine", Layer::Walls, attempt, "");
            if walled.code() == Some(WALLS_MISSING.into()) {
                println!("{attempt}: this host's kernel does not have all walls, not tried");
                continue;
            }
            let refused = walled.code() == Some(REFUSED.into());
            expect(format!("{attempt} within walls"), refused, walled);
        }
    }
    for (class, _) in CLASSES {
        for (attempt, _, _) in ATTEMPTS {
            let status = trial.run(class, Layer::All, attempt, "");
            let killed = status.signal() == Some(libc::SIGSYS);
            expect(format!("{attempt} by {class}"), killed, status);
        }
        let status = trial.run(class, Layer::All, "use held", "");
        expect(format!("{class} at work"), status.success(), status);
        let status = trial.run(class, Layer::All, "start worker", "");
        let as_it_should = if class == "machine" {
            status.success()
        } else {
            status.signal() == Some(libc::SIGSYS)
        };
        expect(format!("{class} starts a worker"), as_it_should, status);
    }
    // A user of one's own choice is for root only.
    let status = trial.run("machine", Layer::Walls, "use held", "12345");
    let as_it_should = status.success() == root;
    expect("another user".to_owned(), as_it_should, status);
    assert!(Path::new("/etc/passwd").exists());
    println!("sandbox: {count} attempts went as they should");
    ExitCode::SUCCESS
}
