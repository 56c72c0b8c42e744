//! The devices of a domain as commands show and change them.

use std::path::Path;

use cenote_model::Document as _;
use cenote_model::domain::{Disk, DiskDevice, DiskKind, Domain, Tray};
use cenote_vmm::machine::DiskStatus;
use serde::{Deserialize, Serialize};

use super::change::{Scope, Topic};
use super::define::parse;
use super::error::Error as DomainError;
use super::read::parse_stored;
use super::table::DomainRow;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::supervisor::network::{CardReport, CardTraffic, Lease};
use crate::supervisor::protocol::{Reply, Request};

/// What is done to a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediumChange {
    /// The disc is taken out.
    Eject,
    /// A disc is put into the empty drive.
    Insert(String),
    /// A disc takes the other's place.
    Update(String),
}

/// What a guest has done with a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Its name.
    pub target: String,
    /// Path, or `pool/volume`.
    pub source: Option<String>,
    /// Size in bytes and counters from the start of the machine; nothing for drives on IDE.
    pub status: Option<DiskStatus>,
}

/// What a domain has and has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainStats {
    /// libvirt's numbers of state and reason.
    pub state: (i64, i64),
    /// Time that the processors of the host gave to the monitor, in nanoseconds.
    pub cpu_nanoseconds: Option<u64>,
    /// Memory that the guest has, and the most it could have, in KiB.
    pub memory_kib: (u64, u64),
    /// Processors that the guest has, and the most it could have.
    pub vcpus: (u32, u32),
    /// Its network cards.
    pub cards: Vec<CardInfo>,
    /// Its disks.
    pub disks: Vec<DiskStats>,
}

/// A network card of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardInfo {
    /// The host's device while it runs, where there is one.
    pub device: Option<String>,
    /// What it is joined to: `user`, `bridge`, and so on.
    pub kind: String,
    /// The network or bridge.
    pub source: Option<String>,
    /// Its model.
    pub model: String,
    /// Its address.
    pub mac: Option<String>,
    /// Whether the cable is in, as the document says it.
    pub link: bool,
    /// Addresses that the user-mode network gave the guest.
    pub leases: Vec<Lease>,
    /// What went through it, as far as it is counted.
    pub traffic: Option<CardTraffic>,
}

impl Node {
    /// The network cards of a domain, in the document's order; of a running one with how their
    /// networks stand.
    ///
    /// # Errors
    /// There is no such domain or document; its supervisor does not answer.
    pub fn domain_cards(&self, key: &str, scope: Scope) -> Result<Vec<CardInfo>> {
        let row = self.domain_row(key)?;
        let live = row.is_active() && scope != Scope::Config;
        let document = self.scoped_document(key, scope)?;
        let reports = match live && !self.is_read_only() {
            true => match self.asked(&row, "ask", &Request::Cards)? {
                Reply::Cards(reports) => reports,
                _ => Vec::new(),
            },
            false => Vec::new(),
        };
        Ok(cards_of(&document, reports))
    }
}

/// What disks and processes have done.
impl Node {
    /// What the guest of a running domain has done with its disks, in the document's order.
    ///
    /// # Errors
    /// There is no such domain, or it does not run.
    pub fn domain_disk_stats(&self, key: &str) -> Result<Vec<DiskStats>> {
        let row = self.domain_row(key)?;
        let document = self.scoped_document(key, Scope::Live)?;
        let statuses = match self.stats_of(&row)? {
            Reply::Stats { disks, .. } => disks,
            _ => Default::default(),
        };
        Ok(disk_stats(&document, &statuses))
    }

    /// What a domain has and, if it runs, has used.
    ///
    /// # Errors
    /// There is no such domain; its supervisor does not answer.
    pub fn domain_stats(&self, key: &str) -> Result<DomainStats> {
        let row = self.domain_row(key)?;
        let scope = match row.is_active() {
            true => Scope::Live,
            false => Scope::Config,
        };
        let document = self.scoped_document(key, scope)?;
        let reply = match row.is_active() {
            true => Some(self.stats_of(&row)?),
            false => None,
        };
        let (monitor, statuses) = match reply {
            Some(Reply::Stats { monitor, disks, .. }) => (Some(monitor), disks),
            _ => (None, Default::default()),
        };
        let memory = document.current_memory.unwrap_or(document.memory);
        Ok(DomainStats {
            state: row.state.numbers(),
            cpu_nanoseconds: monitor.and_then(cpu_time),
            memory_kib: (memory.kib, document.memory.kib),
            vcpus: (document.vcpu.present(), document.vcpu.maximum()),
            cards: self.domain_cards(key, scope)?,
            disks: disk_stats(&document, &statuses),
        })
    }

