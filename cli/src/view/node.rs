//! Results about the node, the machine and the program.

use schemars::JsonSchema;
use serde::Serialize;

use super::rows_view;
use crate::out::{Column, Field, Layout, View, human};

/// `version`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct VersionInfo {
    /// The program's version.
    pub version: String,
    /// The machine monitor that runs domains.
    pub monitor: String,
    /// Whether it was compiled with optimizations.
    pub profile: String,
    /// Operating system and architecture it was compiled for.
    pub target: String,
    /// The running kernel.
    pub kernel: String,
    /// Version of the KVM interface; null without usable `/dev/kvm`.
    pub kvm_api: Option<i32>,
    /// Path of the running program.
    pub executable: Option<String>,
    /// Whether the table shows all of it.
    #[serde(skip)]
    pub verbose: bool,
}

impl View for VersionInfo {
    fn layout(&self) -> Layout {
        if !self.verbose {
            return Layout::Text(format!("cenote {} ({})\n", self.version, self.monitor));
        }
        let api = self
            .kvm_api
            .map_or_else(|| "-".to_owned(), |api| api.to_string());
        Layout::Record(vec![
            Field::new("version", "Version", &self.version),
            Field::new("monitor", "Hypervisor", &self.monitor),
            Field::new("profile", "Profile", &self.profile),
            Field::new("target", "Target", &self.target),
            Field::new("kernel", "Kernel", &self.kernel),
            Field::new("kvm_api", "KVM API", api),
            Field::new(
                "executable",
                "Program",
                self.executable.as_deref().unwrap_or("-"),
            ),
        ])
    }

    fn names(&self) -> Vec<String> {
        vec![self.version.clone()]
    }
}

/// `nodeinfo`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NodeInfo {
    /// Machine architecture, such as `x86_64`.
    pub cpu_model: String,
    /// The processor's name.
    pub cpu_name: Option<String>,
    /// Processors that are online.
    pub cpus: u32,
    /// Present frequency in MHz, where the machine tells.
    pub cpu_mhz: Option<u32>,
    /// Sockets.
    pub sockets: u32,
    /// Cores per socket.
    pub cores: u32,
    /// Threads per core.
    pub threads: u32,
    /// NUMA nodes.
    pub numa_cells: u32,
    /// Memory, in bytes.
    pub memory: u64,
    /// Kernel release.
    pub kernel: String,
    /// Version of the KVM interface; null without usable `/dev/kvm`.
    pub kvm_api: Option<i32>,
    /// The machine's host name.
    pub hostname: String,
}

impl View for NodeInfo {
    fn layout(&self) -> Layout {
        let unknown = || "-".to_owned();
        let mhz = self
            .cpu_mhz
            .map_or_else(unknown, |mhz| format!("{mhz} MHz"));
        let api = self.kvm_api.map_or_else(unknown, |api| api.to_string());
        let name = self.cpu_name.clone().unwrap_or_else(unknown);
        Layout::Record(vec![
            Field::new("cpu_model", "CPU model", &self.cpu_model),
            Field::new("cpus", "CPU(s)", self.cpus.to_string()),
            Field::new("cpu_mhz", "CPU frequency", mhz),
            Field::new("sockets", "CPU socket(s)", self.sockets.to_string()),
            Field::new("cores", "Core(s) per socket", self.cores.to_string()),
            Field::new("threads", "Thread(s) per core", self.threads.to_string()),
            Field::new("numa_cells", "NUMA cell(s)", self.numa_cells.to_string()),
            Field::new(
                "memory",
                "Memory size",
                format!("{} KiB", self.memory / 1024),
            ),
            Field::wide("cpu_name", "CPU name", name),
            Field::wide("kernel", "Kernel", &self.kernel),
            Field::wide("kvm_api", "KVM API", api),
            Field::wide("hostname", "Host name", &self.hostname),
        ])
    }

    fn names(&self) -> Vec<String> {
        vec![self.hostname.clone()]
    }
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProbeStatus {
    /// As it should be.
    Ok,
    /// Works, with a limit the user should know.
    Warn,
    /// Does not work.
    Fail,
}

impl ProbeStatus {
    /// The word in the table.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing `doctor` looked at.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ProbeResult {
    /// A stable name, such as `kvm-access`.
    pub probe: String,
    /// How it ended.
    pub status: ProbeStatus,
    /// Whether Cenote cannot do its work when this fails.
    pub essential: bool,
    /// What was found.
    pub found: String,
    /// What to do about it, when something is to be done.
    pub fix: Option<String>,
}

/// `doctor`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DoctorReport {
    /// Whether nothing essential failed.
    pub healthy: bool,
    /// Every probe.
    pub probes: Vec<ProbeResult>,
}

