//! Before anything is changed: media read, answer file looked over, documents made.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cenote_image::{Format, Image};
use cenote_model::domain::{MacAddress, TargetBus};
use cenote_model::volume::Format as DiskFormat;
use cenote_model::{Document as _, Memory};
use cenote_pools::{Error as StorageError, VolumeId};
use cenote_provision::answer::judge::{Judges, Verdict as Judged};
use cenote_provision::answer::secret::Secret;
use cenote_provision::answer::{self, Expect, Hooks, Kind, MAX_BYTES, Severity};
use cenote_provision::deliver::{
    self, AnswerFiles, Boot, Delivery, Packages, Plan as DeliveryPlan,
};
use cenote_provision::initrd::Injected;
use cenote_provision::install::{
    Contents, Disk, DiskSource, InstallPaths, Method, Network, Phases, Request, contents,
    install_memory, phases,
};
use cenote_provision::iso::ReadAt;
use cenote_provision::media::osinfo::Database;
use cenote_provision::media::{Location, Media, Tree};
use uuid::Uuid;

use super::error::Error as InstallError;
use super::files::{INSTALLER_LOG, SERIAL_LOG, at};
use super::protocol::{Install, InstallVolume};
use super::request::{Answer, InstallDisk, InstallRequest, InstallSource};
use crate::domains::Error as DomainError;
use crate::error::Result;
use crate::node::Node;
use crate::volumes::NewVolume;

/// Names of work files.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd";
pub(super) const SEED: &str = "seed.iso";
pub(super) const MARKER: &str = "marker";

/// An install that could be begun.
#[derive(Debug)]
pub struct Prepared {
    /// The documents of both phases.
    pub phases: Phases,
    /// The kernel's command line in phase one; none where the media's own boot loader has it.
    pub command_line: Option<String>,
    /// Volumes that will be made, with format and size in bytes.
    pub new_volumes: Vec<(VolumeId, Format, u64)>,
    /// Volumes that are there, and what of them the installer may destroy.
    pub overwritten: Vec<(VolumeId, Option<&'static str>)>,
    /// Files that go into the initrd.
    pub injected: Vec<String>,
    /// Label of the image that the answer file is on, if it is on one.
    pub seed: Option<&'static str>,
    /// What the user is to know.
    pub notes: Vec<String>,
    pub(super) install: Install,
    pub(super) timeout: std::time::Duration,
    /// What kernel and initrd are taken out of; none where the machine boots the media.
    pub(super) media: Option<Media>,
    pub(super) volumes: Vec<(String, NewVolume)>,
    pub(super) files: Vec<Injected>,
    pub(super) seed_image: Option<Vec<u8>>,
}

/// A volume as its guest would see it.
struct Seen(Image);

impl ReadAt for Seen {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset).map_err(io::Error::other)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }
}

/// The answer file, ready to travel.
struct Ready {
    plan: DeliveryPlan,
    token: Option<String>,
}

