//! A temporary node and the built binary to run on it.

#![allow(dead_code, reason = "each suite uses its part")]
#![allow(unreachable_pub, reason = "a module of several suites")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub struct Cenote {
    folder: tempfile::TempDir,
}

/// What one run gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    pub fn fails(self, code: i32, says: &str) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.stderr.contains(says), "no {says:?} in {self:#?}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Cenote {
    pub fn new() -> Self {
        // In memory where that is possible: each command makes its work durable, which a busy
        // disk takes long for.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let folder = folder.expect("a temporary folder");
        std::fs::create_dir(folder.path().join("work")).expect("a working folder");
        Self { folder }
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The working directory of commands.
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.work().join(name)
    }

    /// The program, with nothing from the tester's own environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cenote"));
        command
            .current_dir(self.work())
            .stdin(Stdio::null())
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.folder.path())
            .env(
                "CENOTE_CONFIG_SYSTEM",
                self.folder.path().join("system.toml"),
            )
            .env("CENOTE_STATE_DIR", self.state());
        command
    }

    /// Runs a line without its `cenote`; words are split at spaces.
    pub fn run(&self, line: &str) -> Run {
        self.run_words(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn run_words(&self, words: &[&str]) -> Run {
        run(self.command().args(words))
    }

    pub fn ok(&self, line: &str) -> String {
        self.run(line).ok().stdout
    }
}

pub fn run(command: &mut Command) -> Run {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    of(output)
}

pub fn of(output: Output) -> Run {
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program of the host; fails with the package that has it.
pub fn tool(program: &str, package: &str, arguments: &[&str]) -> Run {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    of(output.unwrap_or_else(|error| {
        panic!("{program}: {error}; install the package {package} (cargo xtask setup)")
    }))
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

impl Cenote {
    /// Runs a line in bash with `cenote` on the path.
    pub fn shell(&self, line: &str) -> Run {
        let binary = Path::new(env!("CARGO_BIN_EXE_cenote"));
        let folder = binary.parent().expect("a program is in a folder");
        let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("set -o pipefail; {line}")])
            .current_dir(self.work())
            .stdin(Stdio::null())
            .env_clear()
            .env("PATH", format!("{}:{system}", folder.display()))
            .env("HOME", self.folder.path())
            .env("EDITOR", "true")
            .env(
                "CENOTE_CONFIG_SYSTEM",
                self.folder.path().join("system.toml"),
            )
            .env("CENOTE_STATE_DIR", self.state());
        run(&mut bash)
    }

    /// SHA-256 of every file below the state folder, and the names of all folders.
    pub fn state_sum(&self) -> String {
        let line = "cd \"$CENOTE_STATE_DIR\" && find . | sort && find . -type f -print0 | sort -z \
                    | xargs -0 sha256sum";
        self.shell(line).ok().stdout
    }
}

/// A node with pools and one blank raw volume.
pub fn small() -> Cenote {
    let cenote = Cenote::new();
    let target = |name: &str| cenote.work().join(name).display().to_string();
    std::fs::write(cenote.path("image.raw"), vec![7_u8; 1 << 20]).expect("written");
    let pool = |name: &str, uuid: &str| {
        format!(
            "<pool type='dir'><name>{name}</name>{uuid}<target><path>{}</path></target></pool>",
            target(name)
        )
    };
    let uuid = "<uuid>0d1c9aa4-2f4b-4c21-9a54-5f3f4f2f3f01</uuid>";
    for (file, name, uuid) in [
        ("pool.xml", "from-xml", ""),
        ("images.xml", "images", uuid),
        ("scratch.xml", "scratch", ""),
    ] {
        std::fs::write(cenote.path(file), pool(name, uuid)).expect("written");
    }
    for name in ["images", "scratch"] {
        cenote.ok(&format!("pool-define {name}.xml"));
        cenote.ok(&format!("pool-build {name}"));
    }
    let images = cenote.state().join("images");
    std::fs::File::create(images.join("disk.raw"))
        .and_then(|file| file.set_len(1 << 20))
        .expect("a sparse file");
    cenote.ok("pool-refresh default");
    cenote
}

/// A node with pools and volumes as the examples of the commands have them.
pub fn fixture() -> Cenote {
    let cenote = small();
    for (file, name, size) in [
        ("volume.xml", "from-xml.qcow2", 1),
        ("larger.xml", "larger.qcow2", 2),
    ] {
        let xml = format!(
            "<volume><name>{name}</name><capacity unit='MiB'>{size}</capacity>\
             <target><format type='qcow2'/></target></volume>"
        );
        std::fs::write(cenote.path(file), xml).expect("written");
    }
    for name in ["disk", "base", "snap"] {
        cenote.ok(&format!(
            "vol-create-as default {name}.qcow2 1M --format qcow2"
        ));
    }
    cenote.ok("vol-overlay base.qcow2 overlay.qcow2");
    cenote.ok("vol-snapshot-create snap.qcow2 first");
    domains(&cenote);
    installer(&cenote);
    cenote
}

/// What an install is planned from: two files that are neither kernel nor initrd, and answers.
fn installer(cenote: &Cenote) {
    let kickstart = "text\nlang en_US.UTF-8\nkeyboard us\ntimezone UTC\n\
                     url --url=http://mirror.test/os\nrootpw --lock\n\
                     user --name=admin --groups=wheel --iscrypted --password=$6$salt$hash\n\
                     clearpart --all --initlabel\nautopart\nreboot\n%packages\n@core\n%end\n";
    for (name, text) in [
        ("vmlinuz", "kernel"),
        ("initrd.img", "initrd"),
        ("db.ks", kickstart),
        ("bad.ks", "autoprat\n"),
    ] {
        std::fs::write(cenote.path(name), text).expect("written");
    }
}

/// A domain `web` that is defined, and a document of another one.
pub fn domains(cenote: &Cenote) {
    let disk = cenote.state().join("images/disk.raw");
    let uuid = "<uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>";
    for (name, uuid) in [("web", uuid), ("mail", "")] {
        let xml = format!(
            "<domain type='kvm'><name>{name}</name>{uuid}<memory>524288</memory>\
             <vcpu>2</vcpu><os><type>hvm</type></os><devices>\
             <disk type='file'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='vda'/></disk><disk type='file' device='cdrom'><target dev='hdc'/></disk>\
             <serial type='pty'/></devices></domain>",
            disk.display()
        );
        std::fs::write(cenote.path(&format!("{name}.xml")), xml).expect("written");
    }
    cenote.ok("define web.xml");
    let disk = cenote.state().join("images/disk.qcow2");
    let xml = format!(
        "<domain type='kvm'><name>db</name><memory>524288</memory><os><type>hvm</type></os>\
         <devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda'/></disk></devices></domain>",
        disk.display()
    );
    std::fs::write(cenote.path("db.xml"), xml).expect("written");
}

/// The domain `db` with two snapshots, beside `web`.
pub fn snapshots(cenote: &Cenote) {
    cenote.ok("define db.xml");
    cenote.ok("snapshot-create-as db first");
    cenote.ok("snapshot-create-as db second");
}
