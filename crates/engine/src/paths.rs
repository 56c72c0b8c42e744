//! Where a node's files lie.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How and where to open a node.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// Directory of the database and of the `default` pool. `None`: as
    /// [`NodeOptions::state_dir`] of the documentation says, `/var/lib/cenote`
    /// for root and `$XDG_DATA_HOME/cenote` for a user.
    pub state_dir: Option<PathBuf>,
    /// Directory of sockets and other things that a reboot may take. `None`:
    /// `<state_dir>/run` when the state directory was given, else
    /// `/run/cenote` for root and `$XDG_RUNTIME_DIR/cenote` for a user.
    pub runtime_dir: Option<PathBuf>,
    /// Directories beside those of the pools that backing and data files of
    /// volumes may lie in. `/` allows all.
    pub backing_dirs: Vec<PathBuf>,
    /// Directory of `cenote-supervisor` and `cenote-vmm`. `None`: beside the running program,
    /// where packages put them, or on the path.
    pub programs: Option<PathBuf>,
    /// Lets a host without virtualization extensions run 16- and 32-bit test guests in KVM's
    /// emulator.
    pub allow_emulation: bool,
    /// Leaves interrupted operations as they are instead of repairing them;
    /// for diagnosis.
    pub skip_repair: bool,
    /// Works on a copy of the state that is thrown away with the node: nothing
    /// in the state directory is made, started, repaired or recorded. For dry
    /// runs and for completion. Operations on volumes' files are not held
    /// back; whoever asks for this calls none.
    pub read_only: bool,
}

impl NodeOptions {
    /// A node whose state lies in `dir`, with its runtime directory inside.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        NodeOptions {
            state_dir: Some(dir.into()),
            ..NodeOptions::default()
        }
    }

    /// The state and runtime directories these options mean, absolute.
    ///
    /// # Errors
    /// A user without `HOME` and `XDG_DATA_HOME` has no state directory; a
    /// relative path needs a current directory.
    pub fn directories(&self) -> Result<(PathBuf, PathBuf)> {
        let system = rustix::process::geteuid().is_root();
        let state = match &self.state_dir {
            Some(dir) => absolute(dir)?,
            None if system => PathBuf::from("/var/lib/cenote"),
            None => xdg_directory("XDG_DATA_HOME")
                .or_else(|| xdg_directory("HOME").map(|home| home.join(".local/share")))
                .ok_or(Error::NoHome)?
                .join("cenote"),
        };
        let runtime = match (&self.runtime_dir, &self.state_dir) {
            (Some(dir), _) => absolute(dir)?,
            (None, Some(_)) => state.join("run"),
            (None, None) if system => PathBuf::from("/run/cenote"),
            (None, None) => match xdg_directory("XDG_RUNTIME_DIR") {
                Some(dir) => dir.join("cenote"),
                None => state.join("run"),
            },
        };
        Ok((state, runtime))
    }
}

/// The XDG specification has relative values ignored.
fn xdg_directory(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Error::Io {
        action: "find the absolute path of",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_state_directory_holds_the_runtime_directory() {
        let (state, runtime) = NodeOptions::in_dir("/somewhere/node")
            .directories()
            .unwrap();
        assert_eq!(state, Path::new("/somewhere/node"));
        assert_eq!(runtime, Path::new("/somewhere/node/run"));
    }

    #[test]
    fn relative_directories_become_absolute() {
        let (state, _) = NodeOptions::in_dir("node").directories().unwrap();
        assert!(state.is_absolute() && state.ends_with("node"));
    }
}
