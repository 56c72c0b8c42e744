//! Commands on the disks, drives, cards and screen of a domain.

use std::path::PathBuf;
use std::time::Duration;

use cenote_engine::{MediumChange, Scope, scan_code};
use cenote_model::Document as _;
use cenote_model::domain::{
    CacheMode, Disk, DiskDevice, DiskDriver, DiskKind, DiskSource, DiskTarget, TargetBus,
};
use cenote_model::volume::Format;
use clap::{Args, ValueEnum};

use super::{ScopeChoice, Target};
use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::{self, quoted};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{AddressItem, AddressItems, DiskStatItem, DomainStatItem, Done};

/// A path as documents have it.
fn absolute(path: &std::path::Path) -> Result<String> {
    let absolute = std::path::absolute(path).map_err(|error| {
        Failure::new(Code::E0608, format!("'{}': {error}", path.display()))
            .fix("name a file")
            .next("cenote help")
    })?;
    Ok(absolute.display().to_string())
}

/// Change the disc in a CD-ROM drive
#[derive(Args, Debug)]
pub(super) struct ChangeMedia {
    #[command(flatten)]
    target: Target,
    /// The drive: its target, such as hdc, or the disc that is in it
    path: String,
    /// The disc, an image or a device of the host
    #[arg(value_hint = clap::ValueHint::FilePath)]
    source: Option<PathBuf>,
    /// Take the disc out; this is the default without a disc
    #[arg(long, conflicts_with_all = ["insert", "update", "source"])]
    eject: bool,
    /// Put the disc into an empty drive
    #[arg(long, requires = "source")]
    insert: bool,
    /// Put the disc in the place of the one that is there; this is the default with a disc
    #[arg(long, conflicts_with = "insert", requires = "source")]
    update: bool,
    #[command(flatten)]
    scope: ScopeChoice,
    /// Even if the guest has locked the tray
    #[arg(long)]
    force: bool,
    /// Accepted; whether the disc is a device is looked at
    #[arg(long)]
    block: bool,
}

impl Verb for ChangeMedia {
    const NAME: &'static str = "change-media";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Put another disc into the drive",
        "cenote change-media web hdc /srv/iso/debian.iso --config",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let source = self.source.as_deref().map(absolute).transpose()?;
        let (change, done) = match source {
            None => (MediumChange::Eject, "ejected"),
            Some(path) if self.insert => (MediumChange::Insert(path), "inserted"),
            Some(path) => (MediumChange::Update(path), "updated"),
        };
        let scope = self.scope.scope();
        let plan = Plan::new(Self::NAME, &info.name).change_with(
            "change the medium of drive",
            &self.path,
            format!("of domain {}", info.name),
        );
        let deed = || node.domain_change_media(&info.uuid, scope, &self.path, &change, self.force);
        if context.consent.dry_run {
            deed()?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        deed()?;
        let message = match change {
            MediumChange::Eject => "Successfully ejected media.",
            MediumChange::Insert(_) => "Successfully inserted media.",
            MediumChange::Update(_) => "Successfully updated media.",
        };
        context.done(&Done::new("medium", done, &info.name, message))
    }
}

/// What `--type` of `attach-disk` can say.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DeviceChoice {
    /// A disk.
    #[default]
    Disk,
    /// A CD-ROM drive.
    Cdrom,
}

/// What `--mode` of `attach-disk` can say.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum AccessChoice {
    /// The guest cannot write.
    Readonly,
    /// Several guests write; refused where it is started.
    Shareable,
}

/// Add a disk or drive to a domain's definition
#[derive(Args, Debug)]
pub(super) struct AttachDisk {
    #[command(flatten)]
    target: Target,
    /// The image: a path, or POOL/VOLUME
    source: String,
    /// Its name in the guest, such as vdb
    disk: String,
    /// Its bus, virtio or ide; that of the name unless given
    #[arg(long, value_name = "BUS")]
    targetbus: Option<String>,
    /// Format of the image: raw, which is the default, or qcow2; a volume's is known
    #[arg(long, value_name = "FORMAT")]
    subdriver: Option<String>,
    /// Accepted; there is one driver
    #[arg(long, hide = true)]
    driver: Option<String>,
    /// How the host caches: none, writeback, writethrough, directsync or unsafe
    #[arg(long, value_name = "MODE")]
    cache: Option<String>,
    /// What the guest sees
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t)]
    device: DeviceChoice,
    /// Who may write
    #[arg(long, value_enum)]
    mode: Option<AccessChoice>,
    /// Serial number
    #[arg(long)]
    serial: Option<String>,
    #[command(flatten)]
    scope: ScopeChoice,
    /// As --config
    #[arg(long)]
    persistent: bool,
    /// Print the element and change nothing
    #[arg(long)]
    print_xml: bool,
}

