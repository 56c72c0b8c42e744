//! Installs from the command line, with stock kernels and an installer of our own: a shell script
//! in the lab's small initramfs, which reads the kickstart file that was put beside it, writes
//! the disk that the file names, runs its last `%post` as Anaconda would, and resets. The disk
//! then boots by SeaBIOS and says so on its serial line.
//!
//! `cargo xtask lab --tests cenote -- kvm_install --ignored --test-threads=1`

mod common;

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Cenote, Run, run};

/// Longer than anything takes on a busy machine that emulates.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the installed system says when it boots.
const BOOTED: &str = "PHASE-TWO";

const INSTALLER: &str = r#"
set -e
value() { sed -n "s/^$1//p" /ks.cfg | head -n 1; }
section() { sed -n "/^%$1/,/^%end/{/^%/d;p}" /ks.cfg; }
failed() { section onerror >/onerror.sh; sh /onerror.sh; poweroff -f; }
trap failed EXIT
echo "Starting installer, one moment..."
disk=/dev/$(value "ignoredisk --only-use=")
echo "Configuring storage"
dd if=/boot.bin of=$disk bs=512 conv=notrunc 2>/dev/null
echo "Starting package installation process"
for number in 1 2 3; do echo "Installing part-$number (0$number/03)"; done
value "network --hostname=" | dd of=$disk bs=512 seek=1 conv=notrunc 2>/dev/null
echo "Performing post-installation setup tasks"
section post >/post.sh
sh -e /post.sh
sync
trap - EXIT
reboot -f
"#;

fn kickstart(post: &str) -> String {
    format!(
        "text\nlang en_US.UTF-8\nkeyboard us\ntimezone UTC\nurl --url=http://mirror.test/os\n\
         network --hostname=db.test\nrootpw --lock\n\
         user --name=admin --groups=wheel --iscrypted --password=$6$saltsalt$hashhashhash\n\
         ignoredisk --only-use=vda\nclearpart --all --initlabel\nautopart\nreboot\n\
         %packages\n@core\n%end\n%post --erroronfail\n{post}\n%end\n"
    )
}

/// A boot sector that prints a line on the first serial port and stands still.
fn boot_sector() -> Vec<u8> {
    let mut code = vec![0xfa, 0xba, 0xf8, 0x03]; // cli; mov dx, 0x3f8
    for byte in format!("{BOOTED}\r\n").bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp hlt
    assert!(code.len() <= 446);
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

/// What a disc boots that installs by itself: it writes the boot sector behind it to the first
/// disk by the BIOS, and resets by the keyboard controller.
fn boot_program() -> Vec<u8> {
    let mut code = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // xor ax, ax; mov ds, ax; mov es, ax
        0x8e, 0xd0, 0xbc, 0x00, 0x7c, // mov ss, ax; mov sp, 0x7c00
        0xb8, 0x01, 0x03, // mov ax, 0x0301: write one sector
        0xb9, 0x01, 0x00, // mov cx, 1: the first
        0xba, 0x80, 0x00, // mov dx, 0x80: of the first disk
        0xbb, 0x00, 0x7e, // mov bx, 0x7e00: from behind this sector
        0xcd, 0x13, // int 0x13
        0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
        0xf4, 0xeb, 0xfd, // hlt; jmp hlt
    ];
    code.resize(512, 0);
    code.extend(boot_sector());
    code.resize(2048, 0);
    code
}

/// A node whose domains end with it.
struct Node(Cenote);

impl Drop for Node {
    fn drop(&mut self) {
        for name in self.run("list --name").stdout.lines() {
            self.run(&format!("destroy {name}"));
        }
    }
}

impl Node {
    fn new(post: &str) -> Self {
        let node = Node(Cenote::new());
        std::fs::write(node.0.path("installer.sh"), INSTALLER).expect("written");
        std::fs::write(node.0.path("boot.bin"), boot_sector()).expect("written");
        std::fs::write(node.0.path("db.ks"), kickstart(post)).expect("written");
        node
    }