impl Node {
    /// Reads the media, looks the answer file over, and makes the documents of both phases.
    /// Nothing is changed.
    ///
    /// # Errors
    /// A domain or volume of that name is there; the media have no installer; the answer file
    /// would make the installer fail or ask; something that was asked for cannot be had.
    pub fn install_prepare(&self, request: &InstallRequest) -> Result<Prepared> {
        self.name_is_free(&request.name)?;
        let uuid = Uuid::new_v4();
        let id = uuid.hyphenated().to_string();
        let folder = self.install_dir(&id);
        let found = Found::open(request)?;
        let mut notes = Vec::new();
        let (disks, volumes) = self.install_disks(&request.disks)?;
        let ready = ready(request, &found, &id, disks.len(), &mut notes)?;
        let command_line = ready.plan.command_line.clone();
        let (osinfo, memory) = system(request, found.media(), &mut notes)?;
        let log_dir = self.domain_log_dir(&request.name);
        let serial_log = log_dir.join(SERIAL_LOG);
        let installer_log = log_dir.join(INSTALLER_LOG);
        let method = match &found {
            Found::Direct(media) => Method::Direct {
                kernel: folder.join(KERNEL),
                initrd: folder.join(INITRD),
                command_line: command_line.clone().unwrap_or_default(),
                media: disc(media)?,
            },
            Found::Cdrom { path, .. } => Method::Cdrom {
                media: path.clone(),
            },
        };
        let network = |source: &cenote_provision::install::NetworkSource| Network {
            source: source.clone(),
            mac: MacAddress::of_guest(rand::random()),
            model: "virtio".to_owned(),
        };
        let wanted = Request {
            osinfo,
            install_memory: memory,
            vcpus: request.vcpus,
            disks: disks.iter().map(|disk| disk.document.clone()).collect(),
            networks: request.networks.iter().map(network).collect(),
            seed: ready.plan.seed.as_ref().map(|_| folder.join(SEED)),
            paths: InstallPaths {
                serial_log: Some(serial_log.clone()),
                installer_log: Some(installer_log.clone()),
                marker: ready.token.is_some().then(|| folder.join(MARKER)),
            },
            transient: request.transient,
            noreboot: request.noreboot,
            ..Request::new(request.name.clone(), uuid, request.memory, method)
        };
        let phases = phases(&wanted).map_err(InstallError::from)?;
        let Some(one) = &phases.one else {
            let text = "an installer has a first phase".to_owned();
            return Err(InstallError::Refused(text).into());
        };
        let mut files = ready.plan.injected;
        files.extend(user_files(&request.inject)?);
        if found.is_cdrom() && !files.is_empty() {
            let text = "nothing can be put into the initrd of media that boot by themselves; \
                        take kernel and initrd out of them with --location";
            return Err(InstallError::Refused(text.to_owned()).into());
        }
        // Both are found before anything is made.
        cenote_provision::initrd::archive(&files).map_err(InstallError::from)?;
        let install = Install {
            name: request.name.to_string(),
            uuid: id,
            folder,
            serial_log,
            installer_log,
            // Those that are new become its own one by one.
            volumes: disks
                .iter()
                .map(|disk| InstallVolume {
                    id: disk.volume.id.clone(),
                    own: false,
                })
                .collect(),
            one: one.to_xml(),
            two: phases.two.to_xml(),
            persistent: phases.two_is_persistent,
            start: phases.start_two,
            token: ready.token,
            since: 0,
            deadline: 0,
            silence: request.silence.as_secs(),
            on_failure: request.on_failure,
            verdict: None,
        };
        let overwritten = disks.iter().filter(|disk| !disk.volume.own);
        let seed = ready.plan.seed;
        Ok(Prepared {
            overwritten: overwritten
                .map(|disk| (disk.volume.id.clone(), disk.holds))
                .collect(),
            new_volumes: volumes
                .iter()
                .map(|(pool, new)| {
                    let id = VolumeId::new(pool, &new.name);
                    (id, new.format, new.capacity.unwrap_or(0))
                })
                .collect(),
            injected: files.iter().map(|file| file.path().to_owned()).collect(),
            seed: seed.as_ref().map(|seed| seed.label),
            seed_image: seed.map(|seed| seed.image),
            timeout: request.timeout,
            phases,
            command_line,
            notes,
            install,
            media: found.into_direct(),
            volumes,
            files,
        })
    }

    pub(super) fn name_is_free(&self, name: &str) -> Result<()> {
        let rows = self.domain_rows()?;
        match rows.into_iter().find(|row| row.name == name) {
            Some(row) => Err(DomainError::NameTaken {
                name: row.name,
                uuid: row.uuid,
                document_has_uuid: true,
            }
            .into()),
            None => Ok(()),
        }
    }