impl View for DoctorReport {
    fn layout(&self) -> Layout {
        let mut text = String::new();
        for probe in &self.probes {
            let status = probe.status.word();
            text.push_str(&format!(
                "{status:<5} {:<18} {}\n",
                probe.probe, probe.found
            ));
            if let Some(fix) = &probe.fix {
                text.push_str(&format!("      {:<18} fix: {fix}\n", ""));
            }
        }
        Layout::Text(text)
    }

    fn names(&self) -> Vec<String> {
        let bad = self
            .probes
            .iter()
            .filter(|probe| probe.status != ProbeStatus::Ok);
        bad.map(|probe| probe.probe.clone()).collect()
    }
}

/// One setting, for `config-show`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ConfigSetting {
    /// The key.
    pub key: String,
    /// Its value, as text.
    pub value: String,
    /// `flag`, `env`, `project`, `user`, `system` or `default`.
    pub layer: String,
    /// The option, variable or file it comes from.
    pub origin: String,
}

/// `config-show`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct ConfigSettings(pub Vec<ConfigSetting>);

rows_view!(ConfigSettings of ConfigSetting, |row| row.key.clone(), [
    Column::new("key", "Key") => |row| row.key.clone(),
    Column::new("value", "Value") => |row| row.value.clone(),
    Column::wide("layer", "Layer") => |row| row.layer.clone(),
    Column::wide("origin", "Origin") => |row| row.origin.clone(),
]);

/// One long operation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct JobItem {
    /// Its number.
    pub id: i64,
    /// What it does, such as `volume-clone`.
    pub kind: String,
    /// To what.
    pub subject: String,
    /// `running`, `done`, `failed`, `rolled-forward` or `rolled-back`.
    pub state: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 where it is not known.
    pub total: u64,
    /// When it began, RFC 3339.
    pub started: String,
    /// When it ended.
    pub finished: Option<String>,
    /// The process that runs or ran it.
    pub pid: u32,
    /// Why it failed.
    pub error: Option<String>,
}

/// `job-list`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct JobItems(pub Vec<JobItem>);

rows_view!(JobItems of JobItem, |row| row.id.to_string(), [
    Column::new("id", "Id") => |row| row.id.to_string(),
    Column::new("kind", "Kind") => |row| row.kind.clone(),
    Column::new("subject", "Subject") => |row| row.subject.clone(),
    Column::new("state", "State") => |row| row.state.clone(),
    Column::new("done", "Done") => |row| match row.done.saturating_mul(100).checked_div(row.total) {
        Some(percent) => format!("{percent}%"),
        None => human(row.done),
    },
    Column::new("started", "Started") => |row| whole_seconds(&row.started),
    Column::wide("finished", "Finished") => |row| row.finished.as_deref().map(whole_seconds).unwrap_or_default(),
    Column::wide("pid", "Process") => |row| row.pid.to_string(),
    Column::wide("error", "Error") => |row| row.error.clone().unwrap_or_default(),
]);

/// A time without its fraction of a second, which nobody reads in a table.
fn whole_seconds(time: &str) -> String {
    let (whole, _) = time
        .split_once('.')
        .unwrap_or((time.trim_end_matches('Z'), ""));
    format!("{whole}Z")
}

/// One line of `event`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct HostEvent {
    /// Position in the log; strictly increasing.
    pub sequence: i64,
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// What, such as `pool-started`.
    pub kind: String,
    /// To what.
    pub subject: String,
    /// More, as the kind demands.
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub detail: serde_json::Value,
}

/// One repair of `fsck`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RepairItem {
    /// Number of the interrupted operation.
    pub operation: i64,
    /// What it was.
    pub kind: String,
    /// What it worked on.
    pub subject: String,
    /// `rolled-forward`, `rolled-back`, `pending` or, for a look only, `interrupted`.
    pub outcome: String,
    /// What was done, in a sentence.
    pub message: String,
}

/// `fsck`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct RepairItems(pub Vec<RepairItem>);

rows_view!(RepairItems of RepairItem, |row| row.subject.clone(), [
    Column::new("operation", "Operation") => |row| row.operation.to_string(),
    Column::new("kind", "Kind") => |row| row.kind.clone(),
    Column::new("subject", "Subject") => |row| row.subject.clone(),
    Column::new("outcome", "Outcome") => |row| row.outcome.clone(),
    Column::new("message", "Message") => |row| row.message.clone(),
]);

/// `explain`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ErrorPage {
    /// The code.
    pub code: String,
    /// The exit code of commands that end with it.
    pub exit: u8,
    /// The page's title.
    pub title: String,
    /// The page, as Markdown.
    pub text: String,
}

impl View for ErrorPage {
    fn layout(&self) -> Layout {
        Layout::Text(format!(
            "{}\nExit code: {}\n",
            self.text.trim_end(),
            self.exit
        ))
    }

    fn names(&self) -> Vec<String> {
        vec![self.code.clone()]
    }
}
