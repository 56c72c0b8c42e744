//! Judging what was found. Pure functions of [`Facts`].

use cenote_engine::FirmwareComponent;

use super::facts::{Facts, FileSystem, PoolFacts};
use super::host::KvmDevice;
use crate::out::human;
use crate::view::{DoctorReport, ProbeResult, ProbeStatus};

/// Below this much free space (bytes) the node's database may fail to grow.
const STATE_FREE: u64 = 64 << 20;
/// Below this share of free space (percent) a pool is reported.
const POOL_FREE_PERCENT: u64 = 5;
/// The only KVM interface version there is.
const KVM_API: i32 = 12;

/// Judges everything.
#[must_use]
pub fn judge(facts: &Facts) -> DoctorReport {
    let mut probes = vec![
        state_dir(facts),
        state_space(facts),
        node(facts),
        journal(facts),
        locks(facts),
        kvm_device(facts),
        kvm_hardware(facts),
        io_uring(facts),
    ];
    probes.extend(facts.pools.iter().flat_map(pool));
    probes.extend(facts.firmware.iter().map(firmware));
    probes.push(lvm(facts));
    let failed = |probe: &ProbeResult| probe.essential && probe.status == ProbeStatus::Fail;
    DoctorReport {
        healthy: !probes.iter().any(failed),
        probes,
    }
}

fn ok(probe: &str, essential: bool, found: impl Into<String>) -> ProbeResult {
    ProbeResult {
        probe: probe.to_owned(),
        status: ProbeStatus::Ok,
        essential,
        found: found.into(),
        fix: None,
    }
}

impl ProbeResult {
    fn is(mut self, status: ProbeStatus, fix: impl Into<String>) -> Self {
        self.status = status;
        self.fix = Some(fix.into());
        self
    }
}

fn state_dir(facts: &Facts) -> ProbeResult {
    let folder = &facts.state_dir;
    let shown = folder.path.display();
    match (&folder.writable, folder.mode) {
        (Err(error), _) => ok("state-dir", true, format!("{shown}: {error}")).is(
            ProbeStatus::Fail,
            "run as the folder's owner, or choose another folder with --state-dir",
        ),
        (Ok(()), Some(mode)) if mode & 0o022 != 0 => {
            let found = format!("{shown} can be written by others (mode {mode:o})");
            ok("state-dir", true, found).is(ProbeStatus::Fail, format!("chmod go-w {shown}"))
        }
        (Ok(()), None) => ok(
            "state-dir",
            true,
            format!("{shown} will be made when needed"),
        ),
        (Ok(()), Some(_)) => ok("state-dir", true, format!("{shown} is writable")),
    }
}

fn state_space(facts: &Facts) -> ProbeResult {
    let Some(free) = facts.state_dir.free else {
        return ok("state-space", false, "the free space is not known").is(
            ProbeStatus::Warn,
            format!("look with: df {}", facts.state_dir.path.display()),
        );
    };
    let probe = ok(
        "state-space",
        true,
        format!("{} free for the node's state", human(free)),
    );
    if free < STATE_FREE {
        return probe.is(
            ProbeStatus::Fail,
            "free some space, or move the state with --state-dir",
        );
    }
    probe
}

fn node(facts: &Facts) -> ProbeResult {
    match &facts.node {
        Ok(()) => ok("node", true, "the node's state opens"),
        Err(error) => ok("node", true, error.clone())
            .is(ProbeStatus::Fail, "run: cenote fsck; its message says more"),
    }
}

fn journal(facts: &Facts) -> ProbeResult {
    if facts.interrupted.is_empty() {
        return ok("journal", false, "no interrupted operation");
    }
    let found = format!("interrupted: {}", facts.interrupted.join(", "));
    ok("journal", false, found).is(ProbeStatus::Warn, "run: cenote repair")
}

fn locks(facts: &Facts) -> ProbeResult {
    if facts.stale_locks.is_empty() {
        return ok("locks", false, "no lock without an owner");
    }
    let paths: Vec<String> = facts
        .stale_locks
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    ok(
        "locks",
        false,
        format!("locks without an owner: {}", paths.join(", ")),
    )
    .is(ProbeStatus::Warn, "run: cenote repair")
}

fn kvm_device(facts: &Facts) -> ProbeResult {
    let probe = |found: String| ok("kvm", true, found);
    match &facts.kvm {
        KvmDevice::Missing => probe("there is no /dev/kvm".to_owned()).is(
            ProbeStatus::Fail,
            "load the module (modprobe kvm_intel, or kvm_amd), enable virtualization in the \
             machine's firmware, or nested virtualization where this machine is itself virtual",
        ),
        KvmDevice::NoAccess { error, group } => {
            let group = group
                .as_deref()
                .filter(|group| *group != "root")
                .unwrap_or("kvm");
            probe(format!("/dev/kvm cannot be opened: {error}")).is(
                ProbeStatus::Fail,
                format!("sudo usermod -aG {group} $USER, then log in again"),
            )
        }
        KvmDevice::Usable { api, .. } if *api != KVM_API => {
            probe(format!("KVM interface version {api}, expected {KVM_API}")).is(
                ProbeStatus::Fail,
                "use a kernel from the last fifteen years",
            )
        }
        KvmDevice::Usable {
            create: Some(error),
            ..
        } => probe(format!("/dev/kvm opens but makes no machine: {error}")).is(
            ProbeStatus::Fail,
            "see the kernel's log: dmesg | grep -i kvm",
        ),
        KvmDevice::Usable { api, .. } => probe(format!("/dev/kvm works, interface version {api}")),
    }
}

