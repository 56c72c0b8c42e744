//! Finding out whether this host can run guests, and saying what to do where it cannot.

use kvm_ioctls::{Cap, Kvm};
use std::{
    ffi::CString,
    io,
    os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd},
    path::Path,
};

const API_VERSION: i32 = 12;
const DEFAULT_DEVICE: &str = "/dev/kvm";

/// What is behind the host's `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// The processor's virtualization extensions.
    Hardware,
    /// A kernel without them, which runs guests' kernel code in its instruction emulator.
    Emulation,
}

/// Why no guest can run here.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such device.
    #[error(
        "{path} does not exist: load the module with 'modprobe kvm_intel' or 'modprobe kvm_amd'; if that fails, switch on virtualization (VT-x, AMD-V) in the firmware, or nested virtualization where this host is a guest itself"
    )]
    Missing {
        /// The device.
        path: String,
    },
    /// The device may not be opened.
    #[error(
        "{path} may not be opened by this user: add the user to the device's group with 'usermod -aG kvm USER' and log in again"
    )]
    Forbidden {
        /// The device.
        path: String,
    },
    /// The device could not be opened for another reason.
    #[error("{path} cannot be opened")]
    Open {
        /// The device.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was opened is not KVM, or not the version that all kernels since 2.6.22 have.
    #[error(
        "{path} is not KVM with API version 12 (it answers {found}): check what is at that path"
    )]
    Version {
        /// The device.
        path: String,
        /// The answer.
        found: i32,
    },
    /// KVM lacks something that the machine stands on.
    #[error("this host's KVM lacks {capability}: use a kernel of version 5.10 or later")]
    Capability {
        /// Name of the capability.
        capability: &'static str,
    },
    /// The processor offers no virtualization to this kernel.
    #[error(
        "this host's KVM has no VT-x or AMD-V and only emulates, which cannot run a 64-bit kernel: use another host, or allow emulation in the machine description for 16- and 32-bit test guests"
    )]
    EmulationOnly,
}

/// The host's KVM, checked.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    backing: Backing,
}

impl Host {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// Each way in which a host cannot run guests has its own [`HostError`].
    /// [`HostError::EmulationOnly`] is not given if `allow_emulation`.
    pub fn open(allow_emulation: bool) -> Result<Self, HostError> {
        Self::open_at(Path::new(DEFAULT_DEVICE), allow_emulation)
    }

    /// As [`Host::open`], with the device's path.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_at(path: &Path, allow_emulation: bool) -> Result<Self, HostError> {
        let shown = path.display().to_string();
        let name = CString::new(shown.clone()).map_err(|_| HostError::Missing {
            path: shown.clone(),
        })?;
        let kvm = Kvm::new_with_path(&name).map_err(|errno| {
            let source = io::Error::from(errno);
            match source.kind() {
                io::ErrorKind::NotFound => HostError::Missing {
                    path: shown.clone(),
                },
                io::ErrorKind::PermissionDenied => HostError::Forbidden {
                    path: shown.clone(),
                },
                // The device node is there but no module stands behind it.
                _ if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                    HostError::Missing {
                        path: shown.clone(),
                    }
                }
                _ => HostError::Open {
                    path: shown.clone(),
                    source,
                },
            }
        })?;
        Self::check(kvm, &shown, allow_emulation)
    }

    /// Takes over an open descriptor of the device.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn from_fd(fd: OwnedFd, allow_emulation: bool) -> Result<Self, HostError> {
        Self::check(from_fd(fd), "the descriptor given for KVM", allow_emulation)
    }

    fn check(kvm: Kvm, path: &str, allow_emulation: bool) -> Result<Self, HostError> {
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(HostError::Version {
                path: path.to_owned(),
                found,
            });
        }
        let needed = [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Pit2, "KVM_CAP_PIT2"),
            (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
            (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
            (Cap::MpState, "KVM_CAP_MP_STATE"),
            (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        ];
        for (capability, name) in needed {
            if !kvm.check_extension(capability) {
                return Err(HostError::Capability { capability: name });
            }
        }
        let backing = backing();
        if backing == Backing::Emulation && !allow_emulation {
            return Err(HostError::EmulationOnly);
        }
        Ok(Self { kvm, backing })
    }

    /// What is behind the device.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The most vCPUs that one machine can have on this host.
    #[must_use]
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    pub(super) fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}

#[allow(unsafe_code)] // kvm-ioctls takes descriptors over only by their number.
fn from_fd(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and owned; ownership passes to the new value.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Processors with VT-x or AMD-V say so to the kernel, which tells in `/proc/cpuinfo`. Where that
/// cannot be read, KVM is taken at its word.
fn backing() -> Backing {
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(text) if !has_virtualization(&text) => Backing::Emulation,
        _ => Backing::Hardware,
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_and_a_wrong_one_have_their_own_messages() {
        let missing = Host::open_at(Path::new("/nonexistent/kvm"), true).unwrap_err();
        assert!(matches!(missing, HostError::Missing { .. }));
        assert!(missing.to_string().contains("modprobe kvm_"));
        let wrong = Host::open_at(Path::new("/dev/null"), true).unwrap_err();
        assert!(matches!(wrong, HostError::Version { .. }), "{wrong}");
    }

    #[test]
    fn hardware_is_told_from_emulation_by_the_flags() {
        assert!(has_virtualization("flags\t\t: fpu svm nx\n"));
        assert!(has_virtualization("flags: vmx\n"));
        assert!(!has_virtualization(
            "flags\t: fpu svm_lock\nvmx flags : vnmi\n"
        ));
    }
}
