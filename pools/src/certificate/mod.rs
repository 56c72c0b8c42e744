//! Certificates of finished wipes, made so that a change is noticed.
//!
//! A certificate is the report of one wipe with the node that did it, in
//! canonical JSON: one way to write it, so that any other byte is a change. It
//! carries the SHA-256 of the certificate before it and the Ed25519 signature
//! of the node's key, and so stands in a chain in which none can be missing.
//! `docs/schemas/wipe-certificate.json` describes it; a page of PDF beside it
//! says the same for people, and is not evidence.
//!
//! A domain that was taken away has one certificate more, which names those of its parts.
//!
//! A certificate claims what its report claims, never more. A signature shows
//! that the holder of a node's key said so: whoever can read that key (root on
//! the node) can say anything. Nothing here may certify a wipe that has not
//! run, or rewrite a certificate that is in the chain.

mod canonical;
mod chain;
mod document;
mod domain;
mod key;
mod pdf;
mod verify;

use std::io;
use std::path::{Path, PathBuf};

pub use chain::Issuer;
pub use document::{Certificate, NodeIdentity, Tool};
pub use domain::{DomainPart, DomainReport, KeptPart};
pub use key::{NodeKey, PublicKey};
pub use verify::{Chain, Verified, verify};

/// Why a certificate cannot be made or believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// On what.
        path: PathBuf,
        /// Doing what.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The node's key is not one.
    #[error("'{}' is no signing key of a node: {reason}", path.display())]
    BadKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is no certificate, or not as one is written.
    #[error("'{}' is no valid certificate: {reason}", path.display())]
    Malformed {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is the end of a chain, which names the last certificate and is
    /// none itself.
    #[error("'{}' is the head of a chain of certificates, no certificate; give {}",
        path.display(), instead(path, last.as_deref()))]
    IsHead {
        /// The head.
        path: PathBuf,
        /// The certificate it names, where that is in its place.
        last: Option<PathBuf>,
    },
    /// The signature does not fit the content.
    #[error("'{}' was changed after it was signed, or not signed by its node", path.display())]
    BadSignature {
        /// The certificate.
        path: PathBuf,
    },
    /// Another key signed it than the one trusted.
    #[error(
        "'{}' is signed by the key {found}, not by {expected}; give the key of the node that \
         issued it with --key", path.display()
    )]
    OtherKey {
        /// The certificate.
        path: PathBuf,
        /// Key in the certificate.
        found: String,
        /// Key trusted.
        expected: String,
    },
    /// The chain of certificates has a gap or was altered.
    #[error("the chain of certificates in '{}' is broken at number {number}: {reason}",
        folder.display())]
    BrokenChain {
        /// Where they lie.
        folder: PathBuf,
        /// The first number that is wrong.
        number: u64,
        /// In which way.
        reason: String,
    },
    /// The certificate of a domain names one of a wipe that is not so.
    #[error("'{}' names certificate {number}, which is not as it says", path.display())]
    OtherPart {
        /// The certificate.
        path: PathBuf,
        /// The one that it names.
        number: u64,
    },
    /// The report cannot be written as canonical JSON.
    #[error("the certificate cannot be written: {reason}")]
    Unwritable {
        /// What is wrong.
        reason: String,
    },
}

/// What to look at in place of a head.
fn instead(head: &Path, last: Option<&Path>) -> String {
    match last {
        Some(last) => format!("the last one, '{}', whose chain it ends", last.display()),
        None => format!("a certificate of '{}'", chain::folder_of(head).display()),
    }
}

pub(crate) fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        path,
        action,
        source,
    }
}
