//! `install`: an unattended install in two phases.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cenote_engine::installs::{
    Answer, AnswerKind, Delivery, InstallDisk, InstallRequest, InstallSource, InstallWatch,
    Location, MediaError, NetworkSource, OnFailure, Prepared, Print, Stage, Step, Told,
};
use cenote_engine::{Format, Node, Progress};
use cenote_model::{Memory, Name};
use clap::{Args, ValueEnum};

use crate::consent::Level;
use crate::context::Context;
use crate::document;
use crate::duration;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::out::{self, parse_size, quoted};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Which documents to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// The installer's.
    #[value(name = "1")]
    One,
    /// The domain's as it stays.
    #[value(name = "2")]
    Two,
    /// Both.
    All,
}

/// How the answer file travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// In the initrd.
    Initrd,
    /// On an image in a second drive.
    Media,
    /// Refused.
    Http,
}

/// What becomes of a failed install.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Failed {
    /// Domain and disks stay.
    Keep,
    /// The disks that were made are deleted.
    Destroy,
    /// They are overwritten before.
    Wipe,
}

/// Install a domain unattended: run the installer, then start the domain from its disk
#[derive(Args, Debug)]
pub(super) struct Install {
    /// Name of the domain
    #[arg(short = 'n', long)]
    name: String,
    /// Its memory; without a unit, in MiB
    #[arg(long, value_name = "SIZE", default_value = "2048")]
    memory: String,
    /// Its memory while it is installed; without a unit, in MiB
    #[arg(long, value_name = "SIZE")]
    install_memory: Option<String>,
    /// Its processors
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    vcpus: u32,
    /// A disk: size=10G[,pool=NAME][,name=VOLUME][,format=qcow2|raw] makes one, vol=POOL/VOLUME
    /// takes one that is there. A size without a unit is in GiB
    #[arg(long, value_name = "SPEC", required = true)]
    disk: Vec<String>,
    /// A network card: user, none, network=NAME or bridge=NAME
    #[arg(long, value_name = "SPEC", default_value = "user")]
    network: Vec<String>,
    /// Where the installer is: a folder with a tree or an ISO image, with
    /// ',kernel=PATH,initrd=PATH' where they are not found in it; or these two alone
    #[arg(short = 'l', long, value_name = "PATH")]
    location: Option<String>,
    /// Boot the installer from its own media: an ISO image, or a drive of the host
    #[arg(long, value_name = "PATH", conflicts_with = "location")]
    cdrom: Option<PathBuf>,
    /// Refused so far: boot the installer from the network
    #[arg(long, conflicts_with_all = ["location", "cdrom"])]
    pxe: bool,
    /// Refused so far: take a disk that has a system already
    #[arg(long, conflicts_with_all = ["location", "cdrom", "pxe"])]
    import: bool,
    /// A file that is put into the root folder of the initrd
    #[arg(long, value_name = "FILE")]
    initrd_inject: Vec<PathBuf>,
    /// Added to the kernel's command line
    #[arg(
        short = 'x',
        long,
        value_name = "ARGUMENTS",
        allow_hyphen_values = true
    )]
    extra_args: Vec<String>,
    /// Answers for Anaconda (Fedora, RHEL and relatives)
    #[arg(long, value_name = "FILE", group = "answer")]
    kickstart: Option<PathBuf>,
    /// Answers for debian-installer
    #[arg(long, value_name = "FILE", group = "answer")]
    preseed: Option<PathBuf>,
    /// Answers for Ubuntu's installer
    #[arg(long, value_name = "FILE", group = "answer")]
    autoinstall: Option<PathBuf>,
    /// How the answer file travels; by default as its installer looks for it
    #[arg(long, value_name = "WAY", requires = "answer")]
    delivery: Option<Way>,
    /// Take the answer file as it is, whatever an installer would stumble over
    #[arg(long, requires = "answer")]
    no_lint: bool,
    /// Which system it is, by libosinfo's short id; told from the media otherwise
    #[arg(long, value_name = "ID")]
    osinfo: Option<String>,
    /// Forget the domain when its guest ends
    #[arg(long)]
    transient: bool,
    /// Do not start the domain when it is installed
    #[arg(long)]
    noreboot: bool,
    /// The longest that the installer may take
    #[arg(long, value_name = "TIME", default_value = "2h", value_parser = duration::parse)]
    timeout: Duration,
    /// The longest that it may print nothing
    #[arg(long, value_name = "TIME", default_value = "20m", value_parser = duration::parse)]
    silence: Duration,
    /// What becomes of domain and disks if it fails; wipe overwrites what was made, also where
    /// that proves nothing, and certifies it
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    on_failure: Failed,
    /// Print the documents instead
    #[arg(long, value_name = "PHASE", num_args = 0..=1, default_missing_value = "all")]
    print_xml: Option<Phase>,
}

