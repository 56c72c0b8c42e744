//! The NBD server against qemu-io, qemu-img, nbdcopy, nbdinfo, and clients
//! that break the rules.

#![allow(clippy::unwrap_used)]

mod tools;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cenote_image::nbd::{BlockDevice, DeviceExtent, Export, Server, ServerOptions};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{Error, Result};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tools::{qemu_img, text};

const SIZE: u64 = 24 << 20;
const GRAIN: u64 = 64 << 10;

/// A disk in memory that counts flushes and fails where it is told to.
struct Disk {
    content: MemoryStorage,
    writable: bool,
    flushes: AtomicU64,
    bad: Option<u64>,
    /// While set, reads wait.
    held: AtomicBool,
}

impl Disk {
    fn new(content: &[u8]) -> Self {
        let storage = MemoryStorage::from_bytes(content);
        storage.set_length(SIZE).unwrap();
        Self {
            content: storage,
            writable: true,
            flushes: AtomicU64::new(0),
            bad: None,
            held: AtomicBool::new(false),
        }
    }

    fn map<T>(&self, outcome: std::io::Result<T>) -> Result<T> {
        outcome.map_err(|error| Error::io(Path::new("disk"), "use", error))
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        SIZE
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let begin = Instant::now();
        while self.held.load(Ordering::Acquire) && begin.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        if self
            .bad
            .is_some_and(|bad| offset <= bad && bad < offset + buf.len() as u64)
        {
            return self.map(Err(std::io::Error::from_raw_os_error(5)));
        }
        self.map(self.content.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.map(self.content.write_at(buf, offset))
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        self.map(self.content.write_zeroes_at(offset, length, unmap))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.map(self.content.discard_at(offset, length))
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<DeviceExtent>> {
        let mut extents = Vec::new();
        let mut at = offset;
        while at < offset + length && extents.len() < most {
            let end = (at / GRAIN + 1) * GRAIN;
            let mut grain = vec![0; (end - at) as usize];
            self.map(self.content.read_at(&mut grain, at))?;
            let zero = grain.iter().all(|&byte| byte == 0);
            extents.push(DeviceExtent {
                length: end - at,
                hole: zero,
                zero,
            });
            at = end;
        }
        Ok(extents)
    }
}

/// Noise with holes.
fn sample() -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut bytes = vec![0; SIZE as usize];
    for grain in bytes.chunks_mut(GRAIN as usize) {
        if rng.random_range(0..3) > 0 {
            rng.fill(grain);
        }
    }
    bytes
}

struct Served {
    server: Server,
    disk: Arc<Disk>,
    socket: PathBuf,
    dir: tempfile::TempDir,
}

fn serve(disk: Disk) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let disk = Arc::new(disk);
    let server = Server::start(&socket, ServerOptions::new(Export::new(disk.clone()))).unwrap();
    Served {
        server,
        disk,
        socket,
        dir,
    }
}

impl Served {
    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", text(&self.socket))
    }

    fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }
}

