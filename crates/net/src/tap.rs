//! Taps and bridges, for those who may change the host's network (`CAP_NET_ADMIN`).
//!
//! The parent opens a tap, brings it up, hands its descriptors to the monitor, and needs no
//! right afterwards. A tap lives as long as its descriptors are open; a bridge must be there.

#![allow(unsafe_code)] // ioctl on `ifreq`.

use crate::frame::Mac;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

const DEVICE: &str = "/dev/net/tun";
/// Length of the header before each frame: `virtio_net_hdr` with the number of buffers, as
/// virtio 1 has it.
pub const HEADER: usize = 12;
/// `SIOCBRADDIF` of `linux/sockios.h`: a port for a bridge.
const ADD_TO_BRIDGE: libc::Ioctl = 0x89a2;
/// Most queues of a tap in Linux.
pub const MOST_QUEUES: u16 = 256;

/// How a tap is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapOptions {
    /// Name, at most 15 bytes; `%d` in it is replaced by a number. Without one, `tap%d`.
    pub name: Option<String>,
    /// Number of queues, from 1.
    pub queues: u16,
    /// Largest packet in bytes.
    pub mtu: Option<u16>,
    /// The host's Ethernet address on it.
    pub mac: Option<Mac>,
    /// The bridge that it is to be a port of.
    pub bridge: Option<String>,
}

/// An open tap that is up. Frames have a header of [`HEADER`] bytes in front.
#[derive(Debug)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// A descriptor for each queue.
    pub queues: Vec<OwnedFd>,
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// A name does not fit.
    #[error("'{0}' is no name of a network interface: give 1 to 15 bytes without '/' and spaces")]
    Name(String),
    /// The number of queues is out of range.
    #[error("{0} queues are impossible: give 1 to {MOST_QUEUES}")]
    Queues(u16),
    /// The kernel has no taps.
    #[error("{DEVICE} cannot be opened: load the kernel module tun")]
    Device(#[source] io::Error),
    /// The right is missing.
    #[error("{step}: only root (CAP_NET_ADMIN) may do that; the user-mode network needs no right")]
    Permission {
        /// What was tried.
        step: String,
    },
    /// Somebody else has the tap.
    #[error("tap {0} is in use by another program")]
    Busy(String),
    /// A bridge is not there.
    #[error("there is no bridge '{0}'")]
    Bridge(String),
    /// Another failure.
    #[error("{step}")]
    Step {
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Tap {
    /// Opens a tap, making it if there is none of that name, and brings it up.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(options: &TapOptions) -> Result<Self, TapError> {
        if !(1..=MOST_QUEUES).contains(&options.queues) {
            return Err(TapError::Queues(options.queues));
        }
        let wanted = options.name.as_deref().unwrap_or("tap%d");
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if options.queues > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut name = wanted.to_owned();
        let mut queues = Vec::new();
        for _ in 0..options.queues {
            let (queue, given) = open_queue(&name, flags)?;
            name = given;
            queues.push(queue);
        }
        let control = Interfaces::new()?;
        if let Some(mtu) = options.mtu {
            control.set_mtu(&name, mtu)?;
        }
        if let Some(mac) = options.mac {
            control.set_mac(&name, mac)?;
        }
        if let Some(bridge) = &options.bridge {
            control.join(bridge, &name)?;
        }
        control.bring_up(&name)?;
        Ok(Self { name, queues })
    }
}

fn open_queue(name: &str, flags: i32) -> Result<(OwnedFd, String), TapError> {
    let open = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let queue = rustix::fs::open(DEVICE, open, Mode::empty())
        .map_err(|error| TapError::Device(error.into()))?;
    let mut request = interface(name)?;
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result, || format!("tap {name}")).map_err(|error| match error {
        TapError::Step { ref source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
            TapError::Busy(name.to_owned())
        }
        error => error,
    })?;
    let length = HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    let result =
        unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) };
    check(result, || format!("header length of tap {name}"))?;
    let given: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|&byte| byte as u8)
        .take_while(|&byte| byte != 0)
        .collect();
    Ok((queue, String::from_utf8_lossy(&given).into_owned()))
}

/// The socket that interfaces are changed through.
struct Interfaces(OwnedFd);

impl Interfaces {
    fn new() -> Result<Self, TapError> {
        socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map(Self)
        .map_err(|error| TapError::Step {
            step: "a socket for changing interfaces".into(),
            source: error.into(),
        })
    }

    fn call(
        &self,
        code: libc::Ioctl,
        request: &mut libc::ifreq,
        step: impl FnOnce() -> String,
    ) -> Result<(), TapError> {
        // SAFETY: every code used here reads or writes an `ifreq` and nothing else.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), code, std::ptr::from_mut(request)) };
        check(result, step)
    }

    fn set_mtu(&self, name: &str, mtu: u16) -> Result<(), TapError> {
        let mut request = interface(name)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.call(libc::SIOCSIFMTU, &mut request, || {
            format!("MTU {mtu} of {name}")
        })
    }

    fn set_mac(&self, name: &str, mac: Mac) -> Result<(), TapError> {
        let mut request = interface(name)?;
        let mut address = libc::sockaddr {
            sa_family: libc::ARPHRD_ETHER,
            sa_data: [0; 14],
        };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = address;
        self.call(libc::SIOCSIFHWADDR, &mut request, || {
            format!("address of {name}")
        })
    }

    fn join(&self, bridge: &str, name: &str) -> Result<(), TapError> {
        let mut port = interface(name)?;
        self.call(libc::SIOCGIFINDEX, &mut port, || {
            format!("number of {name}")
        })?;
        // SAFETY: SIOCGIFINDEX has filled it in; reading another field of numbers is harmless.
        let index = unsafe { port.ifr_ifru.ifru_ifindex };
        let mut request = interface(bridge)?;
        request.ifr_ifru.ifru_ifindex = index;
        let joined = self.call(ADD_TO_BRIDGE, &mut request, || {
            format!("{name} as a port of {bridge}")
        });
        joined.map_err(|error| match error {
            TapError::Step { ref source, .. }
                if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) =>
            {
                TapError::Bridge(bridge.to_owned())
            }
            error => error,
        })
    }

    fn bring_up(&self, name: &str) -> Result<(), TapError> {
        let mut request = interface(name)?;
        self.call(libc::SIOCGIFFLAGS, &mut request, || {
            format!("state of {name}")
        })?;
        // SAFETY: SIOCGIFFLAGS has filled it in.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16 };
        self.call(libc::SIOCSIFFLAGS, &mut request, || {
            format!("bringing up {name}")
        })
    }
}

/// A request about the interface `name`.
fn interface(name: &str) -> Result<libc::ifreq, TapError> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !fits {
        return Err(TapError::Name(name.to_owned()));
    }
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn check(result: libc::c_int, step: impl FnOnce() -> String) -> Result<(), TapError> {
    if result >= 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    match Errno::from_io_error(&source) {
        Some(Errno::PERM | Errno::ACCESS) => Err(TapError::Permission { step: step() }),
        _ => Err(TapError::Step {
            step: step(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_opened() {
        let open = |name: &str, queues| {
            Tap::open(&TapOptions {
                name: Some(name.into()),
                queues,
                ..TapOptions::default()
            })
            .unwrap_err()
            .to_string()
        };
        assert!(open("tap0", 0).contains("0 queues"));
        assert!(open("tap0", 300).contains("300 queues"));
        assert!(interface("sixteen-bytes-xx").is_err());
        for name in ["", "a/b", "a b", "tab\t"] {
            assert!(
                matches!(interface(name), Err(TapError::Name(_))),
                "{name:?}"
            );
        }
    }
}
