//! What goes where.

use thiserror::Error as ThisError;

use crate::answer::Kind;
use crate::initrd::{InitrdError, Injected};
use crate::iso::{WriteError, Writer};

/// Longest command line in bytes that x86 kernels take whole (`COMMAND_LINE_SIZE` is 2048 with
/// the zero at its end).
pub const MAX_COMMAND_LINE: usize = 2047;

/// How the installer is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Boot {
    /// Kernel and initrd are handed to the machine.
    Direct,
    /// From the media's own boot loader.
    Cdrom,
    /// By PXE from our server.
    Pxe,
    /// Not at all: the disk has a system already.
    Import,
}

/// How the answer file travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// In the initrd.
    Initrd,
    /// On an image with a label that the installer looks for.
    Media,
    /// From a server.
    Http,
}

/// Where the installer finds itself and its packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packages {
    /// The answer file or the user says.
    Given,
    /// The install image is in a drive; its label.
    Cdrom(String),
    /// A tree on a server.
    Url(String),
}

/// The answer file and what belongs to it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AnswerFiles {
    /// The answer file; of cloud-init and autoinstall the user data.
    pub answer: String,
    /// cloud-init's meta data; made of the instance id if absent.
    pub meta_data: Option<String>,
    /// cloud-init's network configuration.
    pub network_config: Option<String>,
    /// cloud-init's vendor data.
    pub vendor_data: Option<String>,
}

impl std::fmt::Debug for AnswerFiles {
    /// Without their content, which has hashes of passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AnswerFiles({} bytes)", self.answer.len())
    }
}

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Kind of the answer file.
    pub kind: Kind,
    /// How the installer is booted.
    pub boot: Boot,
    /// How the file travels.
    pub delivery: Delivery,
    /// The files.
    pub files: AnswerFiles,
    /// Where packages come from.
    pub packages: Packages,
    /// Address of this install's place on our server, as the guest sees it, with a slash at
    /// its end; needed for [`Delivery::Http`].
    pub server: Option<String>,
    /// Identity of the instance, for cloud-init.
    pub instance: String,
    /// What the user adds to the command line.
    pub extra_arguments: String,
}

/// An image with the answer file.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    /// Its label.
    pub label: &'static str,
    /// Its bytes.
    pub image: Vec<u8>,
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seed({}, {} bytes)", self.label, self.image.len())
    }
}

/// A file for the server.
#[derive(Clone, PartialEq, Eq)]
pub struct Served {
    /// Name below the install's place.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Served({:?}, {} bytes)", self.name, self.bytes.len())
    }
}

/// What goes where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The kernel's command line; none where the media's own boot loader has it.
    pub command_line: Option<String>,
    /// Files for the initrd.
    pub injected: Vec<Injected>,
    /// The image with the answer file.
    pub seed: Option<Seed>,
    /// Files for the server.
    pub served: Vec<Served>,
    /// SMBIOS serial number by which cloud-init finds its server.
    pub smbios_serial: Option<String>,
}