fn tool(program: &str, arguments: &[&str]) -> Output {
    let package = if program.starts_with("nbd") {
        "libnbd-bin"
    } else {
        "qemu-utils"
    };
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} ({error}): install the package {package}"))
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = tool(program, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn nbdinfo_sees_the_export() {
    let bytes = sample();
    let served = serve(Disk::new(&bytes));
    let json: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", &served.uri()])).unwrap();
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["structured"], true);
    let export = &json["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for yes in [
        "can_fua",
        "can_flush",
        "can_multi_conn",
        "can_trim",
        "can_zero",
        "can_df",
        "can_cache",
    ] {
        assert_eq!(export[yes], true, "{yes}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_maximum"], 32 << 20);
    let map: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--map", "--json", &served.uri()])).unwrap();
    let mut at = 0;
    for extent in map.as_array().unwrap() {
        let length = extent["length"].as_u64().unwrap();
        assert_eq!(extent["offset"], at);
        let zero = bytes[at as usize..(at + length) as usize]
            .iter()
            .all(|&byte| byte == 0);
        assert_eq!(extent["type"], if zero { 3 } else { 0 });
        at += length;
    }
    assert_eq!(at, SIZE);
    let list = run("nbdinfo", &["--list", &served.uri()]);
    assert!(list.contains("export-size"));
    served.server.stop().unwrap();
    assert!(!served.socket.exists());
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let served = serve(Disk::new(&[]));
    let uri = served.uri();
    let commands = [
        "write -P 17 1000 70000",
        "write -P 18 5M 20M",
        "write -f -P 19 512 512",
        "flush",
        "write -z 6M 1M",
        "write -z -u 8M 64k",
        "discard 9M 1M",
        "aio_write -P 20 10M 1M",
        "aio_write -P 21 11M 1M",
        "aio_write -P 22 12M 4M",
        "aio_flush",
        "read -P 17 1024 69976",
        "read -P 19 512 488",
        "read -P 18 5M 1M",
        "read -P 0 6M 1M",
        "read -P 0 8M 64k",
        "read -P 20 10M 1M",
        "read -P 21 11M 1M",
        "read -P 22 12M 4M",
        "read -P 18 16M 8M",
    ];
    // 5M+20M passes the end: qemu-io refuses it itself, so end it there.
    let commands: Vec<String> = commands
        .iter()
        .map(|command| command.replace("5M 20M", "5M 19M"))
        .collect();
    let mut arguments = vec!["-f", "raw"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let seen = run("qemu-io", &arguments);
    assert!(!seen.contains("failed") && !seen.contains("rror"), "{seen}");
    let mut byte = [0; 1];
    served.disk.content.read_at(&mut byte, 1024).unwrap();
    assert_eq!(byte, [17]);
    assert!(served.disk.flushes.load(Ordering::SeqCst) >= 2);
}

#[test]
fn images_go_in_and_out_whole() {
    let bytes = sample();
    let served = serve(Disk::new(&bytes));
    let uri = served.uri();
    let path = |name: &str| served.dir.path().join(name);
    let (raw, out) = (path("in.raw"), path("out.raw"));
    std::fs::write(&raw, &bytes).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "raw", &uri, text(&out)]);
    assert!(std::fs::read(&out).unwrap() == bytes);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &uri, text(&raw)]);
    let copied = path("copied.raw");
    run(
        "nbdcopy",
        &["--connections=4", "--requests=64", &uri, text(&copied)],
    );
    assert!(std::fs::read(&copied).unwrap() == bytes);

    let other = serve(Disk::new(&[0xaa; SIZE as usize]));
    run(
        "nbdcopy",
        &[
            "--connections=4",
            "--request-size=524288",
            "--flush",
            text(&raw),
            &other.uri(),
        ],
    );
    assert!(other.disk.content.to_bytes().unwrap() == bytes);
    assert!(other.disk.flushes.load(Ordering::SeqCst) > 0);
    let third = serve(Disk::new(&[0xaa; SIZE as usize]));
    qemu_img(&[
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        text(&raw),
        &third.uri(),
    ]);
    assert!(third.disk.content.to_bytes().unwrap() == bytes);
    // From server to server, all through one protocol.
    run("nbdcopy", &[&uri, &third.uri()]);
    assert!(third.disk.content.to_bytes().unwrap() == bytes);
    assert!(
        served
            .server
            .wait_until_unused(Some(Duration::from_secs(60)))
    );
}