    fn stats_of(&self, row: &DomainRow) -> Result<Reply> {
        match self.is_read_only() {
            true => Ok(Reply::Done),
            false => self.asked(row, "ask", &Request::Stats),
        }
    }

    /// Has what the screen of a running domain shows written to a file, as PNG. A file that is
    /// there is replaced when the picture is whole.
    ///
    /// # Errors
    /// The domain does not run or has no display, or the display shows nothing yet; the file
    /// cannot be written.
    pub fn domain_screenshot(&self, key: &str, path: &Path) -> Result<()> {
        let row = self.domain_row(key)?;
        if !row.is_active() {
            return self.ask_row(&row, "take a picture of", &Request::Stats);
        }
        if self.is_read_only() {
            return Ok(());
        }
        let failed = |source| Error::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let beside = std::path::absolute(file.path()).map_err(failed)?;
        let request = Request::Screenshot { path: beside };
        self.asked(&row, "take a picture of", &request)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

fn disk_stats(
    document: &Domain,
    statuses: &std::collections::BTreeMap<String, DiskStatus>,
) -> Vec<DiskStats> {
    let disks = document.devices.disks.iter();
    disks
        .map(|disk| DiskStats {
            target: disk.target.dev.clone(),
            source: source_of(disk),
            status: statuses.get(&disk.target.dev).cloned(),
        })
        .collect()
}

fn source_of(disk: &Disk) -> Option<String> {
    let volume = disk.source_volume();
    volume
        .map(|(pool, volume)| format!("{pool}/{volume}"))
        .or_else(|| disk.source_path().map(str::to_owned))
}

/// What a process has had of the host's processors, in nanoseconds.
fn cpu_time(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may have spaces, ends with the last parenthesis; then user and system time
    // are the 12th and 13th field (proc_pid_stat(5)).
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = ticks(11)?.checked_add(ticks(12)?)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    ticks.checked_mul(1_000_000_000 / per_second)
}

/// Disks and drives of documents.
impl Node {
    /// Adds a disk or drive to the definition.
    ///
    /// # Errors
    /// There is no such domain; it runs and what runs is meant; the name is taken.
    pub fn domain_attach_disk(&self, key: &str, scope: Scope, disk: &Disk) -> Result<()> {
        self.not_plugged(key, scope, "attach-disk")?;
        self.change_domain(key, scope, Topic::Machine, |document| {
            let there = &mut document.devices.disks;
            if there
                .iter()
                .any(|other| other.target.dev == disk.target.dev)
            {
                let text = format!("target {} already exists", disk.target.dev);
                return Err(DomainError::InvalidArgument(text).into());
            }
            there.push(disk.clone());
            Ok(())
        })
    }

    /// Takes a disk or drive out of the definition; nothing is done to its image. Answers the
    /// image.
    ///
    /// # Errors
    /// There is no such domain or disk; it runs and what runs is meant.
    pub fn domain_detach_disk(
        &self,
        key: &str,
        scope: Scope,
        target: &str,
    ) -> Result<Option<String>> {
        self.not_plugged(key, scope, "detach-disk")?;
        let document = self.scoped_document(key, scope)?;
        let found = document
            .devices
            .disks
            .iter()
            .find(|disk| is_meant(disk, target));
        let source = found.and_then(source_of);
        self.change_domain(key, scope, Topic::Machine, |document| {
            let domain = document.name.to_string();
            let there = &mut document.devices.disks;
            let index = there.iter().position(|disk| is_meant(disk, target));
            let Some(index) = index else {
                let target = target.to_owned();
                return Err(DomainError::NoDisk { domain, target }.into());
            };
            there.remove(index);
            Ok(())
        })?;
        Ok(source)
    }

    /// Nothing is plugged into a machine that runs.
    fn not_plugged(&self, key: &str, scope: Scope, verb: &str) -> Result<()> {
        let row = self.domain_row(key)?;
        let live = match scope {
            Scope::Config => false,
            Scope::Live | Scope::Both => true,
            Scope::Current => row.is_active(),
        };
        if !live || !row.is_active() {
            return Ok(());
        }
        let reason = "disks cannot be plugged into or out of a machine that runs";
        let hint = format!(
            "change the definition, which the next start uses, with --config: cenote {verb} {} \
             --config",
            row.name
        );
        Err(DomainError::invalid(&row.name, reason, Some(hint)).into())
    }

    /// Changes the disc in a CD-ROM drive, which `drive` names by its target or its source. With
    /// `force` also of a running guest that has locked the tray.
    ///
    /// # Errors
    /// There is no such domain or drive; the drive has no disc, or has one; the disc is not
    /// there; the guest has locked the tray.
    pub fn domain_change_media(
        &self,
        key: &str,
        scope: Scope,
        drive: &str,
        change: &MediumChange,
        force: bool,
    ) -> Result<()> {
        let (row, lock) = self.lock_domain(key)?;
        let (live, config) = super::change::meant(&row, scope)?;
        let documents = self.documents_of(&row)?;
        let changed = |text: Option<String>| -> Result<(Domain, String)> {
            let mut document = parse_stored(&row.name, &text.unwrap_or_default())?;
            let target = put(&mut document, drive, change)?;
            // Read back, so that changes obey the rules of documents.
            Ok((parse(&document.to_xml())?, target))
        };
        // Both are possible, or neither is done.
        let config = config.then(|| changed(documents.definition)).transpose()?;
        if live {
            let (document, target) = changed(documents.live)?;
            let request = Request::ChangeMedium {
                document: document.inactive().to_xml(),
                target,
                force,
            };
            self.ask_row(&row, "change the medium of", &request)?;
        }
        drop(lock);
        match config {
            None => Ok(()),
            Some(_) => self.change_domain(key, Scope::Config, Topic::Machine, |document| {
                put(document, drive, change).map(drop)
            }),
        }
    }
}

fn is_meant(disk: &Disk, name: &str) -> bool {
    disk.target.dev == name || disk.source_path() == Some(name)
}

/// Changes the disc in a document's drive; answers the drive's name.
fn put(document: &mut Domain, drive: &str, change: &MediumChange) -> Result<String> {
    let domain = document.name.to_string();
    let disks = document.devices.disks.iter_mut();
    let mut drives = disks.filter(|disk| disk.device == DiskDevice::Cdrom);
    let Some(disk) = drives.find(|disk| is_meant(disk, drive)) else {
        let target = drive.to_owned();
        return Err(DomainError::NoDisk { domain, target }.into());
    };
    let target = disk.target.dev.clone();
    let there = source_of(disk).is_some();
    let source = match change {
        MediumChange::Eject if !there => {
            let text = format!("the disk device '{target}' doesn't have media");
            return Err(DomainError::InvalidArgument(text).into());
        }
        MediumChange::Insert(_) if there => {
            let text = format!("the disk device '{target}' already has media; use --update");
            return Err(DomainError::InvalidArgument(text).into());
        }
        MediumChange::Eject => None,
        MediumChange::Insert(source) | MediumChange::Update(source) => Some(source),
    };
    disk.target.tray = source.is_none().then_some(Tray::Open);
    disk.source = source.map(|path| {
        let is_device = std::fs::metadata(path).is_ok_and(|metadata| {
            use std::os::unix::fs::FileTypeExt as _;
            metadata.file_type().is_block_device()
        });
        let mut source = cenote_model::domain::DiskSource::default();
        disk.kind = match is_device {
            true => DiskKind::Block,
            false => DiskKind::File,
        };
        match is_device {
            true => source.dev = Some(path.clone()),
            false => source.file = Some(path.clone()),
        }
        source
    });
    if disk.source.is_none() {
        disk.kind = DiskKind::File;
    }
    Ok(target)
}

fn cards_of(document: &Domain, reports: Vec<CardReport>) -> Vec<CardInfo> {
    let reports = reports.into_iter().map(Some).chain(std::iter::repeat(None));
    let cards = document.devices.interfaces.iter().zip(reports);
    cards
        .map(|(card, report)| {
            let report = report.unwrap_or_default();
            let target = card.target.as_ref().map(|target| target.dev.clone());
            CardInfo {
                device: report.device.or(target),
                kind: card.kind.to_string(),
                source: card.network().or(card.bridge()).map(str::to_owned),
                model: card
                    .model
                    .as_ref()
                    .map_or("virtio".to_owned(), |m| m.kind.clone()),
                mac: card.mac.as_ref().map(|mac| mac.address.to_string()),
                link: card
                    .link
                    .as_ref()
                    .is_none_or(|link| link.state == cenote_model::domain::LinkState::Up),
                leases: report.leases,
                traffic: report.traffic,
            }
        })
        .collect()
}
