//! The certificate itself, in memory and on disk.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::domain::DomainReport;
use super::key::{NodeKey, PublicKey};
use super::{Error, canonical, chain, io_error};
use crate::wipe::{WipeReport, hex};

/// Version of the format.
pub(super) const FORMAT: u32 = 1;
/// Larger files are no certificates.
const LARGEST: u64 = 64 << 20;
/// Keeps signatures of certificates from standing for anything else.
const CONTEXT: &[u8] = b"cenote wipe certificate 1\n";

/// The node a wipe ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeIdentity {
    /// Host name.
    pub name: String,
    /// Unique id of the node's state.
    pub id: String,
}

/// The program that made a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Default for Tool {
    fn default() -> Self {
        Self {
            name: "cenote".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A signed report: of a wipe, or of a domain all parts of which were wiped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Version of this format, 1.
    pub format: u32,
    /// What it claims at most.
    pub claim: String,
    /// Place in the node's chain, from 1.
    pub sequence: u64,
    /// SHA-256 of the file before it in the chain; none for the first.
    pub previous: Option<String>,
    /// When it was made, RFC 3339.
    pub issued: String,
    /// Where.
    pub node: NodeIdentity,
    /// With what.
    pub tool: Tool,
    /// What was done, if it was a wipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<WipeReport>,
    /// What was done, if a whole domain was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainReport>,
    /// Ed25519 key of the node, hexadecimal.
    pub public_key: String,
    /// Ed25519 signature of everything above, hexadecimal.
    pub signature: String,
}

/// What a certificate is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Deed<'a> {
    /// A wipe.
    Wipe(&'a WipeReport),
    /// A domain taken away.
    Domain(&'a DomainReport),
}

impl<'a> Deed<'a> {
    /// By which it is known again.
    pub(super) fn id(self) -> &'a str {
        match self {
            Self::Wipe(report) => &report.id,
            Self::Domain(report) => &report.id,
        }
    }

    fn claim(self) -> &'static str {
        match self {
            Self::Wipe(_) => CLAIM,
            Self::Domain(_) => DOMAIN_CLAIM,
        }
    }

    fn report(self) -> Option<&'a WipeReport> {
        match self {
            Self::Wipe(report) => Some(report),
            Self::Domain(_) => None,
        }
    }

    fn domain(self) -> Option<&'a DomainReport> {
        match self {
            Self::Wipe(_) => None,
            Self::Domain(report) => Some(report),
        }
    }
}

/// The same of a domain's.
const DOMAIN_CLAIM: &str = "the parts listed were the domain's own and are removed; of each the \
                            certificate named claims what it claims, nothing beyond";

/// A certificate's own words on its reach.
pub(super) const CLAIM: &str = "Clear (NIST SP 800-88r2) of the extents listed, where the verdict \
                                is 'overwritten and verified'; nothing beyond";

impl Certificate {
    pub(super) fn sign(
        sequence: u64,
        previous: Option<String>,
        node: &NodeIdentity,
        deed: Deed<'_>,
        key: &NodeKey,
    ) -> Result<Self, Error> {
        let mut certificate = Self {
            format: FORMAT,
            claim: deed.claim().to_owned(),
            sequence,
            previous,
            issued: format!("{:.3}", jiff::Timestamp::now()),
            node: node.clone(),
            tool: Tool::default(),
            report: deed.report().cloned(),
            domain: deed.domain().cloned(),
            public_key: key.public().to_hex(),
            signature: String::new(),
        };
        certificate.signature = key.sign(&certificate.signed_bytes()?);
        Ok(certificate)
    }

    /// What the signature covers: all members but itself, in canonical form.
    fn signed_bytes(&self) -> Result<Vec<u8>, Error> {
        let unwritable = |reason| Error::Unwritable { reason };
        let mut value =
            serde_json::to_value(self).map_err(|error| unwritable(error.to_string()))?;
        if let Some(members) = value.as_object_mut() {
            members.remove("signature");
        }
        let mut bytes = CONTEXT.to_vec();
        bytes.extend(canonical::to_vec(&value).map_err(unwritable)?);
        Ok(bytes)
    }

    /// The bytes of its file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = canonical::to_vec(self).map_err(|reason| Error::Unwritable { reason })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a certificate and checks that its bytes are the canonical ones
    /// and that its own key signed it. Gives the digest of the file as well.
    pub fn read(path: &Path) -> Result<(Self, String), Error> {
        let size = std::fs::metadata(path)
            .map_err(io_error(path, "look at"))?
            .len();
        let malformed = |reason: String| Error::Malformed {
            path: path.to_owned(),
            reason,
        };
        if size > LARGEST {
            return Err(malformed(format!("{size} bytes are too many")));
        }
        let bytes = std::fs::read(path).map_err(io_error(path, "read"))?;
        if let Some(number) = chain::Head::number_in(&bytes) {
            let files = chain::files(chain::folder_of(path));
            return Err(Error::IsHead {
                path: path.to_owned(),
                last: files.ok().and_then(|mut files| files.remove(&number)),
            });
        }
        let certificate: Self =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if certificate.format != FORMAT {
            let found = certificate.format;
            return Err(malformed(format!(
                "format {found}, this program knows {FORMAT}"
            )));
        }
        if certificate.report.is_some() == certificate.domain.is_some() {
            return Err(malformed("it is of one deed, and of one only".to_owned()));
        }
        if certificate.to_bytes()? != bytes {
            return Err(malformed("it is not written in canonical form".to_owned()));
        }
        let key = PublicKey::from_hex(&certificate.public_key)
            .ok_or_else(|| malformed("its public key is none".to_owned()))?;
        if !key.verifies(&certificate.signed_bytes()?, &certificate.signature) {
            return Err(Error::BadSignature {
                path: path.to_owned(),
            });
        }
        Ok((certificate, digest(&bytes)))
    }
}

/// SHA-256, hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
}