#[test]
fn a_read_only_export_stays_as_it_is() {
    let bytes = sample();
    for (device, export) in [(true, false), (false, true)] {
        let mut disk = Disk::new(&bytes);
        disk.writable = !device;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("ro.sock");
        let disk = Arc::new(disk);
        let mut exported = Export::new(disk.clone());
        exported.read_only = export;
        exported.name = "layer 1".into();
        let server = Server::start(&socket, ServerOptions::new(exported)).unwrap();
        let uri = format!("nbd+unix:///layer%201?socket={}", text(&socket));
        let json = run("nbdinfo", &["--json", &uri]);
        assert!(json.contains("\"is_read_only\": true"));
        assert!(
            !tool("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri])
                .status
                .success()
        );
        // A client that ignores the flag.
        let mut client = Raw::enter(UnixStream::connect(&socket).unwrap(), "layer 1", true);
        for command in [1, 4, 6] {
            client.request(
                0,
                command,
                0,
                512,
                if command == 1 { &[9; 512] } else { &[] },
            );
            assert_eq!(client.error(), 1);
        }
        server.stop().unwrap();
        assert!(disk.content.to_bytes().unwrap() == bytes);
        assert_eq!(disk.flushes.load(Ordering::SeqCst) > 0, !device);
    }
}

#[test]
fn an_error_concerns_its_request_alone() {
    let bytes = sample();
    let mut disk = Disk::new(&bytes);
    disk.bad = Some(7 << 20);
    let served = serve(disk);
    let uri = served.uri();
    let output = tool(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "read 7M 1M",
            "-c",
            "read 6M 1M",
            "-c",
            "read 7M 512",
            &uri,
        ],
    );
    let seen = String::from_utf8_lossy(&output.stdout);
    assert!(
        seen.contains("Input/output error") && seen.contains("read 1048576/1048576"),
        "{seen}"
    );
    let out = served.dir.path().join("out");
    assert!(!tool("nbdcopy", &[&uri, text(&out)]).status.success());
    // Simple replies: the older way.
    let mut client = Raw::enter(served.client(), "", false);
    client.request(0, 0, 7 << 20, 4096, &[]);
    assert_eq!(client.error(), 5);
    client.request(0, 0, 0, 4096, &[]);
    assert_eq!(client.error(), 0);
    let mut data = vec![0; 4096];
    client.0.read_exact(&mut data).unwrap();
    assert!(data == bytes[..4096]);
}

/// A client that can send anything.
struct Raw(UnixStream);

impl Raw {
    fn greet(mut stream: UnixStream) -> UnixStream {
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream
    }

    fn option(stream: &mut UnixStream, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        stream.write_all(b"IHAVEOPT").unwrap();
        stream.write_all(&number.to_be_bytes()).unwrap();
        stream
            .write_all(&(data.len() as u32).to_be_bytes())
            .unwrap();
        stream.write_all(data).unwrap();
        let mut replies = Vec::new();
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            let mut data = vec![0; word(16) as usize];
            stream.read_exact(&mut data).unwrap();
            replies.push((word(12), data));
            if word(12) == 1 || word(12) >> 31 == 1 {
                return replies;
            }
        }
    }

    fn enter(stream: UnixStream, name: &str, structured: bool) -> Self {
        let mut stream = Self::greet(stream);
        if structured {
            assert_eq!(Self::option(&mut stream, 8, &[])[0].0, 1);
        }
        let mut go = (name.len() as u32).to_be_bytes().to_vec();
        go.extend(name.as_bytes());
        go.extend([0, 0]);
        let replies = Self::option(&mut stream, 7, &go);
        assert_eq!(replies.last().unwrap().0, 1);
        Self(stream)
    }

    fn request(&mut self, flags: u16, command: u16, offset: u64, length: u32, payload: &[u8]) {
        let mut message = 0x2560_9513_u32.to_be_bytes().to_vec();
        message.extend(flags.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(*b"8 bytes.");
        message.extend(offset.to_be_bytes());
        message.extend(length.to_be_bytes());
        message.extend(payload);
        self.0.write_all(&message).unwrap();
    }

    /// The error of the next reply, 0 for success; data is left unread.
    fn error(&mut self) -> u32 {
        let mut head = [0; 16];
        self.0.read_exact(&mut head).unwrap();
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        if word(0) == 0x6744_6698 {
            assert_eq!(&head[8..], b"8 bytes.");
            return word(4);
        }
        assert_eq!(word(0), 0x668e_33ef);
        assert_eq!(&head[8..], b"8 bytes.");
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        if head[6] & 0x80 == 0 {
            return 0;
        }
        u32::from_be_bytes(body[..4].try_into().unwrap())
    }
}