    /// The disks, and the volumes to be made for them with their pools.
    fn install_disks(&self, wanted: &[InstallDisk]) -> Result<(Vec<Chosen>, Vec<PoolVolume>)> {
        let (mut disks, mut volumes) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for disk in wanted {
            let chosen = match disk {
                InstallDisk::New {
                    pool,
                    name,
                    format,
                    capacity,
                } => {
                    let row = self.running_pool(pool)?;
                    let id = VolumeId::new(row.name(), name);
                    if self
                        .volumes(row.name())?
                        .iter()
                        .any(|info| info.name == *name)
                    {
                        return Err(StorageError::VolumeExists(id).into());
                    }
                    let path = row.definition.spec.target.join(name);
                    let block = row.logical().is_ok();
                    volumes.push((
                        row.name().to_owned(),
                        NewVolume::new(name, *format, *capacity),
                    ));
                    Chosen::of(id, true, path, block, *format)
                }
                InstallDisk::Existing(id) => {
                    let info = self.volume(id)?;
                    self.ensure_changeable(&info, &[])?;
                    let format = self.trusted_format(&info)?;
                    let block = info.kind == cenote_pools::VolumeKind::Block;
                    let mut chosen = Chosen::of(info.id(), false, info.path.clone(), block, format);
                    let image = Seen(self.open_volume(id, false)?);
                    chosen.holds = match contents(&image).map_err(at("read", &info.path))? {
                        Contents::Blank => None,
                        Contents::Bootable(what) | Contents::Data(what) => Some(what),
                    };
                    chosen
                }
            };
            if !seen.insert(chosen.volume.id.clone()) {
                let text = format!("volume '{}' is given twice", chosen.volume.id);
                return Err(InstallError::Refused(text).into());
            }
            disks.push(chosen);
        }
        Ok((disks, volumes))
    }
}

/// A pool, and a volume to be made in it.
type PoolVolume = (String, NewVolume);

/// A disk that was chosen.
struct Chosen {
    document: Disk,
    volume: InstallVolume,
    /// What is on it already.
    holds: Option<&'static str>,
}

impl Chosen {
    fn of(id: VolumeId, own: bool, path: PathBuf, block: bool, format: Format) -> Self {
        Chosen {
            document: Disk {
                source: if block {
                    DiskSource::Block(path)
                } else {
                    DiskSource::File(path)
                },
                format: match format {
                    Format::Raw => DiskFormat::Raw,
                    Format::Qcow2 => DiskFormat::Qcow2,
                },
                bus: TargetBus::Virtio,
            },
            volume: InstallVolume { id, own },
            holds: None,
        }
    }
}

/// The installer that was found.
enum Found {
    /// With kernel and initrd.
    Direct(Media),
    /// On media that the machine boots; what is on them, if that can be read.
    Cdrom { path: PathBuf, media: Option<Media> },
}

impl Found {
    fn open(request: &InstallRequest) -> Result<Self> {
        match &request.source {
            InstallSource::Location(location) => {
                let media = Media::open(location).map_err(InstallError::from)?;
                Ok(Found::Direct(media))
            }
            InstallSource::Cdrom(path) => {
                let path = std::path::absolute(path).map_err(at("find", path))?;
                let kind = fs::metadata(&path).map_err(at("open", &path))?;
                if kind.is_dir() {
                    let text = format!(
                        "'{}' is a folder, which no machine boots; take kernel and initrd out of \
                         it with --location",
                        path.display()
                    );
                    return Err(InstallError::Refused(text).into());
                }
                // What cannot be read here may boot all the same.
                let tree = Location::Tree {
                    path: path.clone(),
                    boot: None,
                };
                let media = Media::open(&tree).ok();
                Ok(Found::Cdrom { path, media })
            }
        }
    }

    fn media(&self) -> Option<&Media> {
        match self {
            Found::Direct(media) => Some(media),
            Found::Cdrom { media, .. } => media.as_ref(),
        }
    }

