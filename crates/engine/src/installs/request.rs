//! What is asked for.

use std::path::PathBuf;
use std::time::Duration;

use cenote_image::Format;
use cenote_model::{Memory, Name};
use cenote_pools::VolumeId;
use cenote_provision::answer::Kind;
use cenote_provision::deliver::Delivery;
use cenote_provision::install::NetworkSource;
use cenote_provision::media::Location;
use serde::{Deserialize, Serialize};

/// How the installer is found and booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallSource {
    /// Its kernel and initrd are taken out of media, and handed to the machine.
    Location(Location),
    /// The machine boots the media: an ISO image, or a drive of the host with a disc.
    Cdrom(PathBuf),
}

/// A disk of the new domain. The first is `vda` in the guest, the next `vdb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallDisk {
    /// A volume that is made for it, and deleted if the install comes to nothing.
    New {
        /// Its pool.
        pool: String,
        /// Its name.
        name: String,
        /// Its format.
        format: Format,
        /// Its size in bytes.
        capacity: u64,
    },
    /// A volume that is there, and overwritten by the installer.
    Existing(VolumeId),
}

/// The answer file.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its kind.
    pub kind: Kind,
    /// Its text.
    pub text: String,
    /// How it travels; `None`: as suits its kind.
    pub delivery: Option<Delivery>,
    /// What an installer would stumble over is an error.
    pub lint: bool,
}

impl std::fmt::Debug for Answer {
    /// Without the text, which may have passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer({}, {} bytes)", self.kind, self.text.len())
    }
}

/// What becomes of a failed install's domain and volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// They stay: the domain is defined and not started.
    #[default]
    Keep,
    /// The volumes that were made for it are deleted, and nothing is defined.
    Destroy,
    /// The same, and they are overwritten before, with a certificate each.
    Wipe,
}

/// An install.
#[derive(Debug, Clone)]
pub struct InstallRequest {
    /// Name of the domain.
    pub name: Name,
    /// Its memory.
    pub memory: Memory,
    /// Its memory in phase one; `None`: the same, or what the system's installer needs.
    pub install_memory: Option<Memory>,
    /// Its processors.
    pub vcpus: u32,
    /// Where the installer is.
    pub source: InstallSource,
    /// Its disks.
    pub disks: Vec<InstallDisk>,
    /// Its network cards.
    pub networks: Vec<NetworkSource>,
    /// Files of the host that go into the root folder of the initrd.
    pub inject: Vec<PathBuf>,
    /// Added to the kernel's command line.
    pub extra_arguments: String,
    /// The answer file.
    pub answer: Option<Answer>,
    /// libosinfo's short id of the system; told from the media if absent.
    pub osinfo: Option<String>,
    /// The domain is not defined, and is gone when its guest ends.
    pub transient: bool,
    /// The domain is defined and not started.
    pub noreboot: bool,
    /// The longest that phase one may take.
    pub timeout: Duration,
    /// The longest that its guest may print nothing.
    pub silence: Duration,
    /// What becomes of a failure.
    pub on_failure: OnFailure,
}