impl AttachDisk {
    fn disk(&self) -> Result<Disk> {
        let wrong = |what: &str, given: &str, expected: &str| {
            Failure::new(Code::E0608, format!("{what} '{given}' is not known"))
                .fix(expected)
                .next(format!("cenote help {}", Self::NAME))
        };
        let bus = match self.targetbus.as_deref() {
            None => None,
            Some("virtio") => Some(TargetBus::Virtio),
            Some("ide") => Some(TargetBus::Ide),
            Some(other) => return Err(wrong("bus", other, "use virtio or ide")),
        };
        let format = match self.subdriver.as_deref() {
            None => None,
            Some("raw") => Some(Format::Raw),
            Some("qcow2") => Some(Format::Qcow2),
            Some(other) => return Err(wrong("format", other, "use raw or qcow2")),
        };
        let cache = match self.cache.as_deref() {
            None => None,
            Some("none") => Some(CacheMode::None),
            Some("writeback") => Some(CacheMode::Writeback),
            Some("writethrough") => Some(CacheMode::Writethrough),
            Some("directsync") => Some(CacheMode::Directsync),
            Some("unsafe") => Some(CacheMode::Unsafe),
            Some(other) => {
                let modes = "use none, writeback, writethrough, directsync or unsafe";
                return Err(wrong("cache mode", other, modes));
            }
        };
        let driver = (format.is_some() || cache.is_some()).then(|| DiskDriver {
            name: Some("qemu".to_owned()),
            format,
            cache,
            ..DiskDriver::default()
        });
        let (kind, source) = self.source()?;
        Ok(Disk {
            kind,
            device: match self.device {
                DeviceChoice::Disk => DiskDevice::Disk,
                DeviceChoice::Cdrom => DiskDevice::Cdrom,
            },
            driver,
            source: Some(source),
            target: DiskTarget {
                dev: self.disk.clone(),
                bus,
                ..DiskTarget::default()
            },
            readonly: self.mode == Some(AccessChoice::Readonly),
            shareable: self.mode == Some(AccessChoice::Shareable),
            serial: self.serial.clone(),
            ..Disk::default()
        })
    }

    fn source(&self) -> Result<(DiskKind, DiskSource)> {
        use std::os::unix::fs::FileTypeExt as _;
        let mut source = DiskSource::default();
        let volume = self.source.split_once('/').filter(|(pool, volume)| {
            !pool.is_empty() && !volume.contains('/') && !matches!(*pool, "." | "..")
        });
        if let Some((pool, volume)) = volume {
            source.pool = Some(pool.to_owned());
            source.volume = Some(volume.to_owned());
            return Ok((DiskKind::Volume, source));
        }
        let path = absolute(std::path::Path::new(&self.source))?;
        let is_device =
            std::fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        let path = Some(path);
        Ok(match is_device {
            true => {
                source.dev = path;
                (DiskKind::Block, source)
            }
            false => {
                source.file = path;
                (DiskKind::File, source)
            }
        })
    }
}

/// Where a device that is plugged goes to.
fn plugged(scope: ScopeChoice, persistent: bool) -> Scope {
    match persistent && !scope.live {
        true => Scope::Config,
        false => scope.scope(),
    }
}

impl Verb for AttachDisk {
    const NAME: &'static str = "attach-disk";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "A second disk from the next start on",
            "cenote attach-disk web default/data.qcow2 vdb --config",
        ),
        example(
            "A disk that lies outside of all pools",
            "cenote attach-disk web /srv/data.qcow2 vdc --subdriver qcow2 --config",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let disk = self.disk()?;
        if self.print_xml {
            return out::write(&disk_text(&disk));
        }
        let scope = plugged(self.scope, self.persistent);
        let plan = Plan::new(Self::NAME, &info.name).change_with(
            "add disk",
            &self.disk,
            format!("to domain {}", info.name),
        );
        if context.consent.dry_run {
            node.domain_attach_disk(&info.uuid, scope, &disk)?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.domain_attach_disk(&info.uuid, scope, &disk)?;
        let message = "Disk attached successfully";
        context.done(&Done::new("disk", "attached", self.disk, message))
    }
}