impl Verb for Install {
    const NAME: &'static str = "install";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "See what a kickstart install would do",
            "cenote install --name db --disk size=10G \
             --location kernel=vmlinuz,initrd=initrd.img --kickstart db.ks --dry-run",
        ),
        example(
            "The documents of both phases",
            "cenote install --name db --disk size=10G --location kernel=vmlinuz,initrd=initrd.img \
             --kickstart db.ks --print-xml",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let request = self.request(context)?;
        let node = context.node()?;
        let prepared = node.install_prepare(&request)?;
        if let Some(phase) = self.print_xml {
            let which = match phase {
                Phase::One => Print::One,
                Phase::Two => Print::Two,
                Phase::All => Print::All,
            };
            let text = prepared.phases.print(which);
            let text = text.map_err(|error| Failure::new(Code::E0702, error.to_string()))?;
            return out::write(&text);
        }
        for note in &prepared.notes {
            context.note(&format!("note: {note}"));
        }
        if !context.go_on(&plan(&request, &prepared))? {
            return Ok(());
        }
        install(context, &node, prepared)
    }
}

fn install(context: &Context, node: &Node, prepared: Prepared) -> Result<()> {
    let interrupt = Interrupt::install().map_err(|error| {
        Failure::new(Code::E0101, "cannot install signal handlers").source(error)
    })?;
    let watch = Watch {
        context,
        interrupt: interrupt.clone(),
        last: Mutex::new(None),
    };
    let installed = node.install(prepared, &watch).map_err(|error| {
        let failure = Failure::from(error);
        if failure.code() == Code::E0009 && interrupt.is_asked() {
            return failure.exit_with(interrupt.exit());
        }
        failure
    })?;
    let name = &installed.name;
    if let Some(note) = &installed.note {
        context.note(&format!(
            "note: {note}; start it: cenote start {}",
            quoted(name)
        ));
    }
    if !installed.confirmed {
        context
            .note("note: the guest reset as one does that is done; nothing in it said that it was");
    }
    let state = if installed.started {
        " and runs from its disk"
    } else {
        ""
    };
    let message = format!("Domain '{name}' has been installed{state}");
    context.done(&Done::new("domain", "installed", name, message))
}

/// Says on standard error what happens.
struct Watch<'a> {
    context: &'a Context,
    interrupt: Interrupt,
    /// What was said last, which is not said again.
    last: Mutex<Option<String>>,
}

impl Progress for Watch<'_> {
    fn update(&self, _done: u64, _total: u64) -> ControlFlow<()> {
        if self.interrupt.is_asked() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

impl InstallWatch for Watch<'_> {
    fn tell(&self, told: &Told) {
        let text = match told {
            Told::Volume(volume) => format!("volume {volume} created"),
            Told::PhaseOne(notes) => {
                for note in notes {
                    self.context.note(&format!("note: {note}"));
                }
                "phase 1: the installer runs".to_owned()
            }
            Told::Installer(step) => match step_text(step) {
                Some(text) => format!("installer: {text}"),
                None => return,
            },
            Told::Installed { .. } => "phase 2: installed; the domain is defined".to_owned(),
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&text) {
            self.context.note(&text);
            *last = Some(text);
        }
    }
}

