//! `nodeinfo` and `version`.

use clap::Args;

use crate::context::Context;
use crate::doctor::host::{self, Host, KvmDevice};
use crate::failure::Result;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{NodeInfo, VersionInfo};

/// Show this machine's processors and memory
#[derive(Args, Debug)]
pub(super) struct NodeInfoVerb {}

impl Verb for NodeInfoVerb {
    const NAME: &'static str = "nodeinfo";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("Show processors and memory", "cenote nodeinfo"),
        example(
            "Take the number of processors from a script",
            "cenote nodeinfo -o json --columns cpus",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let host = Host::default();
        let topology = host.topology();
        let mhz = host.cpuinfo("cpu MHz").and_then(|text| {
            let whole = text.split('.').next()?.to_owned();
            whole.parse().ok()
        });
        context.print(&NodeInfo {
            cpu_model: std::env::consts::ARCH.to_owned(),
            cpu_name: host.cpuinfo("model name"),
            cpus: host.cpus(),
            cpu_mhz: mhz,
            sockets: topology.sockets,
            cores: topology.cores,
            threads: topology.threads,
            numa_cells: host.numa_cells(),
            memory: host.memory(),
            kernel: host::kernel(),
            kvm_api: kvm_api(&host),
            hostname: host::hostname(),
        })
    }
}

/// Show the program's version
#[derive(Args, Debug)]
pub(super) struct Version {}

impl Verb for Version {
    const NAME: &'static str = "version";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("Show the version", "cenote version"),
        example(
            "Show what a bug report should tell",
            "cenote version --verbose",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        let executable = std::env::current_exe().ok();
        context.print(&VersionInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            monitor: "Cenote monitor on Linux KVM".to_owned(),
            profile: profile.to_owned(),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            kernel: host::kernel(),
            kvm_api: kvm_api(&Host::default()),
            executable: executable.map(|path| path.display().to_string()),
            verbose: context.settings.verbose > 0,
        })
    }
}

fn kvm_api(host: &Host) -> Option<i32> {
    match host.kvm() {
        KvmDevice::Usable { api, .. } => Some(api),
        KvmDevice::Missing | KvmDevice::NoAccess { .. } => None,
    }
}
