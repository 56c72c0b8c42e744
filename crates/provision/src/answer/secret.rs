//! Passwords: made from the system's random numbers, hashed before they reach a file, wiped
//! from memory when they are done with.

use std::fmt;

use sha_crypt::{PasswordHasher, ShaCrypt};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

/// Longest password in bytes: crypt's own programs take no longer ones.
const MAX_PASSWORD: usize = 512;

/// Why a password is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
pub enum SecretError {
    /// Empty.
    #[error("the password is empty")]
    Empty,
    /// Too long, or more than one line.
    #[error("a password is one line of at most {MAX_PASSWORD} bytes")]
    Shape,
    /// The system gives no random numbers.
    #[error("the system's random number generator failed")]
    Random,
    /// No hash as crypt(3) writes them.
    #[error("this is no hash of a password ($6$…, $y$…)")]
    Hash,
}

/// A text that is shown to no one: not in logs, not in errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Takes a password.
    ///
    /// # Errors
    /// [`SecretError::Empty`], [`SecretError::Shape`].
    pub fn new(text: String) -> Result<Self, SecretError> {
        let text = Zeroizing::new(text);
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        if text.len() > MAX_PASSWORD || text.contains(char::is_control) {
            return Err(SecretError::Shape);
        }
        Ok(Self(text))
    }

    /// A password of 20 letters and digits that are not mistaken for one another: 115 bits.
    ///
    /// # Errors
    /// [`SecretError::Random`].
    pub fn password() -> Result<Self, SecretError> {
        const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ2345679";
        random_text(LETTERS, 20).map(Self)
    }

    /// A token of 32 letters and digits, for addresses and markers: 160 bits.
    ///
    /// # Errors
    /// [`SecretError::Random`].
    pub fn token() -> Result<Self, SecretError> {
        random_text(b"abcdefghijklmnopqrstuvwxyz234567", 32).map(Self)
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Its hash.
    ///
    /// # Errors
    /// [`SecretError::Random`].
    pub fn hash(&self) -> Result<PasswordHash, SecretError> {
        // Twelve bytes are the sixteen characters of salt that crypt(3) takes.
        let mut salt = [0u8; 12];
        getrandom::fill(&mut salt).map_err(|_| SecretError::Random)?;
        let hash = ShaCrypt::SHA512
            .hash_password_with_salt(self.0.as_bytes(), &salt)
            .map_err(|_| SecretError::Random)?;
        hash.as_str().parse()
    }
}

/// Characters of an alphabet, each as likely as any other.
fn random_text(alphabet: &[u8], length: usize) -> Result<Zeroizing<String>, SecretError> {
    let mut text = Zeroizing::new(String::with_capacity(length));
    let fair = 256 / alphabet.len() * alphabet.len();
    while text.len() < length {
        let mut bytes = Zeroizing::new([0u8; 64]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|_| SecretError::Random)?;
        for byte in bytes.iter().map(|byte| usize::from(*byte)) {
            // Bytes above the last whole multiple would favour the first letters.
            if byte < fair && text.len() < length {
                text.push(char::from(alphabet[byte % alphabet.len()]));
            }
        }
    }
    Ok(text)
}

/// A hash of a password as crypt(3) writes them.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

impl PasswordHash {
    /// The hash, for an answer file.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for PasswordHash {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"$./=,-_".contains(&b));
        if plain && super::is_hashed(text) && text.len() <= 512 {
            Ok(Self(text.to_owned()))
        } else {
            Err(SecretError::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new("hunter2".into()).unwrap();
        let hash = secret.hash().unwrap();
        let shown = format!("{secret:?} {hash:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("$6$"),
            "{shown}"
        );
        assert!(hash.expose().starts_with("$6$"));
        assert_ne!(hash, secret.hash().unwrap(), "salted");
    }

    #[test]
    fn made_passwords_differ_and_use_their_alphabet() {
        let (a, b) = (Secret::password().unwrap(), Secret::password().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.expose().len(), 20);
        assert!(a.expose().bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_eq!(Secret::token().unwrap().expose().len(), 32);
    }

    #[test]
    fn what_is_no_password_or_hash_is_refused() {
        assert_eq!(Secret::new(String::new()), Err(SecretError::Empty));
        assert_eq!(Secret::new("a\nb".into()), Err(SecretError::Shape));
        for text in [
            "",
            "plain",
            "$6$salt",
            "$6$$x",
            "$6$salt$x\ny",
            "$6$salt$x' y",
            "$$a$b",
        ] {
            assert!(text.parse::<PasswordHash>().is_err(), "{text:?}");
        }
    }
}
