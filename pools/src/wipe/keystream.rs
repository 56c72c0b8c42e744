//! The random passes: AES-256 in counter mode (NIST SP 800-38A, section 6.5).
//!
//! The key stream is seekable, so that reading back and resuming need no more
//! than a key and an offset: the byte at offset `o` of a file is byte `o` of
//! the stream with a zero initial counter block. Anyone can make the same
//! bytes: `openssl enc -aes-256-ctr -K KEY -iv 0 -in /dev/zero`.
//!
//! One secret is drawn from the operating system for a wipe; each file and
//! pass has a key of its own derived from it, so that showing the key of the
//! last pass in a certificate tells nothing about an earlier one.

use aes::cipher::{Array, BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes256, Block};
use sha2::{Digest, Sha256};

use super::hex;

/// The secret of one wipe, 256 bits from the operating system.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// The AES-256 key of one pass over one file.
#[derive(Clone, PartialEq, Eq)]
pub struct PassKey([u8; 32]);

impl Secret {
    /// Draws a secret from the operating system's generator.
    pub fn generate() -> Result<Self, super::Error> {
        use rand::TryRng as _;
        let mut bytes = [0; 32];
        rand::rngs::SysRng
            .try_fill_bytes(&mut bytes)
            .map_err(|error| super::Error::NoRandomness {
                reason: error.to_string(),
            })?;
        Ok(Self(bytes))
    }

    /// The key for pass `pass` (from 0) over the `file`-th file of the wipe.
    pub fn pass_key(&self, file: u32, pass: u32) -> PassKey {
        let mut hash = Sha256::new();
        hash.update(b"cenote wipe pass key 1");
        hash.update(self.0);
        hash.update(file.to_be_bytes());
        hash.update(pass.to_be_bytes());
        PassKey(hash.finalize().into())
    }

    pub(crate) fn to_hex(&self) -> String {
        hex::encode(&self.0)
    }
}

impl std::str::FromStr for Secret {
    type Err = BadSecret;

    /// From 64 lower-case hexadecimal digits, as a journal's record has it.
    fn from_str(text: &str) -> Result<Self, BadSecret> {
        hex::decode(text).map(Self).ok_or(BadSecret)
    }
}

/// A text that is no [`Secret`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret is 64 lower-case hexadecimal digits")]
pub struct BadSecret;

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PassKey {
    /// 64 lower-case hexadecimal digits, as `openssl enc -K` takes them.
    pub fn to_hex(&self) -> String {
        hex::encode(&self.0)
    }

    /// The reverse of [`PassKey::to_hex`]; `None` where `text` is no key.
    pub fn from_hex(text: &str) -> Option<Self> {
        hex::decode(text).map(Self)
    }

    /// A generator positioned by each call.
    pub fn stream(&self) -> KeyStream {
        KeyStream(Aes256::new(&self.0.into()))
    }
}

impl std::fmt::Debug for PassKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PassKey(..)")
    }
}

/// The expanded key of one pass. Cheap to seek; the round keys are kept.
pub struct KeyStream(Aes256);

impl std::fmt::Debug for KeyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyStream(..)")
    }
}

/// Bytes that stay in the first-level cache while they are worked on.
const PIECE: usize = 8 << 10;

/// Bytes of an AES block, and of its counter.
const BLOCK: u64 = 16;

impl KeyStream {
    /// Fills `buffer` with the bytes that belong at `offset` of the file.
    pub fn fill(&self, buffer: &mut [u8], offset: u64) {
        // A buffer that begins within a block takes the end of that block.
        let inside = (offset % BLOCK) as usize;
        let head = (BLOCK as usize - inside) % BLOCK as usize;
        let (head, rest) = buffer.split_at_mut(head.min(buffer.len()));
        if !head.is_empty() {
            let block = self.block(offset / BLOCK);
            head.copy_from_slice(&block[inside..inside + head.len()]);
        }
        let mut number = offset.div_ceil(BLOCK);
        for piece in rest.chunks_mut(PIECE) {
            let (blocks, tail) = Block::slice_as_chunks_mut(piece);
            // The counters are encrypted where they stand: no zeroes to lay
            // down first, and nothing to XOR.
            for block in &mut *blocks {
                *block = counter(number);
                number += 1;
            }
            self.0.encrypt_blocks(blocks);
            if !tail.is_empty() {
                tail.copy_from_slice(&self.block(number)[..tail.len()]);
            }
        }
    }

    /// Whether `buffer` holds the bytes that belong at `offset`. On a
    /// difference, the index of the first byte that is wrong.
    pub fn check(&self, buffer: &[u8], offset: u64) -> Result<(), usize> {
        let mut expected = [0; PIECE];
        let mut done = 0;
        for piece in buffer.chunks(PIECE) {
            let expected = &mut expected[..piece.len()];
            self.fill(expected, offset + done as u64);
            if expected != piece {
                let wrong = expected.iter().zip(piece).position(|(a, b)| a != b);
                return Err(done + wrong.unwrap_or_default());
            }
            done += piece.len();
        }
        Ok(())
    }

    fn block(&self, number: u64) -> Block {
        let mut block = counter(number);
        self.0.encrypt_block(&mut block);
        block
    }
}

/// The counter block of the `number`-th block of a file. Offsets are 64 bits,
/// so the upper half of the counter is never reached.
fn counter(number: u64) -> Block {
    Array(u128::from(number).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn equals_openssl_at_any_offset() {
        let key = Secret::generate().unwrap().pass_key(3, 1);
        let mut child = Command::new("openssl")
            .args(["enc", "-aes-256-ctr", "-nosalt", "-K", &key.to_hex()])
            .args(["-iv", "00000000000000000000000000000000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs the package 'openssl'");
        let mut input = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || input.write_all(&vec![0; 300_000]).unwrap());
        let mut expected = Vec::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_end(&mut expected)
            .unwrap();
        writer.join().unwrap();
        child.wait().unwrap();

        let stream = key.stream();
        for (offset, length) in [
            (0, 300_000),
            (1, 70_000),
            (3, 5),
            (16, 16),
            (31, 1),
            (123_457, 100_001),
        ] {
            let mut ours = vec![0xee; length];
            stream.fill(&mut ours, offset as u64);
            assert!(ours == expected[offset..offset + length], "offset {offset}");
            assert_eq!(stream.check(&ours, offset as u64), Ok(()));
        }
    }

    #[test]
    fn names_the_first_wrong_byte() {
        let stream = Secret::generate().unwrap().pass_key(0, 0).stream();
        let mut buffer = vec![0; 100_000];
        stream.fill(&mut buffer, 4096);
        buffer[77_777] ^= 1;
        buffer[77_779] ^= 1;
        assert_eq!(stream.check(&buffer, 4096), Err(77_777));
    }

    #[test]
    fn keys_of_files_and_passes_differ() {
        let secret = Secret::generate().unwrap();
        let keys: std::collections::HashSet<_> = (0..3)
            .flat_map(|f| (0..3).map(move |p| (f, p)))
            .map(|(f, p)| secret.pass_key(f, p).to_hex())
            .collect();
        assert_eq!(keys.len(), 9);
        assert_eq!(secret.to_hex().parse::<Secret>().unwrap(), secret);
        assert_ne!(Secret::generate().unwrap(), secret);
    }
}