/// Why there is no way.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum PlanError {
    /// No installer would take it so.
    #[error("{kind} by {delivery:?} with {boot:?} boot: {reason}")]
    NoWay {
        /// Kind of the answer file.
        kind: Kind,
        /// How it would travel.
        delivery: Delivery,
        /// How the installer would be booted.
        boot: Boot,
        /// Why not, and what would do.
        reason: &'static str,
    },
    /// Delivery by a server without one.
    #[error(
        "the guest reaches no server of ours; deliver the answer file in the initrd or on media"
    )]
    NoServer,
    /// The command line cannot be handed over.
    #[error("the kernel's command line {0}")]
    CommandLine(&'static str),
    /// A file cannot be put into the initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The image cannot be made.
    #[error(transparent)]
    Seed(#[from] WriteError),
}

/// Says what goes where.
///
/// # Errors
/// [`PlanError::NoWay`] with the reason, and what making the parts says.
pub fn plan(request: &Request) -> Result<Plan, PlanError> {
    let mut plan = Plan::default();
    let mut arguments = match request.kind {
        Kind::Kickstart => kickstart(request, &mut plan)?,
        Kind::Preseed => preseed(request, &mut plan)?,
        Kind::Autoinstall => autoinstall(request, &mut plan)?,
        Kind::CloudInit => cloud_init(request, &mut plan)?,
    };
    if matches!(request.boot, Boot::Direct | Boot::Pxe) {
        let extra = request.extra_arguments.trim();
        // The last console is /dev/console; a user who names any decides on all of them.
        if !extra
            .split_whitespace()
            .any(|word| word.starts_with("console="))
        {
            // What debian-installer finds after the dashes goes to the installed system too.
            if request.kind == Kind::Preseed {
                arguments.push("---".to_owned());
            }
            arguments.extend(["console=tty0".to_owned(), "console=ttyS0".to_owned()]);
        }
        let first = if request.kind == Kind::Preseed {
            arguments.iter().position(|word| word == "---")
        } else {
            None
        };
        let at = first.unwrap_or(arguments.len());
        arguments.splice(at..at, extra.split_whitespace().map(str::to_owned));
        plan.command_line = Some(join_arguments(&arguments)?);
    } else if !request.extra_arguments.trim().is_empty() {
        return Err(PlanError::CommandLine(
            "is the media's own where its boot loader starts the kernel; boot with --location",
        ));
    }
    Ok(plan)
}

/// Joins arguments to a command line.
///
/// # Errors
/// [`PlanError::CommandLine`] where it is too long or has control characters.
pub fn join_arguments(arguments: &[String]) -> Result<String, PlanError> {
    let line = arguments.join(" ");
    if line.contains(|c: char| c.is_control()) {
        return Err(PlanError::CommandLine("has a control character"));
    }
    if line.len() > MAX_COMMAND_LINE {
        return Err(PlanError::CommandLine("has over 2047 bytes"));
    }
    Ok(line)
}

impl Request {
    fn no_way(&self, reason: &'static str) -> PlanError {
        PlanError::NoWay {
            kind: self.kind,
            delivery: self.delivery,
            boot: self.boot,
            reason,
        }
    }

    fn address(&self, name: &str) -> Result<String, PlanError> {
        let server = self.server.as_ref().ok_or(PlanError::NoServer)?;
        Ok(format!("{server}{name}"))
    }

    fn serve(&self, plan: &mut Plan, name: &str, text: &str) {
        plan.served.push(Served {
            name: name.to_owned(),
            bytes: text.as_bytes().to_vec(),
        });
    }

    fn installs(&self) -> Result<(), PlanError> {
        match self.boot {
            Boot::Import => Err(self.no_way("an imported disk runs no installer; use cloud-init")),
            _ => Ok(()),
        }
    }
}

fn kickstart(request: &Request, plan: &mut Plan) -> Result<Vec<String>, PlanError> {
    request.installs()?;
    let answer = &request.files.answer;
    let mut arguments = Vec::new();
    match request.delivery {
        Delivery::Media => {
            // Anaconda loads it from a volume of this label by itself, also without arguments.
            plan.seed = Some(seed("OEMDRV", &[("ks.cfg", answer)])?);
            arguments.push("inst.ks=hd:LABEL=OEMDRV:/ks.cfg".to_owned());
        }
        _ if request.boot == Boot::Cdrom => {
            return Err(request.no_way(
                "the media's boot loader cannot be told of it; deliver it on media (OEMDRV)",
            ));
        }
        Delivery::Initrd => {
            plan.injected
                .push(Injected::new("ks.cfg", answer.as_bytes().to_vec())?);
            arguments.push("inst.ks=file:/ks.cfg".to_owned());
        }
        Delivery::Http => {
            request.serve(plan, "ks.cfg", answer);
            arguments.push(format!("inst.ks={}", request.address("ks.cfg")?));
            arguments.push("ip=dhcp".to_owned());
        }
    }
    match &request.packages {
        Packages::Given => {}
        Packages::Cdrom(label) => {
            arguments.push(format!("inst.stage2=hd:LABEL={}", escape_label(label)));
        }
        Packages::Url(url) => {
            arguments.push(format!("inst.repo={url}"));
            if !arguments.iter().any(|word| word == "ip=dhcp") {
                arguments.push("ip=dhcp".to_owned());
            }
        }
    }
    // A failure in the initrd ends the guest; a shell there would wait for ever.
    arguments.extend(["rd.shell=0".to_owned(), "rd.emergency=poweroff".to_owned()]);
    Ok(arguments)
}

/// A label in `hd:LABEL=`, where blanks are written as udev writes them.
fn escape_label(label: &str) -> String {
    label.replace(' ', "\\x20")
}

fn preseed(request: &Request, plan: &mut Plan) -> Result<Vec<String>, PlanError> {
    request.installs()?;
    if request.boot == Boot::Cdrom {
        return Err(request
            .no_way("debian-installer looks for no answers on other media; boot with --location"));
    }
    let answer = &request.files.answer;
    let mut arguments = vec!["auto=true".to_owned(), "priority=critical".to_owned()];
    match request.delivery {
        Delivery::Initrd => {
            plan.injected
                .push(Injected::new("preseed.cfg", answer.as_bytes().to_vec())?);
            arguments.push("preseed/file=/preseed.cfg".to_owned());
        }
        Delivery::Http => {
            request.serve(plan, "preseed.cfg", answer);
            arguments.push(format!("url={}", request.address("preseed.cfg")?));
            // These are asked before there is a network to fetch the answers by.
            for question in [
                "debian-installer/locale",
                "keyboard-configuration/xkb-keymap",
            ] {
                if let Some(value) = answer_to(answer, question) {
                    let short = question.replace("debian-installer/", "");
                    arguments.push(format!("{short}={value}"));
                }
            }
            arguments.push("interface=auto".to_owned());
            if let Some(value) = answer_to(answer, "netcfg/get_hostname") {
                arguments.push(format!("hostname={value}"));
            }
        }
        Delivery::Media => {
            return Err(request.no_way(
                "debian-installer looks for no answers on other media; deliver it in the initrd",
            ));
        }
    }
    Ok(arguments)
}

/// The one-word answer to a question of a preseed file.
fn answer_to<'a>(text: &'a str, question: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let found = words.next() == Some("d-i") && words.next() == Some(question);
        let value = words.nth(1)?;
        let plain = value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._@-".contains(&b));
        (found && plain).then_some(value)
    })
}

