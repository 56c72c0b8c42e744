//! The node's Ed25519 key, made once.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use super::{Error, io_error};
use crate::wipe::hex;

/// Signs the certificates of a node.
#[derive(Clone)]
pub struct NodeKey(SigningKey);

/// Checks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NodeKey")
            .field(&self.public().to_hex())
            .finish()
    }
}

impl NodeKey {
    /// Reads the key at `path`, or makes one there (0600) if there is none.
    /// Two that come at once get the same key. A key that others could have
    /// read is refused.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
            Err(error) => return Err(io_error(path, "read the key")(error)),
            Ok(_) => {}
        }
        let metadata = fs::metadata(path).map_err(io_error(path, "look at the key"))?;
        let bad = |reason: &str| Error::BadKey {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        if metadata.mode() & 0o077 != 0 {
            return Err(bad(
                "others can read it; chmod 600, if you know that nobody has",
            ));
        }
        let text = fs::read_to_string(path).map_err(io_error(path, "read the key"))?;
        let bytes = hex::decode::<32>(text.trim_end())
            .ok_or_else(|| bad("it is not 64 hexadecimal digits"))?;
        Ok(Self(SigningKey::from_bytes(&bytes)))
    }

    /// The key to check its signatures with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, message: &[u8]) -> String {
        hex::encode(&self.0.sign(message).to_bytes())
    }
}

fn create(path: &Path) -> Result<(), Error> {
    use rand::TryRng as _;
    let mut bytes = [0; 32];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::BadKey {
            path: path.to_owned(),
            reason: format!("the operating system gave no random bytes: {error}"),
        })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(io_error(folder, "create the folder"))?;
    let own = path.with_extension(format!("{}.new", std::process::id()));
    crate::wipe::replace(&own, format!("{}\n", hex::encode(&bytes)).as_bytes())
        .map_err(io_error(&own, "write the key"))?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600))
        .map_err(io_error(&own, "protect the key"))?;
    // A link fails where a key already is: the first one stays.
    let linked = fs::hard_link(&own, path);
    fs::remove_file(&own).map_err(io_error(&own, "remove"))?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error(path, "create the key")(error))
        }
        _ => crate::wipe::sync_folder(path).map_err(io_error(path, "sync the folder of")),
    }
}

impl PublicKey {
    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0.as_bytes())
    }

    /// The reverse; `None` where `text` is no key.
    pub fn from_hex(text: &str) -> Option<Self> {
        VerifyingKey::from_bytes(&hex::decode(text)?).ok().map(Self)
    }

    /// Strict in the sense of RFC 8032 section 5.1.7 and beyond: no second
    /// signature fits the same message and key.
    pub(super) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        hex::decode::<64>(signature).is_some_and(|bytes| {
            self.0
                .verify_strict(message, &Signature::from_bytes(&bytes))
                .is_ok()
        })
    }
}