    fn command(&self) -> Command {
        let mut command = self.0.command();
        if std::env::var_os("CENOTE_LAB").is_some() {
            // The programs' own test harnesses lie beside this one, under the same names.
            command.env("CENOTE_PROGRAMS", "/lab/bin");
        }
        command
    }

    fn run(&self, line: &str) -> Run {
        run(self.command().args(line.split_whitespace()))
    }

    fn ok(&self, line: &str) -> String {
        self.run(line).ok().stdout
    }

    fn install(&self, more: &str) -> Command {
        let mut command = self.command();
        let line = "install --name db --memory 512 --network none --disk size=16M,format=raw \
                    --location kernel=/lab/guest/vmlinuz-cloud,initrd=/lab/guest/initramfs.cpio.gz \
                    --kickstart db.ks --initrd-inject installer.sh --initrd-inject boot.bin";
        command
            .args(line.split_whitespace())
            .args(["--extra-args", "GUEST=\"sh /installer.sh\""])
            .args(more.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.0.state().join("images/db.raw")).expect("the disk")
    }

    /// Waits until the domain has booted its disk.
    fn wait_for_phase_two(&self) {
        wait_for("phase two", || self.run("logs db").stdout.contains(BOOTED));
        assert_eq!(self.ok("domstate db").trim(), "running");
        let document = self.ok("dumpxml db");
        for gone in ["<kernel>", "<initrd>", "<cmdline>", "install.log"] {
            assert!(!document.contains(gone), "{gone}: {document}");
        }
    }

    fn assert_no_work_files(&self) {
        let folder = self.0.state().join("installs");
        let left = std::fs::read_dir(folder).map(Iterator::count);
        assert_eq!(left.unwrap_or(0), 0, "work files are left");
    }

    /// After a teardown only what belongs to the node is left.
    fn assert_gone(&self) {
        self.assert_no_work_files();
        let left = self.0.shell("find \"$CENOTE_STATE_DIR\" -name 'db*'").ok();
        assert_eq!(left.stdout, "", "something of the domain is left");
        self.run("domstate db").fails(3, "E0601");
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(50));
    }
}

fn said(mut child: Child) -> String {
    let mut text = String::new();
    let mut error = child.stderr.take().expect("piped");
    error.read_to_string(&mut text).expect("text");
    child.wait().expect("waited for");
    text
}

#[test]
#[ignore = "needs /dev/kvm and the lab's kernels"]
fn a_domain_is_installed_boots_its_disk_and_is_torn_down() {
    let node = Node::new("echo hello >/tmp/post");
    let done = run(&mut node.install("")).ok();
    assert!(
        done.stdout.contains("has been installed and runs"),
        "{done:#?}"
    );
    for told in [
        "volume default/db.raw created",
        "phase 1: the installer runs",
        "installer: its kernel started",
        "installer: storage: Configuring storage",
        "installer: packages: 3 of 3",
        "installer: it reports success",
        "phase 2: installed",
    ] {
        assert!(done.stderr.contains(told), "{told}: {done:#?}");
    }
    node.wait_for_phase_two();
    let disk = node.disk();
    assert_eq!(disk.get(..512), Some(boot_sector().as_slice()));
    assert_eq!(disk.get(512..519), Some(b"db.test".as_slice()));
    assert!(node.ok("logs db --install").contains("Configuring storage"));
    node.assert_no_work_files();
    // The second time there is a domain of that name.
    run(&mut node.install("")).fails(4, "E0602");
    let torn = node.run("teardown db --confirm db").ok();
    assert!(
        torn.stdout.contains("nothing of its own is left"),
        "{torn:#?}"
    );
    node.assert_gone();
}