fn autoinstall(request: &Request, plan: &mut Plan) -> Result<Vec<String>, PlanError> {
    request.installs()?;
    if request.boot == Boot::Cdrom {
        return Err(request.no_way(
            "without 'autoinstall' on the kernel's command line the installer asks whether to go \
             on; boot with --location",
        ));
    }
    let mut arguments = vec!["autoinstall".to_owned()];
    match request.delivery {
        Delivery::Media => plan.seed = Some(cidata(request)?),
        Delivery::Http => {
            serve_cidata(request, plan);
            arguments.push(format!("ds=nocloud-net;s={}", request.address("")?));
            arguments.push("ip=dhcp".to_owned());
        }
        Delivery::Initrd => {
            return Err(request.no_way(
                "Subiquity runs from the media, where the initrd is gone; deliver it on media \
                 (cidata)",
            ));
        }
    }
    if let Packages::Url(url) = &request.packages {
        // casper takes the whole image into memory.
        arguments.push(format!("url={url}"));
    }
    Ok(arguments)
}

fn cloud_init(request: &Request, plan: &mut Plan) -> Result<Vec<String>, PlanError> {
    if request.boot != Boot::Import {
        return Err(request.no_way("user data are for installed images (--import)"));
    }
    match request.delivery {
        Delivery::Media => plan.seed = Some(cidata(request)?),
        Delivery::Http => {
            serve_cidata(request, plan);
            // The word that cloud-init knows since 0.7; 24.1 and later take it too.
            plan.smbios_serial = Some(format!("ds=nocloud-net;s={}", request.address("")?));
        }
        Delivery::Initrd => {
            return Err(request.no_way("the image has its own initrd; deliver it on media"));
        }
    }
    Ok(Vec::new())
}

fn meta_data(request: &Request) -> String {
    match &request.files.meta_data {
        Some(text) => text.clone(),
        None => format!("instance-id: {}\n", request.instance),
    }
}

fn cidata(request: &Request) -> Result<Seed, PlanError> {
    let meta_data = meta_data(request);
    let files = &request.files;
    let mut list = vec![
        ("user-data", files.answer.as_str()),
        ("meta-data", &meta_data),
    ];
    if let Some(text) = &files.network_config {
        list.push(("network-config", text));
    }
    if let Some(text) = &files.vendor_data {
        list.push(("vendor-data", text));
    }
    seed("cidata", &list)
}

fn serve_cidata(request: &Request, plan: &mut Plan) {
    request.serve(plan, "user-data", &request.files.answer);
    request.serve(plan, "meta-data", &meta_data(request));
    // It is asked for in any case, and a refusal is waited on.
    let vendor_data = request.files.vendor_data.as_deref().unwrap_or_default();
    request.serve(plan, "vendor-data", vendor_data);
    if let Some(text) = &request.files.network_config {
        request.serve(plan, "network-config", text);
    }
}

fn seed(label: &'static str, files: &[(&str, &str)]) -> Result<Seed, PlanError> {
    let mut writer = Writer::new(label)?;
    for (name, text) in files {
        writer.add(name, text.as_bytes().to_vec())?;
    }
    Ok(Seed {
        label,
        image: writer.finish(),
    })
}
