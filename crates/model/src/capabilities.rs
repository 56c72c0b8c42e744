//! What a node and its machine can do: `<capabilities>` and `<domainCapabilities>`.
//!
//! Both are written by the node and read by its clients. See
//! <https://libvirt.org/formatcaps.html> and <https://libvirt.org/formatdomaincaps.html>.

use uuid::Uuid;

use crate::document::document;
use crate::domain::DomainKind;
use crate::size::Memory;
use crate::xml::{Element, OnOff, YesNo, element};

element! {
    /// What a node can do.
    pub struct Capabilities {
        /// The host.
        host: Host = child("host"),
        /// Kinds of guests.
        guests: Vec<Guest> = child("guest"),
    }
}

document!(Capabilities, "capabilities");

element! {
    /// `<host>`.
    pub struct Host {
        /// Identity of the host.
        uuid: Option<Uuid> = leaf("uuid"),
        /// Processors.
        cpu: HostCpu = child("cpu"),
        /// Sleep states of the host.
        power_management: Option<Element> = child("power_management"),
        /// I/O memory management unit.
        iommu: Option<Iommu> = child("iommu"),
        /// Migration.
        migration: Option<MigrationFeatures> = child("migration_features"),
        /// Nodes of memory and processors.
        topology: Option<HostTopology> = child("topology"),
        /// Caches.
        cache: Option<Element> = child("cache"),
        /// Memory bandwidth.
        memory_bandwidth: Option<Element> = child("memory_bandwidth"),
        /// Security labels.
        security_models: Vec<Element> = child("secmodel"),
    }
}

element! {
    /// `<cpu>` of a host.
    pub struct HostCpu {
        /// Architecture.
        arch: String = leaf("arch"),
        /// Model.
        model: Option<String> = leaf("model"),
        /// Vendor.
        vendor: Option<String> = leaf("vendor"),
        /// Revision of its microcode.
        microcode: Option<Microcode> = child("microcode"),
        /// Counters.
        counters: Vec<Counter> = child("counter"),
        /// Sockets, dies, cores, threads.
        topology: Option<crate::domain::CpuTopology> = child("topology"),
        /// Width of addresses.
        max_phys_addr: Option<Element> = child("maxphysaddr"),
        /// Features beyond the model's.
        features: Vec<HostFeature> = child("feature"),
        /// Old list of features.
        feature_list: Option<Element> = child("features"),
        /// Sizes of pages.
        pages: Vec<Pages> = child("pages"),
    }
}

element! {
    /// `<microcode>`.
    pub struct Microcode {
        /// Version.
        version: u32 = attribute("version"),
    }
}

element! {
    /// `<counter>`.
    pub struct Counter {
        /// Name: `tsc`.
        name: String = attribute("name"),
        /// Hz.
        frequency: u64 = attribute("frequency"),
        /// Whether another host's can be made of it.
        scaling: Option<YesNo> = attribute("scaling"),
    }
}

element! {
    /// `<feature>` of a host's processor.
    pub struct HostFeature {
        /// Name.
        name: String = attribute("name"),
    }
}

element! {
    /// `<pages>`: a size of pages, and in a cell their number.
    pub struct Pages {
        /// Unit of the size.
        unit: Option<String> = attribute("unit"),
        /// Size.
        size: u64 = attribute("size"),
        /// Number.
        count: String = text(),
    }
}

element! {
    /// `<iommu>`.
    pub struct Iommu {
        /// Whether there is one in use.
        support: YesNo = attribute("support"),
    }
}

element! {
    /// `<migration_features>`.
    pub struct MigrationFeatures {
        /// Guests can run while they move.
        live: bool = flag("live"),
        /// Transports.
        transports: Option<Transports> = child("uri_transports"),
    }
}

element! {
    /// `<uri_transports>`.
    pub struct Transports {
        /// Schemes of URIs.
        schemes: Vec<String> = leaf("uri_transport"),
    }
}

element! {
    /// `<topology>` of a host.
    pub struct HostTopology {
        /// NUMA nodes.
        cells: Cells = child("cells"),
        /// Distances between them.
        interconnects: Option<Element> = child("interconnects"),
    }
}

element! {
    /// `<cells>`.
    pub struct Cells {
        /// Number of cells.
        count: u32 = attribute("num"),
        /// The cells.
        cells: Vec<Cell> = child("cell"),
    }
}

