//! Believing a certificate, or not.

use std::collections::BTreeMap;
use std::path::Path;

use super::chain::{self, Head};
use super::document::Certificate;
use super::key::PublicKey;
use super::{Error, io_error};

/// How far to look beyond the certificate itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// All certificates of its folder must be there, linked and signed by the
    /// same key, and the head must name the last.
    Whole,
    /// The certificate is away from its folder.
    Alone,
}

/// A certificate that holds.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The certificate.
    pub certificate: Certificate,
    /// SHA-256 of its file.
    pub digest: String,
    /// Certificates in its chain, where that was looked at.
    pub chain_length: Option<u64>,
    /// Whether the key was one the caller trusts, not only the one in it.
    pub key_is_trusted: bool,
}

/// Checks the certificate at `path`: its form, its signature, the key if
/// `trusted` is given, and its chain.
pub fn verify(path: &Path, chain: Chain, trusted: Option<&PublicKey>) -> Result<Verified, Error> {
    let (certificate, digest) = Certificate::read(path)?;
    if let Some(key) = trusted
        && certificate.public_key != key.to_hex()
    {
        return Err(Error::OtherKey {
            path: path.to_owned(),
            found: certificate.public_key,
            expected: key.to_hex(),
        });
    }
    let chain_length = match chain {
        Chain::Alone => None,
        Chain::Whole => Some(verify_chain(path, &certificate, &digest)?),
    };
    Ok(Verified {
        certificate,
        digest,
        chain_length,
        key_is_trusted: trusted.is_some(),
    })
}

fn verify_chain(path: &Path, certificate: &Certificate, digest: &str) -> Result<u64, Error> {
    let path = path.canonicalize().map_err(io_error(path, "find"))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let broken = |number: u64, reason: String| Error::BrokenChain {
        folder: folder.to_owned(),
        number,
        reason,
    };
    let files = chain::files(folder)?;
    let mut previous = None;
    let mut seen = false;
    let mut digests = BTreeMap::new();
    for (expected, (&number, file)) in (1..).zip(&files) {
        if number != expected {
            return Err(broken(expected, "its certificate is missing".to_owned()));
        }
        let (link, link_digest) = Certificate::read(file)?;
        if link.sequence != number || link.previous != previous {
            return Err(broken(
                number,
                "it does not follow the one before".to_owned(),
            ));
        }
        if link.public_key != certificate.public_key {
            return Err(broken(number, "another key signed it".to_owned()));
        }
        seen |= number == certificate.sequence && link_digest == digest;
        digests.insert(number, link_digest.clone());
        previous = Some(link_digest);
    }
    let parts = certificate.domain.iter().flat_map(|domain| &domain.parts);
    for part in parts {
        if digests.get(&part.certificate) != Some(&part.digest) {
            return Err(Error::OtherPart {
                path,
                number: part.certificate,
            });
        }
    }
    if !seen {
        let reason = "the certificate asked about is not in its place".to_owned();
        return Err(broken(certificate.sequence, reason));
    }
    let last = files.len() as u64;
    check_head(folder, certificate, last, previous.as_deref(), &files)
        .map_err(|reason| broken(last, reason))?;
    Ok(last)
}

/// The head names the last certificate; or, where a crash came between the
/// two, the one before it.
fn check_head(
    folder: &Path,
    certificate: &Certificate,
    last: u64,
    digest: Option<&str>,
    files: &BTreeMap<u64, std::path::PathBuf>,
) -> Result<(), String> {
    let key = PublicKey::from_hex(&certificate.public_key).ok_or("its key is none")?;
    let head = Head::read(folder).map_err(|error| error.to_string())?;
    let Some(head) = head else {
        return if last == 1 {
            Ok(())
        } else {
            Err("its head is missing".to_owned())
        };
    };
    if !head.is_signed_by(&key) {
        return Err("its head was changed after it was signed".to_owned());
    }
    if head.sequence > last {
        return Err(format!("certificates up to {} were issued", head.sequence));
    }
    let named = if head.sequence == last {
        digest.map(str::to_owned)
    } else {
        match files
            .get(&head.sequence)
            .filter(|_| head.sequence + 1 == last)
        {
            Some(path) => Some(
                Certificate::read(path)
                    .map_err(|error| error.to_string())?
                    .1,
            ),
            None => None,
        }
    };
    if named.as_deref() != Some(head.digest.as_str()) {
        return Err("its head names another certificate".to_owned());
    }
    Ok(())
}
