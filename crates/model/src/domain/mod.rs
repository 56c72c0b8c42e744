//! Domains: `<domain>`.
//!
//! The whole of FEATURES A6 and what virt-install, Nova and libvirt itself write into such
//! documents. See <https://libvirt.org/formatdomain.html>. Every part is a field, or stands in a
//! `known` table with what is done about it.

mod character;
mod check;
mod cpu;
mod device;
mod disk;
mod display;
mod features;
mod fill;
mod interface;
pub mod machine;
mod os;
mod resources;

use uuid::Uuid;

pub use character::{
    Channel, Character, CharacterKind, CharacterLog, CharacterProtocol, CharacterSource,
    CharacterTarget, Reconnect,
};
pub use cpu::{
    Cpu, CpuCache, CpuCheck, CpuFeature, CpuFeaturePolicy, CpuMatch, CpuMaxPhysAddr, CpuMode,
    CpuModel, CpuTopology,
};
pub use device::{
    Address, AddressKind, Alias, Balloon, BalloonStats, Controller, ControllerKind, DeviceBoot,
    Devices, Panic, Rng, RngBackend, RngBackendKind, RngRate, Watchdog, WatchdogAction,
};
pub use disk::{
    CacheMode, DetectZeroes, DiscardMode, Disk, DiskBackingStore, DiskDevice, DiskDriver, DiskKind,
    DiskSource, DiskTarget, ErrorPolicy, IoMode, SnapshotMode, StartupPolicy, TargetBus, Tray,
    target_index,
};
pub use display::{
    Graphics, GraphicsKind, GraphicsListen, Input, InputBus, InputKind, Sound, Video, VideoModel,
};
pub use features::{
    Apic, Clock, ClockAdjustment, ClockBasis, ClockOffset, Features, PowerManagement, SleepState,
    Timer,
};
pub use interface::{
    Interface, InterfaceDriver, InterfaceKind, InterfaceMac, InterfaceModel, InterfaceSource,
    InterfaceTarget, Link, LinkState, MacAddress, Mtu, PortForward, PortForwardProtocol, PortRange,
};
pub use os::{
    BiosOptions, Boot, BootDevice, BootMenu, Firmware, Loader, LoaderKind, Nvram, Os, OsKind,
    OsType, Smbios, SmbiosMode, Sysinfo, SysinfoBlock, SysinfoEntry, SysinfoKind,
};
pub use resources::{MaxMemory, MemoryBacking, Placement, Vcpu, VcpuCount};

use crate::document::document;
use crate::names::Name;
use crate::size::Memory;
use crate::xml::{Element, Metadata, element, values};

values! {
    /// What runs the domain.
    pub enum DomainKind {
        /// The built-in KVM monitor.
        #[default]
        Kvm = "kvm",
        /// QEMU's own emulation in libvirt; here the built-in KVM monitor too.
        Qemu = "qemu",
        /// Refused.
        Kqemu = "kqemu",
        /// Refused.
        Xen = "xen",
        /// Refused.
        Lxc = "lxc",
        /// Refused.
        Uml = "uml",
        /// Refused.
        Openvz = "openvz",
        /// libvirt's test driver; refused.
        Test = "test",
        /// Refused.
        Vmware = "vmware",
        /// Refused.
        Hyperv = "hyperv",
        /// Refused.
        Vbox = "vbox",
        /// Refused.
        Phyp = "phyp",
        /// Refused.
        Vz = "vz",
        /// Refused.
        Parallels = "parallels",
        /// Refused.
        Bhyve = "bhyve",
        /// Refused.
        Hvf = "hvf",
    }
}

values! {
    /// What follows when a guest powers itself off, resets or crashes.
    pub enum LifecycleAction {
        /// The domain stops and its resources are released.
        #[default]
        Destroy = "destroy",
        /// It starts anew with the same configuration.
        Restart = "restart",
        /// It stops, and what it had stays for a look at it.
        Preserve = "preserve",
        /// Refused.
        RenameRestart = "rename-restart",
        /// Refused.
        CoredumpDestroy = "coredump-destroy",
        /// Refused.
        CoredumpRestart = "coredump-restart",
    }
}