/// The element of a disk alone.
fn disk_text(disk: &Disk) -> String {
    let mut domain = cenote_model::domain::Domain::default();
    domain.devices.disks.push(disk.clone());
    let text = domain.to_xml();
    let start = text.find("<disk").unwrap_or_default();
    let end = text
        .find("</disk>")
        .map_or(text.len(), |at| at + "</disk>\n".len());
    let element = text.get(start..end).unwrap_or_default();
    let lines = element
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Take a disk or drive out of a domain's definition; its image stays
#[derive(Args, Debug)]
pub(super) struct DetachDisk {
    #[command(flatten)]
    target: Target,
    /// The disk: its target, such as vdb, or the path of its image
    disk: String,
    #[command(flatten)]
    scope: ScopeChoice,
    /// As --config
    #[arg(long)]
    persistent: bool,
}

impl Verb for DetachDisk {
    const NAME: &'static str = "detach-disk";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Without that disk from the next start on",
        "cenote detach-disk web vda --config",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let scope = plugged(self.scope, self.persistent);
        let plan = Plan::new(Self::NAME, &info.name).change_with(
            "take out disk",
            &self.disk,
            format!("of domain {}", info.name),
        );
        if context.consent.dry_run {
            node.domain_detach_disk(&info.uuid, scope, &self.disk)?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let image = node.domain_detach_disk(&info.uuid, scope, &self.disk)?;
        if let Some(image) = image {
            context.note(&format!("kept: {}", quoted(&image)));
        }
        let message = "Disk detached successfully";
        context.done(&Done::new("disk", "detached", self.disk, message))
    }
}

/// Keep a picture of what a running domain's screen shows, as PNG
#[derive(Args, Debug)]
pub(super) struct Screenshot {
    #[command(flatten)]
    target: Target,
    /// The file; DOMAIN-TIME.png unless given
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Number of the screen; there is one, 0
    #[arg(long, default_value_t = 0)]
    screen: u32,
}

impl Verb for Screenshot {
    const NAME: &'static str = "screenshot";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "What does it show?",
        "cenote screenshot web web.png",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        if self.screen != 0 {
            return Err(Failure::new(Code::E0605, "the machine has one screen")
                .fix("leave --screen out")
                .next(format!("cenote screenshot {}", quoted(&info.name))));
        }
        let file = self.file.unwrap_or_else(|| {
            let now = jiff::Zoned::now().strftime("%Y-%m-%d-%H:%M:%S");
            PathBuf::from(format!("{}-{now}.png", info.name))
        });
        let shown = file.display().to_string();
        let plan = Plan::new(Self::NAME, &info.name).change_with(
            "keep a picture of domain",
            &info.name,
            format!("in {shown}"),
        );
        if context.consent.dry_run {
            node.domain_screenshot(&info.uuid, &file)?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.domain_screenshot(&info.uuid, &file)?;
        let message = format!("Screenshot saved to {shown}, with type of image/png");
        context.done(&Done::new("screenshot", "saved", &info.name, message).at(shown))
    }
}

/// Press keys of a running domain's keyboard, all together
#[derive(Args, Debug)]
pub(super) struct SendKey {
    #[command(flatten)]
    target: Target,
    /// Set of the codes: linux (names such as KEY_A, or their numbers) or xt (scan codes of set 1)
    #[arg(long, value_name = "SET", default_value = "linux")]
    codeset: String,
    /// For how long they are held, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100)]
    holdtime: u16,
    /// The keys
    #[arg(required = true)]
    keys: Vec<String>,
}

impl SendKey {
    fn codes(&self) -> Result<Vec<u8>> {
        let code = |key: &String| match self.codeset.as_str() {
            "linux" => scan_code(key),
            "xt" => key.parse().ok(),
            _ => None,
        };
        if !matches!(self.codeset.as_str(), "linux" | "xt") {
            let text = format!("code set '{}' is not known", self.codeset);
            return Err(Failure::new(Code::E0608, text)
                .fix("use linux or xt")
                .next("cenote help send-key"));
        }
        let known = |key: &String| {
            code(key).ok_or_else(|| {
                Failure::new(Code::E0608, format!("the keyboard has no key '{key}'"))
                    .fix("use names such as KEY_A, KEY_ENTER, KEY_LEFTCTRL, KEY_F1, KEY_DELETE")
                    .next("cenote help send-key")
            })
        };
        self.keys.iter().map(known).collect()
    }
}

impl Verb for SendKey {
    const NAME: &'static str = "send-key";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Ctrl-Alt-Del",
        "cenote send-key web KEY_LEFTCTRL KEY_LEFTALT KEY_DELETE",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let codes = self.codes()?;
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let held = Duration::from_millis(self.holdtime.into());
        if context.consent.dry_run {
            node.domain_send_keys(&info.uuid, &codes, held)?;
        }
        let plan = Plan::new(Self::NAME, &info.name).change("press keys of domain", &info.name);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.domain_send_keys(&info.uuid, &codes, held)?;
        let message = format!("Keys pressed on domain '{}'", info.name);
        context.done(&Done::new("domain", "keyed", &info.name, message))
    }
}

/// Print what the guest of a running domain has done with a disk
#[derive(Args, Debug)]
pub(super) struct DomBlkStat {
    #[command(flatten)]
    target: Target,
    /// The disk: its target, such as vda, or the path of its image; all of them together unless
    /// given
    device: Option<String>,
    /// Accepted; names are for people anyway
    #[arg(long)]
    human: bool,
}

