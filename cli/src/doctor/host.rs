//! What the kernel tells about the machine, read from `/proc` and `/sys`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;

/// The file trees to read; tests give their own.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// What can be said about `/dev/kvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmDevice {
    /// There is no such device.
    Missing,
    /// It cannot be opened; the group that may, when known.
    NoAccess {
        /// What the system said.
        error: String,
        /// The group that owns the device.
        group: Option<String>,
    },
    /// It answers.
    Usable {
        /// The interface version; 12 on every kernel since 2.6.22.
        api: i32,
        /// What making a machine failed with, if it did.
        create: Option<String>,
    },
}

/// Sockets, cores per socket and threads per core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores per socket.
    pub cores: u32,
    /// Threads per core.
    pub threads: u32,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
        }
    }
}

impl Host {
    /// A machine whose `/proc` and `/sys` lie under `root`.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    /// The value of a key of `/proc/cpuinfo`.
    #[must_use]
    pub fn cpuinfo(&self, key: &str) -> Option<String> {
        let text = self.read("proc/cpuinfo")?;
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        })
    }

    /// Whether the processor says it has virtualization: `vmx` or `svm`.
    #[must_use]
    pub fn has_hardware_virtualization(&self) -> bool {
        let flags = self.cpuinfo("flags").unwrap_or_default();
        flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    }

    /// Processors that are online.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        let online = self.read("sys/devices/system/cpu/online");
        let listed = online.and_then(|text| count_ranges(text.trim()));
        let counted = std::thread::available_parallelism().ok();
        listed
            .or_else(|| counted.and_then(|n| u32::try_from(n.get()).ok()))
            .unwrap_or(1)
    }

    /// Sockets, cores and threads; a machine that does not tell has one core per socket.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let mut packages = BTreeSet::new();
        let mut cores = BTreeSet::new();
        let mut cpus: u32 = 0;
        let folder = self.root.join("sys/devices/system/cpu");
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let id = |name: &str| -> Option<i64> {
                let text = fs::read_to_string(entry.path().join("topology").join(name)).ok()?;
                text.trim().parse().ok()
            };
            if let (Some(package), Some(core)) = (id("physical_package_id"), id("core_id")) {
                packages.insert(package);
                cores.insert((package, core));
                cpus = cpus.saturating_add(1);
            }
        }
        let count = |set: usize| u32::try_from(set).unwrap_or(u32::MAX).max(1);
        let (sockets, all_cores) = (count(packages.len()), count(cores.len()));
        Topology {
            sockets,
            cores: (all_cores / sockets).max(1),
            threads: (cpus / all_cores).max(1),
        }
    }

    /// NUMA nodes, at least one.
    #[must_use]
    pub fn numa_cells(&self) -> u32 {
        let online = self.read("sys/devices/system/node/online");
        online
            .and_then(|text| count_ranges(text.trim()))
            .unwrap_or(1)
            .max(1)
    }

    /// Memory in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let text = self.read("proc/meminfo").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0).saturating_mul(1024)
    }

    /// Opens `/dev/kvm`, asks its version and makes an empty machine.
    #[must_use]
    pub fn kvm(&self) -> KvmDevice {
        let path = self.root.join("dev/kvm");
        if !path.exists() {
            return KvmDevice::Missing;
        }
        match Kvm::new() {
            Err(error) => KvmDevice::NoAccess {
                error: std::io::Error::from_raw_os_error(error.errno()).to_string(),
                group: self.group_of(&path),
            },
            Ok(kvm) => KvmDevice::Usable {
                api: kvm.get_api_version(),
                create: kvm.create_vm().err().map(|error| error.to_string()),
            },
        }
    }

    fn group_of(&self, path: &Path) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let gid = fs::metadata(path).ok()?.gid().to_string();
        let groups = self.read("etc/group")?;
        groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == gid).then(|| name.to_owned())
        })
    }
}

/// How many numbers a kernel list such as `0-3,8` has.
fn count_ranges(list: &str) -> Option<u32> {
    let mut count: u32 = 0;
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// Release of the running kernel.
#[must_use]
pub fn kernel() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// The machine's name.
#[must_use]
pub fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_counted() {
        assert_eq!(count_ranges("0-3,8"), Some(5));
        assert_eq!(count_ranges("0"), Some(1));
        assert_eq!(count_ranges("3-1"), None);
        assert_eq!(count_ranges("x"), None);
    }

    #[test]
    fn a_made_up_machine_is_read() {
        let root = tempfile::tempdir().expect("folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("written");
        };
        write(
            "proc/cpuinfo",
            "processor\t: 0\nflags\t\t: fpu svm sse\nmodel name\t: Foo 9\n",
        );
        write("proc/meminfo", "MemTotal:       2048 kB\n");
        write("sys/devices/system/cpu/online", "0-7\n");
        for cpu in 0..8 {
            let folder = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            write(
                &format!("{folder}/physical_package_id"),
                &format!("{}\n", cpu / 4),
            );
            write(
                &format!("{folder}/core_id"),
                &format!("{}\n", (cpu % 4) / 2),
            );
        }
        let host = Host::under(root.path());
        assert!(host.has_hardware_virtualization());
        assert_eq!(host.cpuinfo("model name").as_deref(), Some("Foo 9"));
        assert_eq!(
            (host.cpus(), host.memory(), host.numa_cells()),
            (8, 2 << 20, 1)
        );
        let topology = Topology {
            sockets: 2,
            cores: 2,
            threads: 2,
        };
        assert_eq!(host.topology(), topology);
        assert_eq!(host.kvm(), KvmDevice::Missing);
    }
}