#[test]
fn rule_breakers_get_an_error_or_the_door() {
    let served = serve(Disk::new(&sample()));
    let closed = |mut stream: UnixStream| {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut rest);
    };
    // Unknown client flags; no magic; an option that never ends.
    let mut stream = served.client();
    stream.write_all(&0x80u32.to_be_bytes()).unwrap();
    closed(stream);
    let mut stream = Raw::greet(served.client());
    stream.write_all(&[7; 64]).unwrap();
    closed(stream);
    let mut stream = Raw::greet(served.client());
    stream
        .write_all(b"IHAVEOPT\0\0\0\x03\xff\xff\xff\xff")
        .unwrap();
    closed(stream);
    // Options that are wrong but can be answered.
    let mut stream = Raw::greet(served.client());
    let kind = |stream: &mut UnixStream, number, data: &[u8]| {
        Raw::option(stream, number, data).last().unwrap().0 & 0x7fff_ffff
    };
    assert_eq!(kind(&mut stream, 5, &[]), 1); // STARTTLS: unsupported
    assert_eq!(kind(&mut stream, 999, &[1, 2, 3]), 1);
    assert_eq!(kind(&mut stream, 3, &[0]), 3); // LIST with data: invalid
    assert_eq!(kind(&mut stream, 7, &[0, 0, 0, 9]), 3);
    assert_eq!(kind(&mut stream, 7, b"\0\0\0\x04none\0\0"), 6); // unknown
    assert_eq!(kind(&mut stream, 10, &[0; 8]), 3); // contexts before structured
    assert_eq!(kind(&mut stream, 3, &vec![0; 100_000]), 9); // too big
    assert_eq!(kind(&mut stream, 8, &[]), 1);
    assert_eq!(
        kind(&mut stream, 9, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        3
    );
    assert_eq!(kind(&mut stream, 3, &[]), 1);
    assert_eq!(kind(&mut stream, 2, &[]), 1); // ABORT
    closed(stream);
    // Requests.
    for structured in [false, true] {
        let mut client = Raw::enter(served.client(), "", structured);
        client.request(0, 0, SIZE - 10, 11, &[]);
        assert_eq!(client.error(), 22);
        client.request(0, 0, u64::MAX, 1, &[]);
        assert_eq!(client.error(), 22);
        client.request(0, 1, SIZE - 10, 11, &[1; 11]);
        assert_eq!(client.error(), 28);
        client.request(0, 99, 0, 512, &[]);
        assert_eq!(client.error(), 22);
        client.request(1 << 9, 0, 0, 512, &[]);
        assert_eq!(client.error(), 22);
        client.request(0, 7, 0, 512, &[]); // no context chosen
        assert_eq!(client.error(), 22);
        client.request(0, 1, 0, 33 << 20, &vec![1; 33 << 20]);
        assert_eq!(client.error(), 22);
        client.request(0, 6, 0, u32::MAX, &[]);
        assert_eq!(client.error(), 28);
        client.request(0, 3, 0, 0, &[]);
        assert_eq!(client.error(), 0);
        client.0.write_all(&[0; 28]).unwrap();
        closed(client.0);
    }
    // One that goes in the middle of a write, and one that says nothing.
    let mut client = Raw::enter(served.client(), "", true);
    client.request(0, 1, 0, 1 << 20, &[1; 1000]);
    drop(client);
    let _silent = served.client();
    run("nbdinfo", &["--size", &served.uri()]);
    served.server.stop().unwrap();
}

#[test]
fn stopping_answers_what_was_asked() {
    let bytes = sample();
    let served = serve(Disk::new(&bytes));
    let mut client = Raw::enter(served.client(), "", false);
    served.disk.held.store(true, Ordering::Release);
    for request in 0..5 {
        client.request(0, 0, request * 4096, 4096, &[]);
    }
    // The last of the five is in the server's hands once a sixth, which is
    // wrong, is answered: requests are read in order.
    client.request(0, 99, 0, 0, &[]);
    assert_eq!(client.error(), 22);
    let Served {
        server,
        disk,
        socket,
        dir,
    } = served;
    let stopping = std::thread::spawn(move || server.stop());
    // From some moment on nobody gets in.
    while UnixStream::connect(&socket).is_ok() {
        std::thread::yield_now();
    }
    disk.held.store(false, Ordering::Release);
    for _ in 0..5 {
        assert_eq!(client.error(), 0);
        client.0.read_exact(&mut [0; 4096]).unwrap();
    }
    assert_eq!(client.0.read(&mut [0; 1]).unwrap(), 0);
    stopping.join().unwrap().unwrap();
    assert!(!socket.exists());
    assert!(disk.flushes.load(Ordering::SeqCst) > 0);
    drop(dir);
}