fn step_text(step: &Step) -> Option<String> {
    Some(match step {
        Step::KernelStarted => "its kernel started".to_owned(),
        Step::At { stage, text } => format!("{}: {text}", stage_text(*stage)),
        Step::Count { done, of } => format!("packages: {done} of {of}"),
        Step::Asked(text) => format!("it asks: {text}"),
        Step::Trouble(text) => format!("trouble: {text}"),
        Step::Report { success: true } => "it reports success".to_owned(),
        Step::Report { success: false } => "it reports a failure".to_owned(),
    })
}

fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Boot => "boot",
        Stage::Prepare => "preparation",
        Stage::Storage => "storage",
        Stage::Packages => "packages",
        Stage::BootLoader => "boot loader",
        Stage::Configure => "configuration",
        Stage::Done => "done",
    }
}

fn plan(request: &InstallRequest, prepared: &Prepared) -> Plan {
    let name = request.name.as_str();
    let mut plan = Plan::new(Install::NAME, name);
    for (volume, format, capacity) in &prepared.new_volumes {
        let detail = format!("{}, {capacity} bytes", format.as_str());
        plan = plan.change_with("create volume", volume.to_string(), detail);
    }
    let mut lost = Vec::new();
    for (volume, holds) in &prepared.overwritten {
        let holds = holds.unwrap_or("blank");
        plan = plan.change_with("let the installer overwrite", volume.to_string(), holds);
        if holds != "blank" {
            lost.push(format!("volume {volume}, which has {holds}"));
        }
    }
    for file in &prepared.injected {
        plan = plan.change("put into the initrd", file);
    }
    if let Some(label) = prepared.seed {
        plan = plan.change("put the answer file on an image with the label", label);
    }
    let how = match &prepared.command_line {
        Some(line) => format!("kernel arguments: {line}"),
        None => "booted from its media".to_owned(),
    };
    plan = plan.change_with("run the installer in transient domain", name, how);
    if prepared.phases.two_is_persistent {
        plan = plan.change_with("define domain", name, "it boots from its disk");
    }
    if prepared.phases.start_two {
        plan = plan.change("start domain", name);
    }
    if lost.is_empty() {
        return plan;
    }
    let deed = format!("let an installer overwrite {}", lost.join(", "));
    plan.asks(Level::Ask, deed)
}

impl Install {
    fn request(&self, context: &Context) -> Result<InstallRequest> {
        let source = self.source()?;
        let name = Name::new(self.name.as_str())
            .map_err(|error| bad(format!("name '{}': {error}", self.name)))?;
        let on_failure = match self.on_failure {
            Failed::Keep => OnFailure::Keep,
            Failed::Destroy => OnFailure::Destroy,
            Failed::Wipe => OnFailure::Wipe,
        };
        let mut disks = Vec::new();
        for spec in &self.disk {
            let disk = self.disk(context, spec, disks.len())?;
            disks.push(disk);
        }
        let networks = self.network.iter().filter(|spec| *spec != "none");
        Ok(InstallRequest {
            memory: memory(&self.memory)?,
            install_memory: self.install_memory.as_deref().map(memory).transpose()?,
            vcpus: self.vcpus,
            source,
            disks,
            networks: networks.map(|spec| network(spec)).collect::<Result<_>>()?,
            inject: self.initrd_inject.clone(),
            extra_arguments: self.extra_args.join(" "),
            answer: self.answer()?,
            osinfo: self.osinfo.clone(),
            transient: self.transient,
            noreboot: self.noreboot,
            timeout: self.timeout,
            silence: self.silence,
            on_failure,
            name,
        })
    }

    fn source(&self) -> Result<InstallSource> {
        if let Some(path) = &self.cdrom {
            return Ok(InstallSource::Cdrom(path.clone()));
        }
        let refused = if self.pxe {
            Some("booting the installer from the network (--pxe)")
        } else if self.import {
            Some("importing a disk (--import)")
        } else {
            None
        };
        if let Some(what) = refused {
            return Err(not_yet(what)
                .fix("take kernel and initrd out of the media: --location ISO")
                .next("cenote install --help"));
        }
        let Some(text) = &self.location else {
            return Err(bad("there is no installer".to_owned())
                .fix("say where it is: --location")
                .next("cenote install --help"));
        };
        let location: Location = text
            .parse()
            .map_err(|error: MediaError| bad(error.to_string()))?;
        Ok(InstallSource::Location(location))
    }