/// A device without processor support is a back end that emulates instructions: it creates
/// machines, but does not run 64-bit kernels.
fn kvm_hardware(facts: &Facts) -> ProbeResult {
    let usable = matches!(facts.kvm, KvmDevice::Usable { .. });
    match (usable, facts.hardware_virtualization) {
        (_, true) => ok(
            "kvm-hardware",
            false,
            "the processor has virtualization (vmx or svm)",
        ),
        (true, false) => ok(
            "kvm-hardware",
            false,
            "KVM here runs without vmx or svm: it emulates, and 64-bit kernels do not run on it",
        )
        .is(
            ProbeStatus::Warn,
            "run guests on a machine whose /proc/cpuinfo shows vmx or svm",
        ),
        (false, false) => ok(
            "kvm-hardware",
            false,
            "the processor shows neither vmx nor svm",
        )
        .is(
            ProbeStatus::Warn,
            "enable virtualization in the machine's firmware, or nested virtualization",
        ),
    }
}

fn io_uring(facts: &Facts) -> ProbeResult {
    match &facts.io_uring {
        Ok(()) => ok(
            "io-uring",
            false,
            format!("works on kernel {}", facts.kernel),
        ),
        Err(error) => ok("io-uring", false, format!("not usable: {error}")).is(
            ProbeStatus::Warn,
            "sysctl kernel.io_uring_disabled=0, or leave it: slower system calls serve",
        ),
    }
}

fn pool(pool: &PoolFacts) -> Vec<ProbeResult> {
    let name = format!("pool {}", pool.name);
    let shown = pool.path.display();
    if !pool.active {
        return vec![ok(&name, false, format!("{shown} is not active")).is(
            ProbeStatus::Warn,
            format!("cenote pool-start {}", pool.name),
        )];
    }
    let Some(filesystem) = &pool.filesystem else {
        return vec![ok(&name, false, format!("{shown} cannot be read")).is(
            ProbeStatus::Warn,
            format!("cenote pool-refresh {}", pool.name),
        )];
    };
    vec![pool_space(&name, filesystem), wipe(&name, filesystem)]
}

fn pool_space(name: &str, filesystem: &FileSystem) -> ProbeResult {
    let FileSystem { free, total, .. } = filesystem;
    let found = format!(
        "{} of {} free on {}",
        human(*free),
        human(*total),
        filesystem.name
    );
    let probe = ok(name, false, found);
    if u128::from(*free) * 100 < u128::from(*total) * u128::from(POOL_FREE_PERCENT) {
        return probe.is(ProbeStatus::Warn, "delete volumes, or grow the file system");
    }
    probe
}

/// Whether overwriting a file there can be proved to overwrite its blocks.
fn wipe(name: &str, filesystem: &FileSystem) -> ProbeResult {
    let probe = format!("{name} wipe");
    if filesystem.copy_on_write {
        let found = format!(
            "{} writes elsewhere: overwriting a volume there proves nothing",
            filesystem.name
        );
        return ok(&probe, false, found).is(
            ProbeStatus::Warn,
            "keep volumes that must be wiped on ext4 or xfs, or on LVM",
        );
    }
    match filesystem.reflink {
        Some(true) => ok(
            &probe,
            false,
            format!(
                "{} can share blocks: each wipe checks for shared ones",
                filesystem.name
            ),
        ),
        Some(false) => ok(
            &probe,
            false,
            format!("{} overwrites in place", filesystem.name),
        ),
        None => ok(
            &probe,
            false,
            "whether files share blocks there could not be tried",
        )
        .is(ProbeStatus::Warn, "make the folder writable for this user"),
    }
}

fn firmware(facts: &FirmwareComponent) -> ProbeResult {
    let name = format!("firmware {}", facts.file);
    match &facts.found {
        Some(path) => ok(
            &name,
            false,
            format!("{}: {}", facts.purpose, path.display()),
        ),
        None => ok(&name, false, format!("no {} firmware", facts.purpose)).is(
            ProbeStatus::Warn,
            format!("apt-get install {}", facts.package),
        ),
    }
}

fn lvm(facts: &Facts) -> ProbeResult {
    if facts.missing_lvm.is_empty() {
        return ok("lvm", false, "the programs for logical pools are there");
    }
    let found = format!(
        "logical pools cannot be used: no {}",
        facts.missing_lvm.join(", ")
    );
    ok("lvm", false, found).is(ProbeStatus::Warn, "apt-get install lvm2")
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