#[test]
fn sockets_in_use_and_bad_options_are_refused() {
    let served = serve(Disk::new(&[]));
    let again = ServerOptions::new(Export::new(served.disk.clone()));
    assert!(matches!(
        Server::start(&served.socket, again.clone()),
        Err(Error::Io { .. })
    ));
    // One that was left behind is replaced.
    let stale = served.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    Server::start(&stale, again.clone())
        .unwrap()
        .stop()
        .unwrap();
    // A file that is no socket is left alone.
    let file = served.dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    assert!(Server::start(&file, again.clone()).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    let mut twice = again.clone();
    twice.exports.push(again.exports[0].clone());
    let other = served.dir.path().join("other.sock");
    assert!(matches!(
        Server::start(&other, twice),
        Err(Error::Invalid { .. })
    ));
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&served.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // Too many clients: the last is turned away, the others stay.
    let mut few = again;
    few.max_connections = 2;
    let socket = served.dir.path().join("few.sock");
    let server = Server::start(&socket, few).unwrap();
    let connect = || UnixStream::connect(&socket).unwrap();
    let mut first = Raw::enter(connect(), "", true);
    let _second = Raw::enter(connect(), "", true);
    assert_eq!(connect().read(&mut [0; 18]).unwrap(), 0);
    first.request(0, 3, 0, 0, &[]);
    assert_eq!(first.error(), 0);
    assert_eq!(server.clients(), 2);
}

#[test]
fn layers_of_a_chain_are_served() {
    let dir = tools::directory();
    let path = |name: &str| dir.path().join(name);
    let bytes = sample();
    std::fs::write(path("base.raw"), &bytes).unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.raw",
        "-F",
        "raw",
        text(&path("top.qcow2")),
    ]);
    let open = |writable| {
        cenote_image::OpenOptions::new(cenote_image::Format::Qcow2)
            .writable(writable)
            .open(&path("top.qcow2"))
            .unwrap()
    };
    let image = open(true);
    let base = image.backing().unwrap().clone();
    let mut options = ServerOptions::new(Export::new(Arc::new(image)));
    options.exports.push(Export {
        name: "base".into(),
        ..Export::new(Arc::new(base))
    });
    let socket = path("chain.sock");
    let server = Server::start(&socket, options).unwrap();
    let top = format!("nbd+unix:///?socket={}", text(&socket));
    let below = format!("nbd+unix:///base?socket={}", text(&socket));
    let commands = [
        "write -P 7 100k 300k",
        "write -z -u 2M 1M",
        "discard 5M 64k",
        "flush",
        "read -P 7 100k 300k",
    ];
    let mut arguments = vec!["-f", "raw"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&top);
    let seen = run("qemu-io", &arguments);
    assert!(!seen.contains("failed") && !seen.contains("rror"), "{seen}");
    assert!(
        !tool("qemu-io", &["-f", "raw", "-c", "write 0 512", &below])
            .status
            .success()
    );
    run("nbdcopy", &[&below, text(&path("base.copy"))]);
    assert!(std::fs::read(path("base.copy")).unwrap() == bytes);
    run(
        "nbdcopy",
        &["--connections=4", &top, text(&path("top.copy"))],
    );
    // While it is served nobody else writes to it.
    assert!(
        !tool(
            "qemu-io",
            &["-f", "qcow2", "-c", "write 0 512", text(&path("top.qcow2"))]
        )
        .status
        .success()
    );
    server.stop().unwrap();
    qemu_img(&["check", "-q", "-f", "qcow2", text(&path("top.qcow2"))]);
    qemu_img(&[
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(&path("top.qcow2")),
        text(&path("top.copy")),
    ]);
    assert!(std::fs::read(path("base.raw")).unwrap() == bytes);
}
