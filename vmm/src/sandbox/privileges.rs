//! Rights of the process: user, groups, capabilities, namespaces, limits.

use super::{Entered, Missing, SandboxError};
use rustix::{
    fs::{Gid, Uid},
    io::Errno,
    process::{DumpableBehavior, Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags},
};
use serde::{Deserialize, Serialize};
use std::io;

/// The user and group that Debian and others call `nobody` and `nogroup`.
const NOBODY: User = User {
    uid: 65534,
    gid: 65534,
};
/// As many descriptors as a machine with all its devices can have, and the control socket's.
const MOST_DESCRIPTORS: u64 = 4096;

/// A user and a group of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

pub(super) fn give_up(user: Option<User>, entered: &mut Entered) -> Result<(), SandboxError> {
    let root = rustix::process::geteuid().is_root();
    if user.is_some() && !root {
        return Err(SandboxError::NotRoot);
    }
    isolate(root, entered);
    limit()?;
    // Before the user changes: it takes a capability.
    let bounded = empty_bounding_set();
    if root {
        become_user(user.unwrap_or(NOBODY), entered)?;
    }
    drop_capabilities(bounded, entered)?;
    let refused = |what| {
        move |error: Errno| SandboxError::Refused {
            what,
            source: error.into(),
        }
    };
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(refused("making the process untraceable"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("no_new_privs"))?;
    Ok(())
}

/// Network, IPC objects and host name of the process's own.
fn isolate(root: bool, entered: &mut Entered) {
    let mut wanted = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if !root {
        wanted |= UnshareFlags::NEWUSER;
    }
    match unshare(wanted) {
        Ok(()) => entered
            .holds
            .push("no network (namespaces of its own)".to_owned()),
        Err(error) => entered.missing.push(Missing(format!(
            "the host refuses {}namespaces ({error}), so that the network is shut off by the \
             filter of system calls alone",
            if root { "" } else { "user " }
        ))),
    }
}

#[allow(unsafe_code)] // Other flags than these can take descriptors away from their owners.
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the table of descriptors stays shared; the namespaces hold no resource of Rust's.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn limit() -> Result<(), SandboxError> {
    let to = |value| Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    for (resource, most, what) in [
        (Resource::Core, 0, "a limit on core dumps"),
        (Resource::Nofile, MOST_DESCRIPTORS, "a limit on descriptors"),
        (Resource::Msgqueue, 0, "a limit on message queues"),
        (Resource::Rtprio, 0, "a limit on priorities"),
    ] {
        // A lower limit that is there already stays.
        let before = rustix::process::getrlimit(resource);
        let most = before.maximum.map_or(most, |before| before.min(most));
        setrlimit(resource, to(most)).map_err(|error| SandboxError::Refused {
            what,
            source: error.into(),
        })?;
    }
    Ok(())
}

/// Takes away what a program with capabilities of its own could bring back.
fn empty_bounding_set() -> bool {
    // Numbers that the kernel does not know are refused as invalid.
    CapabilitySet::all().iter().all(|capability| {
        matches!(
            rustix::thread::remove_capability_from_bounding_set(capability),
            Ok(()) | Err(Errno::INVAL)
        )
    })
}

fn become_user(user: User, entered: &mut Entered) -> Result<(), SandboxError> {
    let failed = |source: Errno| SandboxError::User {
        user,
        source: source.into(),
    };
    if user.uid == 0 || user.uid == u32::MAX || user.gid == u32::MAX {
        return Err(failed(Errno::INVAL));
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // The process has one thread, so that these calls, which change a thread, change all.
    rustix::thread::set_thread_groups(&[]).map_err(failed)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    entered
        .holds
        .push(format!("user {}, group {}", user.uid, user.gid));
    Ok(())
}

fn drop_capabilities(bounded: bool, entered: &mut Entered) -> Result<(), SandboxError> {
    let refused = |error: Errno| SandboxError::Refused {
        what: "giving up capabilities",
        source: io::Error::from(error),
    };
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set().map_err(refused)?;
    rustix::thread::set_capabilities(None, none).map_err(refused)?;
    entered.holds.push(if bounded {
        "no capabilities, none to be had".to_owned()
    } else {
        "no capabilities".to_owned()
    });
    Ok(())
}