element! {
    /// `<cell>`: a NUMA node.
    pub struct Cell {
        /// Number.
        id: u32 = attribute("id"),
        /// Memory.
        memory: Option<Memory> = child("memory"),
        /// Pages.
        pages: Vec<Pages> = child("pages"),
        /// Distances.
        distances: Option<Element> = child("distances"),
        /// Caches.
        caches: Vec<Element> = child("cache"),
        /// Processors.
        cpus: Option<CellCpus> = child("cpus"),
    }
}

element! {
    /// `<cpus>` of a cell.
    pub struct CellCpus {
        /// Number of processors.
        count: u32 = attribute("num"),
        /// The processors.
        cpus: Vec<CellCpu> = child("cpu"),
    }
}

element! {
    /// `<cpu>` of a cell.
    pub struct CellCpu {
        /// Number.
        id: u32 = attribute("id"),
        /// Socket.
        socket_id: Option<u32> = attribute("socket_id"),
        /// Die.
        die_id: Option<u32> = attribute("die_id"),
        /// Core.
        core_id: Option<u32> = attribute("core_id"),
        /// Processors of the same core.
        siblings: Option<String> = attribute("siblings"),
    }
}

element! {
    /// `<guest>`: a kind of guests.
    pub struct Guest {
        /// `hvm`.
        os_type: String = leaf("os_type"),
        /// Architecture.
        arch: GuestArch = child("arch"),
        /// Features.
        features: Option<GuestFeatures> = child("features"),
    }
}

element! {
    /// `<arch>` of a guest.
    pub struct GuestArch {
        /// Name.
        name: String = attribute("name"),
        /// Bits of a word.
        word_size: u8 = leaf("wordsize"),
        /// Program that runs it.
        emulator: Option<String> = leaf("emulator"),
        /// Firmware.
        loader: Option<String> = leaf("loader"),
        /// Machines.
        machines: Vec<GuestMachine> = child("machine"),
        /// Kinds of domains.
        domains: Vec<GuestDomain> = child("domain"),
    }
}

element! {
    /// `<machine>` of a guest.
    pub struct GuestMachine {
        /// The name that this is another for.
        canonical: Option<String> = attribute("canonical"),
        /// Most processors.
        max_cpus: Option<u32> = attribute("maxCpus"),
        /// Whether it is going away.
        deprecated: Option<YesNo> = attribute("deprecated"),
        /// Name.
        name: String = text(),
    }
}

element! {
    /// `<domain>` of a guest.
    pub struct GuestDomain {
        /// Kind.
        kind: DomainKind = attribute("type"),
        /// Program that runs it.
        emulator: Option<String> = leaf("emulator"),
        /// Machines.
        machines: Vec<GuestMachine> = child("machine"),
    }
}

element! {
    /// `<features>` of a guest.
    pub struct GuestFeatures {
        /// 36-bit addresses.
        pae: bool = flag("pae"),
        /// 32-bit addresses.
        nonpae: bool = flag("nonpae"),
        /// ACPI.
        acpi: Option<FeatureToggle> = child("acpi"),
        /// Local interrupt controllers.
        apic: Option<FeatureToggle> = child("apic"),
        /// Processor models can be chosen.
        cpu_selection: bool = flag("cpuselection"),
        /// Devices can be put in a boot order.
        device_boot: bool = flag("deviceboot"),
        /// Disks can be put in a snapshot.
        disk_snapshot: Option<FeatureToggle> = child("disksnapshot"),
    }
}

element! {
    /// A feature that can be on or off.
    pub struct FeatureToggle {
        /// Without a word.
        default: OnOff = attribute("default"),
        /// Whether a document can say otherwise.
        toggle: YesNo = attribute("toggle"),
    }
}

element! {
    /// What one machine of a node can do.
    pub struct DomainCapabilities {
        /// Program that runs it.
        path: String = leaf("path"),
        /// Kind of domain.
        domain: DomainKind = leaf("domain"),
        /// Machine.
        machine: Option<String> = leaf("machine"),
        /// Architecture.
        arch: String = leaf("arch"),
        /// Most processors.
        vcpu: Option<MaxVcpus> = child("vcpu"),
        /// I/O threads.
        iothreads: Option<Supported> = child("iothreads"),
        /// Firmware.
        os: Option<OsCapabilities> = child("os"),
        /// Processors.
        cpu: Option<CpuCapabilities> = child("cpu"),
        /// Pages behind the memory.
        memory_backing: Option<Supported> = child("memoryBacking"),
        /// Devices.
        devices: Option<DeviceCapabilities> = child("devices"),
        /// Features.
        features: Option<FeatureCapabilities> = child("features"),
    }
}

