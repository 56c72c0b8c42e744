//! `<cpu>`: processor model and topology.

use crate::error::{Error, NoteKind};
use crate::xml::{Element, OnOff, Reader, element, values};

values! {
    /// Where the model comes from.
    pub enum CpuMode {
        /// A named model.
        #[default]
        Custom = "custom",
        /// The named model nearest to the host.
        HostModel = "host-model",
        /// The host's processor.
        HostPassthrough = "host-passthrough",
        /// All that can be given.
        Maximum = "maximum",
    }
}

values! {
    /// How a host's processor must compare.
    pub enum CpuMatch {
        /// The host has at least this.
        #[default]
        Exact = "exact",
        /// The host has at least this, and all it has is given.
        Minimum = "minimum",
        /// The host has just this.
        Strict = "strict",
    }
}

values! {
    /// How the result is checked at start.
    pub enum CpuCheck {
        /// Not.
        #[default]
        None = "none",
        /// As far as is cheap.
        Partial = "partial",
        /// Wholly.
        Full = "full",
    }
}

values! {
    /// What is done with a feature.
    pub enum CpuFeaturePolicy {
        /// Given; the domain does not start without.
        #[default]
        Require = "require",
        /// Given, whether the host has it or not.
        Force = "force",
        /// Given if the host has it.
        Optional = "optional",
        /// Not given.
        Disable = "disable",
        /// Not given; the domain does not start on a host that has it.
        Forbid = "forbid",
    }
}

element! {
    /// `<cpu>`.
    pub struct Cpu {
        /// Where the model comes from; absent means a named model, or the default one.
        mode: Option<CpuMode> = attribute("mode"),
        /// How a host's processor must compare.
        matching: Option<CpuMatch> = attribute("match"),
        /// How the result is checked at start.
        check: Option<CpuCheck> = attribute("check"),
        /// Whether the guest must be able to move to a like host.
        migratable: Option<OnOff> = attribute("migratable"),
        /// Named model.
        model: Option<CpuModel> = child("model"),
        /// Vendor that the host must be of.
        vendor: Option<String> = leaf("vendor"),
        /// Sockets, dies, cores, threads.
        topology: Option<CpuTopology> = child("topology"),
        /// Caches shown.
        cache: Option<CpuCache> = child("cache"),
        /// Physical address width shown.
        max_phys_addr: Option<CpuMaxPhysAddr> = child("maxphysaddr"),
        /// Features given or taken.
        features: Vec<CpuFeature> = child("feature"),
        /// NUMA nodes shown.
        numa: Option<Element> = child("numa"),
    }
    known {
        "cache" => Inert("the guest sees the host's caches"),
        "maxphysaddr" => Inert("the guest sees the host's address width"),
        "numa" => Inert("the guest sees one NUMA node"),
    }
    check Cpu::check;
}

element! {
    /// `<model>` of a processor.
    pub struct CpuModel {
        /// Whether a lesser model may take its place.
        fallback: Option<String> = attribute("fallback"),
        /// Vendor shown to the guest.
        vendor_id: Option<String> = attribute("vendor_id"),
        /// Name.
        name: String = text(),
    }
    known {
        "@vendor_id" => Inert("the guest sees the host's vendor"),
    }
}

element! {
    /// `<topology>`; the product is the number of processors.
    pub struct CpuTopology {
        /// Sockets.
        sockets: u32 = attribute("sockets"),
        /// Dies in a socket.
        dies: Option<u32> = attribute("dies"),
        /// Clusters in a die.
        clusters: Option<u32> = attribute("clusters"),
        /// Cores in a die.
        cores: u32 = attribute("cores"),
        /// Threads in a core.
        threads: u32 = attribute("threads"),
    }
}

element! {
    /// `<cache>` of a processor.
    pub struct CpuCache {
        /// Level.
        level: Option<u8> = attribute("level"),
        /// `emulate`, `passthrough` or `disable`.
        mode: String = attribute("mode"),
    }
}

element! {
    /// `<maxphysaddr>`.
    pub struct CpuMaxPhysAddr {
        /// `emulate` or `passthrough`.
        mode: String = attribute("mode"),
        /// Width in bits.
        bits: Option<u8> = attribute("bits"),
        /// Most bits of the host's that are taken.
        limit: Option<u8> = attribute("limit"),
    }
}

element! {
    /// `<feature>` of a processor.
    pub struct CpuFeature {
        /// What is done with it; default `require`.
        policy: Option<CpuFeaturePolicy> = attribute("policy"),
        /// Name, as libvirt's list has it.
        name: String = attribute("name"),
    }
}

impl CpuTopology {
    /// Number of processors; `None` if that is no 32-bit number.
    pub fn processors(&self) -> Option<u32> {
        self.sockets
            .checked_mul(self.dies.unwrap_or(1))?
            .checked_mul(self.clusters.unwrap_or(1))?
            .checked_mul(self.cores)?
            .checked_mul(self.threads)
    }
}

impl Cpu {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let named = self.model.as_ref().filter(|model| !model.name.is_empty());
        if let Some(model) = named
            && matches!(self.mode, None | Some(CpuMode::Custom))
        {
            reader.note(
                NoteKind::Mapped,
                "model",
                format!(
                    "the guest sees this host's processor in place of the model '{}'",
                    model.name
                ),
            )?;
        }
        let mut names = std::collections::HashSet::new();
        for feature in &self.features {
            if !names.insert(feature.name.as_str()) {
                return Err(reader.invalid(
                    "feature/@name",
                    &feature.name,
                    "a feature is given once",
                ));
            }
        }
        match &self.topology {
            Some(topology) if topology.processors().is_none_or(|n| n == 0) => Err(reader.invalid(
                "topology",
                "0",
                "sockets, dies, cores and threads are at least 1 each",
            )),
            _ => Ok(()),
        }
    }
}