    fn is_cdrom(&self) -> bool {
        matches!(self, Found::Cdrom { .. })
    }

    fn boot(&self) -> Boot {
        if self.is_cdrom() {
            Boot::Cdrom
        } else {
            Boot::Direct
        }
    }

    fn into_direct(self) -> Option<Media> {
        match self {
            Found::Direct(media) => Some(media),
            Found::Cdrom { .. } => None,
        }
    }
}

/// The answer file looked over and added to, and what goes where; without one, the kernel's
/// command line alone.
fn ready(
    request: &InstallRequest,
    found: &Found,
    instance: &str,
    disks: usize,
    notes: &mut Vec<String>,
) -> Result<Ready> {
    let extra = request.extra_arguments.trim();
    let Some(answer) = &request.answer else {
        notes.push(
            "no answer file: an installer that asks waits until it is given up, and one that \
             resets is taken for done"
                .to_owned(),
        );
        if found.is_cdrom() {
            return no_arguments(extra);
        }
        let mut arguments: Vec<String> = extra.split_whitespace().map(str::to_owned).collect();
        if !arguments.iter().any(|word| word.starts_with("console=")) {
            arguments.extend(["console=tty0".to_owned(), "console=ttyS0".to_owned()]);
        }
        let line = deliver::join_arguments(&arguments).map_err(InstallError::from)?;
        let plan = DeliveryPlan {
            command_line: Some(line),
            ..DeliveryPlan::default()
        };
        return Ok(Ready { plan, token: None });
    };
    let tree = found.media().and_then(|media| media.tree.as_ref());
    let packages = match tree {
        Some(Tree::Iso { image, .. }) => Packages::Cdrom(image.label().to_owned()),
        _ if found.is_cdrom() => Packages::Cdrom(String::new()),
        _ => Packages::Given,
    };
    let expect = Expect {
        disks: ('a'..='z')
            .take(disks)
            .map(|letter| format!("vd{letter}"))
            .collect(),
        source_given: packages != Packages::Given || extra.contains("inst.repo="),
    };
    lint(answer, &expect, notes)?;
    let delivery = way(answer, found.boot())?;
    let token = Secret::token().map_err(InstallError::from)?;
    let hooks = Hooks::new(token.expose()).map_err(InstallError::from)?;
    let text = answer::instrument(answer.kind, &answer.text, &hooks).map_err(InstallError::from)?;
    let plan = deliver::plan(&deliver::Request {
        kind: answer.kind,
        boot: found.boot(),
        delivery,
        files: AnswerFiles {
            answer: text,
            ..AnswerFiles::default()
        },
        packages,
        server: None,
        instance: instance.to_owned(),
        extra_arguments: extra.to_owned(),
    })
    .map_err(InstallError::from)?;
    let token = Some(token.expose().to_owned());
    Ok(Ready { plan, token })
}

/// Media that boot by themselves have a command line of their own.
fn no_arguments(extra: &str) -> Result<Ready> {
    if !extra.is_empty() {
        let text = "the media's own boot loader has the kernel's command line; boot with \
                    --location to add to it";
        return Err(InstallError::Refused(text.to_owned()).into());
    }
    Ok(Ready {
        plan: DeliveryPlan::default(),
        token: None,
    })
}

/// How an answer file travels.
fn way(answer: &Answer, boot: Boot) -> Result<Delivery> {
    if answer.kind == Kind::CloudInit {
        return Err(InstallError::NotYet {
            what: "an install by cloud-init, which wants an imported disk (--import),".to_owned(),
            instead: "give a kickstart, preseed or autoinstall file: cenote install --help",
        }
        .into());
    }
    match answer.delivery {
        Some(Delivery::Http) => Err(InstallError::NotYet {
            what: "delivery of the answer file by HTTP".to_owned(),
            instead: "leave --delivery out, or use initrd or media: cenote install --help",
        }
        .into()),
        Some(delivery) => Ok(delivery),
        None if answer.kind == Kind::Autoinstall || boot == Boot::Cdrom => Ok(Delivery::Media),
        None => Ok(Delivery::Initrd),
    }
}