document!(DomainCapabilities, "domainCapabilities");

element! {
    /// `<vcpu>`.
    pub struct MaxVcpus {
        /// Most processors.
        max: u32 = attribute("max"),
    }
}

element! {
    /// A part that is supported or not, and the values its attributes can have.
    pub struct Supported {
        /// Whether it is there.
        supported: YesNo = attribute("supported"),
        /// Values.
        values: Vec<String> = leaf("value"),
        /// Attributes.
        enums: Vec<Choices> = child("enum"),
    }
}

impl Supported {
    /// Not there.
    pub fn no() -> Self {
        Self::default()
    }

    /// There, with attributes and the values they can have.
    pub fn yes<'a>(enums: impl IntoIterator<Item = (&'a str, Vec<&'a str>)>) -> Self {
        Self {
            supported: YesNo::Yes,
            enums: enums
                .into_iter()
                .map(|(name, values)| Choices {
                    name: name.to_owned(),
                    values: values.into_iter().map(str::to_owned).collect(),
                    ..Choices::default()
                })
                .collect(),
            ..Self::default()
        }
    }
}

element! {
    /// `<enum>`: an attribute and the values it can have.
    pub struct Choices {
        /// Attribute.
        name: String = attribute("name"),
        /// Values.
        values: Vec<String> = leaf("value"),
    }
}

element! {
    /// `<os>` of domain capabilities.
    pub struct OsCapabilities {
        /// Whether it is there.
        supported: YesNo = attribute("supported"),
        /// Attributes.
        enums: Vec<Choices> = child("enum"),
        /// Firmware files.
        loader: Option<Supported> = child("loader"),
    }
}

element! {
    /// `<cpu>` of domain capabilities.
    pub struct CpuCapabilities {
        /// Modes.
        modes: Vec<CpuModeCapability> = child("mode"),
    }
}

element! {
    /// `<mode>`.
    pub struct CpuModeCapability {
        /// Name.
        name: crate::domain::CpuMode = attribute("name"),
        /// Whether it is there.
        supported: YesNo = attribute("supported"),
        /// Attributes.
        enums: Vec<Choices> = child("enum"),
        /// Models.
        models: Vec<Element> = child("model"),
        /// Vendor.
        vendor: Option<String> = leaf("vendor"),
        /// Width of addresses.
        max_phys_addr: Option<Element> = child("maxphysaddr"),
        /// Features.
        features: Vec<crate::domain::CpuFeature> = child("feature"),
    }
}

element! {
    /// `<devices>` of domain capabilities.
    pub struct DeviceCapabilities {
        /// Disks.
        disk: Option<Supported> = child("disk"),
        /// Screens for viewers.
        graphics: Option<Supported> = child("graphics"),
        /// Display adapters.
        video: Option<Supported> = child("video"),
        /// Devices of the host.
        hostdev: Option<Supported> = child("hostdev"),
        /// Randomness.
        rng: Option<Supported> = child("rng"),
        /// Directories of the host.
        filesystem: Option<Supported> = child("filesystem"),
        /// TPM.
        tpm: Option<Supported> = child("tpm"),
        /// Redirected USB devices.
        redirdev: Option<Supported> = child("redirdev"),
        /// Channels.
        channel: Option<Supported> = child("channel"),
    }
}

element! {
    /// `<features>` of domain capabilities.
    pub struct FeatureCapabilities {
        /// ARM's interrupt controller.
        gic: Option<Supported> = child("gic"),
        /// Crash information.
        vmcoreinfo: Option<Supported> = child("vmcoreinfo"),
        /// Generation id.
        genid: Option<Supported> = child("genid"),
        /// `<backingStore>` is taken from documents.
        backing_store_input: Option<Supported> = child("backingStoreInput"),
        /// Backup jobs.
        backup: Option<Supported> = child("backup"),
        /// Memory encryption of AMD.
        sev: Option<Element> = child("sev"),
        /// Enclaves of Intel.
        sgx: Option<Element> = child("sgx"),
    }
}