    fn answer(&self) -> Result<Option<Answer>> {
        let files = [
            (AnswerKind::Kickstart, &self.kickstart),
            (AnswerKind::Preseed, &self.preseed),
            (AnswerKind::Autoinstall, &self.autoinstall),
        ];
        let found = files
            .into_iter()
            .find_map(|(kind, path)| Some((kind, path.as_ref()?)));
        let Some((kind, path)) = found else {
            return Ok(None);
        };
        Ok(Some(Answer {
            kind,
            text: document::read(path)?,
            delivery: self.delivery.map(|way| match way {
                Way::Initrd => Delivery::Initrd,
                Way::Media => Delivery::Media,
                Way::Http => Delivery::Http,
            }),
            lint: !self.no_lint,
        }))
    }

    fn disk(&self, context: &Context, spec: &str, index: usize) -> Result<InstallDisk> {
        let wrong = |why: String| bad(format!("disk '{spec}': {why}"));
        let (mut size, mut pool, mut name, mut format, mut volume) = (None, None, None, None, None);
        for part in spec.split(',') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(wrong(format!("'{part}' is no KEY=VALUE")));
            };
            let place = match key {
                "size" => &mut size,
                "pool" => &mut pool,
                "name" => &mut name,
                "format" => &mut format,
                "vol" => &mut volume,
                _ => {
                    let known = "size, pool, name, format and vol";
                    return Err(wrong(format!("'{key}' is not known; {known} are")));
                }
            };
            if value.is_empty() || place.replace(value).is_some() {
                return Err(wrong(format!("'{key}' is given once and is not empty")));
            }
        }
        if let Some(volume) = volume {
            if size.is_some() || pool.is_some() || name.is_some() || format.is_some() {
                return Err(wrong("vol= takes a volume as it is".to_owned()));
            }
            let node = context.node()?;
            return Ok(InstallDisk::Existing(
                context.volume(&node, volume, None)?.id(),
            ));
        }
        let Some(size) = size else {
            return Err(wrong("size= makes one, vol= takes one".to_owned()));
        };
        let format = match format {
            None | Some("qcow2") => Format::Qcow2,
            Some("raw") => Format::Raw,
            Some(other) => return Err(wrong(format!("'{other}' is neither qcow2 nor raw"))),
        };
        // As virt-install names them.
        let number = if index == 0 {
            String::new()
        } else {
            format!("-{index}")
        };
        let default = format!("{}{number}.{}", self.name, format.as_str());
        Ok(InstallDisk::New {
            pool: pool.unwrap_or("default").to_owned(),
            name: name.map_or(default, str::to_owned),
            format,
            capacity: scaled(size, 30)?,
        })
    }
}

fn network(spec: &str) -> Result<NetworkSource> {
    match spec.split_once('=') {
        None if spec == "user" => Ok(NetworkSource::User),
        Some(("network", name)) if !name.is_empty() => Ok(NetworkSource::Network(name.to_owned())),
        Some(("bridge", name)) if !name.is_empty() => Ok(NetworkSource::Bridge(name.to_owned())),
        _ => Err(bad(format!(
            "network '{spec}': user, none, network=NAME or bridge=NAME is expected"
        ))),
    }
}

/// A size whose unit is a power of two if it is left out.
fn scaled(text: &str, shift: u32) -> Result<u64> {
    if let Ok(number) = text.parse::<u64>() {
        let bytes = number.checked_mul(1 << shift);
        return bytes.ok_or_else(|| bad(format!("size '{text}' is too large")));
    }
    parse_size(text)
}

fn memory(text: &str) -> Result<Memory> {
    Ok(Memory::from_bytes(scaled(text, 20)?))
}

fn bad(what: String) -> Failure {
    Failure::new(Code::E0702, what)
        .fix("correct the command line")
        .next("cenote install --help")
}

fn not_yet(what: &str) -> Failure {
    Failure::new(Code::E0701, format!("{what} is not possible yet"))
}