/// What an installer would stumble over is an error, unless the user takes the risk.
fn lint(answer: &Answer, expect: &Expect, notes: &mut Vec<String>) -> Result<()> {
    if answer.text.len() > MAX_BYTES {
        let text = format!("the answer file has over {} MiB", MAX_BYTES >> 20);
        return Err(InstallError::Refused(text).into());
    }
    let mut errors = Vec::new();
    for finding in answer::lint(answer.kind, &answer.text, expect) {
        if finding.severity == Severity::Error && answer.lint {
            errors.push(finding.to_string());
        } else {
            notes.push(format!("{} file: {finding}", answer.kind));
        }
    }
    if answer.lint {
        match Judges::default().ask(answer.kind, &answer.text) {
            Ok(Judged::Refused { reasons }) => errors.extend(reasons),
            Ok(Judged::Accepted) => {}
            Ok(Judged::Absent { what }) => notes.push(format!("not asked: {what}")),
            Err(error) => notes.push(format!("not asked: {error}")),
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(InstallError::Answer {
        kind: answer.kind.as_str(),
        findings: errors,
    }
    .into())
}

/// libosinfo's id of what is installed, and the memory of phase one.
fn system(
    request: &InstallRequest,
    media: Option<&Media>,
    notes: &mut Vec<String>,
) -> Result<(Option<String>, Memory)> {
    let none = |memory: Option<Memory>| memory.unwrap_or(request.memory);
    let database = match Database::of_this_machine() {
        Ok(database) if !database.systems().is_empty() => database,
        _ => {
            if let Some(id) = &request.osinfo {
                let text = format!(
                    "system '{id}' cannot be looked up: the database of libosinfo (osinfo-db) is \
                     not on this machine"
                );
                return Err(InstallError::Refused(text).into());
            }
            return Ok((None, none(request.install_memory)));
        }
    };
    let found = match &request.osinfo {
        Some(id) => match database.get(id) {
            Some(system) => Some(system),
            None => {
                let near = database.suggestions(id).join(", ");
                let text = format!("no system '{id}' is known; near are {near}");
                return Err(InstallError::Refused(text).into());
            }
        },
        None => media.and_then(|media| database.detect(media.tree.as_ref(), &media.installer)),
    };
    let Some(system) = found else {
        return Ok((None, none(request.install_memory)));
    };
    let needs = database.resources(system);
    let (memory, note) = install_memory(request.memory, request.install_memory, needs);
    notes.extend(note);
    notes.push(format!("system: {}", system.name));
    Ok((Some(system.id.clone()), memory))
}

/// The image that goes into a drive of phase one: packages may be on it.
fn disc(media: &Media) -> Result<Option<PathBuf>> {
    match &media.tree {
        Some(Tree::Iso { path, .. }) => {
            let path = std::path::absolute(path).map_err(at("find", path))?;
            Ok(Some(path))
        }
        _ => Ok(None),
    }
}

/// Files that the user puts into the initrd's root folder, with the modes they have.
fn user_files(paths: &[PathBuf]) -> Result<Vec<Injected>> {
    paths.iter().map(|path| user_file(path)).collect()
}

fn user_file(path: &Path) -> Result<Injected> {
    use std::os::unix::fs::PermissionsExt as _;
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        let text = format!("'{}' has no name for the initrd", path.display());
        return Err(InstallError::Refused(text).into());
    };
    let bytes = fs::read(path).map_err(at("read", path))?;
    let mode = fs::metadata(path).map_err(at("read", path))?;
    let file = Injected::new(name, bytes).map_err(InstallError::from)?;
    Ok(file.mode(mode.permissions().mode()))
}