element! {
    /// A domain.
    pub struct Domain {
        /// `type`.
        kind: DomainKind = attribute("type"),
        /// `id` while it runs; reported.
        id: Option<u32> = attribute("id"),
        /// Name.
        name: Name = leaf("name"),
        /// Identity; given by the node when absent.
        uuid: Option<Uuid> = leaf("uuid"),
        /// Generation id: new for each state the guest could have run from.
        genid: Option<String> = leaf("genid"),
        /// One line for people.
        title: Option<String> = leaf("title"),
        /// More lines for people.
        description: Option<String> = leaf("description"),
        /// What other programs keep here.
        metadata: Option<Metadata> = child("metadata"),
        /// Most memory that could be plugged in.
        max_memory: Option<MaxMemory> = child("maxMemory"),
        /// Memory at start.
        memory: Memory = child("memory"),
        /// Memory that a balloon would leave to the guest; at most `memory`.
        current_memory: Option<Memory> = child("currentMemory"),
        /// Weights of block I/O.
        blkio_tune: Option<Element> = child("blkiotune"),
        /// Limits on the monitor's memory.
        memory_tune: Option<Element> = child("memtune"),
        /// Pages behind the memory.
        memory_backing: Option<MemoryBacking> = child("memoryBacking"),
        /// Number of processors.
        vcpu: Vcpu = child_or_default("vcpu"),
        /// State of single processors.
        vcpus: Option<Element> = child("vcpus"),
        /// Number of I/O threads.
        iothreads: Option<u32> = leaf("iothreads"),
        /// Their ids.
        iothread_ids: Option<Element> = child("iothreadids"),
        /// Pool sizes of the default I/O thread.
        default_iothread: Option<Element> = child("defaultiothread"),
        /// Shares, quotas and pinning of processors.
        cpu_tune: Option<Element> = child("cputune"),
        /// NUMA placement.
        numa_tune: Option<Element> = child("numatune"),
        /// Control group.
        resource: Option<Element> = child("resource"),
        /// What SMBIOS tables and fw_cfg tell the guest.
        sysinfo: Vec<Sysinfo> = child("sysinfo"),
        /// Host-side boot loader.
        bootloader: Option<String> = leaf("bootloader"),
        /// Its arguments.
        bootloader_args: Option<String> = leaf("bootloader_args"),
        /// Machine, firmware and boot.
        os: Os = child("os"),
        /// Features of the machine.
        features: Option<Features> = child("features"),
        /// Processor model.
        cpu: Option<Cpu> = child("cpu"),
        /// Clock.
        clock: Clock = child_or_default("clock"),
        /// When the guest powers off; default `destroy`.
        on_poweroff: LifecycleAction = leaf_or_default("on_poweroff"),
        /// When the guest resets; default `restart`.
        on_reboot: LifecycleAction = leaf_or_default("on_reboot"),
        /// When the guest crashes; default `destroy`.
        on_crash: LifecycleAction = leaf_or_default("on_crash"),
        /// When a lock on its storage is lost.
        on_lockfailure: Option<String> = leaf("on_lockfailure"),
        /// Sleep states offered.
        pm: Option<PowerManagement> = child("pm"),
        /// Performance events.
        perf: Option<Element> = child("perf"),
        /// Devices.
        devices: Devices = child_or_default("devices"),
        /// Security labels.
        seclabels: Vec<Element> = child("seclabel"),
    }
    known {
        "blkiotune" => Inert("block I/O is not weighed; the domain's disks compete as equals"),
        "memtune" => Inert("the monitor's memory is limited by its own resource limits"),
        "vcpus" => Inert("processors are not plugged one by one"),
        "iothreads" => Mapped("each disk queue has a thread of its own"),
        "iothreadids" => Mapped("each disk queue has a thread of its own"),
        "defaultiothread" => Inert("each disk queue has a thread of its own"),
        "cputune" => Inert("processors are not weighed, limited or pinned"),
        "numatune" => Inert("memory is placed as the host's kernel does it"),
        "resource" => Inert("domains are put in no control group"),
        "bootloader" => Mapped("the built-in reader takes kernel and initrd from the guest's disk; \
            the path is not run"),
        "bootloader_args" => Inert("the built-in reader takes no arguments"),
        "on_lockfailure" => Inert("locks are held as long as the domain runs"),
        "perf" => Inert("no performance events are counted"),
        "seclabel" => Inert("the monitor is confined by its own sandbox, not by labels"),
        "idmap" => Refused("user id maps belong to containers"),
        "keywrap" => Refused("key wrapping is a feature of s390x"),
        "launchSecurity" => Refused("encrypted guest memory (SEV, TDX, s390-pv) is not supported, \
            and starting without it would break its promise"),
        "qemu:commandline" => Refused("options for QEMU mean nothing to the built-in monitor; \
            remove the element"),
        "qemu:capabilities" => Refused("options for QEMU mean nothing to the built-in monitor; \
            remove the element"),
        "qemu:override" => Refused("options for QEMU mean nothing to the built-in monitor; \
            remove the element"),
        "qemu:deprecation" => Inert("there is no QEMU"),
    }
    check Domain::check;
}

document!(Domain, "domain");