impl Verb for DomBlkStat {
    const NAME: &'static str = "domblkstat";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] =
        &[example("Requests and bytes", "cenote domblkstat web vda")];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let mut disks = node.domain_disk_stats(&info.uuid)?;
        if let Some(device) = &self.device {
            disks.retain(|disk| {
                disk.target == *device || disk.source.as_deref() == Some(device.as_str())
            });
        }
        let found = disks.len();
        let counted: Vec<_> = disks.into_iter().filter_map(|disk| disk.status).collect();
        if counted.is_empty() && (found == 0 || self.device.is_some()) {
            let device = self.device.as_deref().unwrap_or("(all)");
            let text = match found {
                0 => format!("domain '{}' has no disk '{device}'", info.name),
                _ => {
                    format!("what the guest does with '{device}', which is on IDE, is not counted")
                }
            };
            return Err(Failure::new(Code::E0608, text)
                .fix("name one of its virtio disks")
                .next(format!("cenote domblklist {}", quoted(&info.name))));
        }
        context.print(&DiskStatItem::sum(
            self.device.unwrap_or_default(),
            &counted,
        ))
    }
}

/// List the addresses that the guest of a running domain was given
#[derive(Args, Debug)]
pub(super) struct DomIfAddr {
    #[command(flatten)]
    target: Target,
    /// The card: its device on the host, or its Ethernet address
    interface: Option<String>,
    /// Print name and address in each line
    #[arg(long)]
    full: bool,
    /// Where to ask: 'lease', the user-mode network's, is what there is
    #[arg(long, default_value = "lease")]
    source: String,
}

impl Verb for DomIfAddr {
    const NAME: &'static str = "domifaddr";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "Where the guest can be reached",
        "cenote domifaddr web",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        if self.source != "lease" {
            let text = format!("addresses cannot be asked of '{}'", self.source);
            return Err(Failure::new(Code::E0605, text)
                .fix("leave --source out: leases of the user-mode network are listed")
                .next(format!("cenote domifaddr {}", quoted(&info.name))));
        }
        let cards = node.domain_cards(&info.uuid, Scope::Live)?;
        let mut items = Vec::new();
        for card in cards {
            let mac = card.mac.clone().unwrap_or_default();
            let wanted = self.interface.as_deref();
            if wanted.is_some_and(|wanted| wanted != mac && card.device.as_deref() != Some(wanted))
            {
                continue;
            }
            items.extend(card.leases.into_iter().map(|lease| AddressItem {
                interface: card.device.clone(),
                mac: lease.mac,
                protocol: "ipv4".to_owned(),
                address: format!("{}/24", lease.address),
                host_name: lease.host_name,
            }));
        }
        context.print(&AddressItems(items))
    }
}

/// Print all that is counted of domains
#[derive(Args, Debug)]
pub(super) struct DomStats {
    /// The domains; all unless given
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::domains))]
    domains: Vec<String>,
    /// Running domains only
    #[arg(long)]
    list_running: bool,
    /// State and reason
    #[arg(long)]
    state: bool,
    /// Time of the host's processors
    #[arg(long)]
    cpu_total: bool,
    /// Memory
    #[arg(long)]
    balloon: bool,
    /// Processors
    #[arg(long)]
    vcpu: bool,
    /// Network cards
    #[arg(long)]
    interface: bool,
    /// Disks
    #[arg(long)]
    block: bool,
}

impl Verb for DomStats {
    const NAME: &'static str = "domstats";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("All of one domain", "cenote domstats web"),
        example(
            "Disks of all that run",
            "cenote domstats --list-running --block",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let mut infos = Vec::new();
        for name in &self.domains {
            infos.push(context.domain(&node, name)?);
        }
        if self.domains.is_empty() {
            infos = node.domains()?;
        }
        if self.list_running {
            infos.retain(|info| info.id.is_some());
        }
        let groups = [
            ("state.", self.state),
            ("cpu.", self.cpu_total),
            ("balloon.", self.balloon),
            ("vcpu.", self.vcpu),
            ("net.", self.interface),
            ("block.", self.block),
        ];
        let some = groups.iter().any(|(_, wanted)| *wanted);
        let shown = |key: &str| {
            let mut groups = groups.iter();
            !some || groups.any(|(group, wanted)| *wanted && key.starts_with(group))
        };
        let mut items = Vec::new();
        for info in infos {
            let mut item = DomainStatItem::new(info.name, &node.domain_stats(&info.uuid)?);
            item.values.retain(|(key, _)| shown(key));
            items.push(item);
        }
        context.print(&crate::view::DomainStatItems(items))
    }
}