#[test]
#[ignore = "needs /dev/kvm and the lab's kernels"]
fn a_failure_keeps_what_helps_and_says_what_next() {
    let node = Node::new("echo 'no licence found'; exit 3");
    let failed = run(&mut node.install("")).fails(8, "E0705");
    assert!(
        failed.stderr.contains("the answer file reported a failure"),
        "{failed:#?}"
    );
    assert!(
        failed.stderr.contains("cenote logs db --install"),
        "{failed:#?}"
    );
    assert!(node.ok("logs db --install").contains("no licence found"));
    assert_eq!(node.ok("domstate db").trim(), "shut off");
    node.assert_no_work_files();
    node.ok("teardown db --confirm db");
    node.assert_gone();
    // Without anything to be kept, and with what was there overwritten.
    run(&mut node.install("--on-failure wipe")).fails(8, "E0705");
    node.run("domstate db").fails(3, "E0601");
    assert!(!Path::new(&node.0.state().join("images/db.raw")).exists());
    let certificates = node.ok("verify-certificate");
    assert!(certificates.contains("default/db.raw"), "{certificates}");
    run(&mut node.install("--on-failure destroy")).fails(8, "E0705");
    node.run("domstate db").fails(3, "E0601");
    assert!(!Path::new(&node.0.state().join("images/db.raw")).exists());
}

#[test]
#[ignore = "needs /dev/kvm and the lab's kernels"]
fn an_install_goes_on_without_its_command() {
    let node = Node::new("sleep 5");
    let mut child = node.install("").spawn().expect("started");
    wait_for("phase one", || {
        node.run("logs db --install")
            .stdout
            .contains("Configuring storage")
    });
    child.kill().expect("killed");
    let told = said(child);
    assert!(!told.contains("phase 2"), "{told}");
    // Nobody asks; the supervisor of phase one starts phase two.
    wait_for("phase two", || {
        let log = node.0.state().join("log/db/console.log");
        std::fs::read_to_string(log).is_ok_and(|log| log.contains(BOOTED))
    });
    node.wait_for_phase_two();
    node.assert_no_work_files();
    node.ok("teardown db --confirm db");
    node.assert_gone();
}

#[test]
#[ignore = "needs /dev/kvm and the lab's kernels"]
fn media_that_boot_by_themselves_install() {
    let node = Node::new("");
    std::fs::create_dir(node.0.path("disc")).expect("a folder");
    std::fs::write(node.0.path("disc/boot.img"), boot_program()).expect("written");
    node.0
        .shell(
            "xorriso -as mkisofs -quiet -V INSTALL -b boot.img -no-emul-boot -boot-load-size 4 \
             -o disc.iso disc",
        )
        .ok();
    let line = "install --name db --memory 256 --network none --disk size=16M,format=raw \
                --cdrom disc.iso";
    let done = node.run(line).ok();
    assert!(
        done.stderr.contains("nothing in it said that it was"),
        "{done:#?}"
    );
    wait_for("phase two", || node.run("logs db").stdout.contains(BOOTED));
    let document = node.ok("dumpxml db");
    assert!(!document.contains("disc.iso"), "{document}");
    assert!(document.contains("device=\"cdrom\"") || document.contains("device='cdrom'"));
    assert_eq!(node.disk().get(..512), Some(boot_sector().as_slice()));
    node.ok("teardown db --confirm db");
    node.assert_gone();
    assert!(
        node.0.path("disc.iso").exists(),
        "the disc is not the domain's"
    );
}

#[test]
#[ignore = "needs /dev/kvm and the lab's kernels"]
fn an_installer_that_hangs_is_given_up() {
    let node = Node::new("sleep 1000");
    let given_up = run(&mut node.install("--silence 20s --on-failure destroy"));
    let given_up = given_up.fails(7, "E0706");
    assert!(
        given_up.stderr.contains("printed nothing for 20 s"),
        "{given_up:#?}"
    );
    node.run("domstate db").fails(3, "E0601");
}
