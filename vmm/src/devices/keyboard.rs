//! A PS/2 keyboard as the controller sees it: commands in, answers and scan codes out.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// As many bytes as the keyboard's own buffer holds.
const BUFFER: usize = 16;
const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const OVERRUN: u8 = 0x00;

/// The keyboard and its saved state, which is all it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyboardState {
    /// Bytes that the controller has not fetched.
    pub output: VecDeque<u8>,
    /// The command that waits for its parameter.
    pub command: Option<u8>,
    /// Keys are reported.
    pub scanning: bool,
    /// Scan code set, 1 to 3.
    pub set: u8,
    /// The LEDs' bits.
    pub leds: u8,
}

impl Default for KeyboardState {
    fn default() -> Self {
        Self {
            output: VecDeque::new(),
            command: None,
            scanning: true,
            set: 2,
            leds: 0,
        }
    }
}

impl KeyboardState {
    /// Whether the state is one that a keyboard can be in.
    pub(super) fn is_valid(&self) -> bool {
        self.output.len() <= BUFFER && (1..=3).contains(&self.set)
    }

    /// A byte from the controller.
    pub(super) fn write(&mut self, byte: u8) {
        match self.command.take() {
            Some(0xed) => {
                self.leds = byte & 7;
                self.answer(&[ACKNOWLEDGE]);
            }
            Some(0xf0) if byte == 0 => {
                let set = self.set;
                self.answer(&[ACKNOWLEDGE, set]);
            }
            Some(0xf0) if byte <= 3 => {
                self.set = byte;
                self.answer(&[ACKNOWLEDGE]);
            }
            // The typematic rate is the host's.
            Some(0xf3) => self.answer(&[ACKNOWLEDGE]),
            Some(_) => self.answer(&[RESEND]),
            None => self.command(byte),
        }
    }

    fn command(&mut self, command: u8) {
        match command {
            0xed | 0xf0 | 0xf3 => {
                self.command = Some(command);
                self.answer(&[ACKNOWLEDGE]);
            }
            0xee => self.answer(&[0xee]),
            0xf2 => self.answer(&[ACKNOWLEDGE, 0xab, 0x83]),
            0xf4 => {
                self.output.clear();
                self.scanning = true;
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf5 | 0xf6 => {
                *self = Self {
                    scanning: command == 0xf6,
                    leds: self.leds,
                    ..Self::default()
                };
                self.answer(&[ACKNOWLEDGE]);
            }
            0xff => {
                *self = Self::default();
                // Acknowledged, then the self-test's result.
                self.answer(&[ACKNOWLEDGE, 0xaa]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    /// Answers go out even when keys have filled the buffer.
    fn answer(&mut self, bytes: &[u8]) {
        if self.output.len() + bytes.len() > BUFFER {
            self.output.clear();
        }
        self.output.extend(bytes);
    }

    /// A key goes down or up. `key` is its code in set 1 with bit 7 set for keys that are
    /// prefixed with 0xe0. With `translated`, the controller turns set 2 into set 1 on the way.
    pub(super) fn key(&mut self, key: u8, down: bool, translated: bool) {
        if !self.scanning {
            return;
        }
        let code = key & 0x7f;
        let mut bytes = Vec::with_capacity(3);
        if key & 0x80 != 0 {
            bytes.push(0xe0);
        }
        // Translating what set 2 would send gives set 1's codes.
        if self.set == 1 || translated {
            bytes.push(code | if down { 0 } else { 0x80 });
        } else {
            let Some(code) = set_2(code) else { return };
            if !down {
                bytes.push(0xf0);
            }
            bytes.push(code);
        }
        if self.output.len() + bytes.len() < BUFFER {
            self.output.extend(bytes);
        } else if self.output.len() < BUFFER && self.output.back() != Some(&OVERRUN) {
            self.output.push_back(OVERRUN);
        }
    }
}

/// Set 2's code of the key that has `code` in set 1.
fn set_2(code: u8) -> Option<u8> {
    const SET_2: [u8; 0x59] = [
        0x00, 0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66,
        0x0d, 0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14,
        0x1c, 0x1b, 0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a,
        0x22, 0x21, 0x2a, 0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05,
        0x06, 0x04, 0x0c, 0x03, 0x0b, 0x83, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b,
        0x6b, 0x73, 0x74, 0x79, 0x69, 0x72, 0x7a, 0x70, 0x71, 0x84, 0x60, 0x61, 0x78, 0x07,
    ];
    SET_2
        .get(usize::from(code))
        .copied()
        .filter(|code| *code != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(keyboard: &mut KeyboardState) -> Vec<u8> {
        keyboard.output.drain(..).collect()
    }

    #[test]
    fn commands_are_answered() {
        let mut keyboard = KeyboardState::default();
        for (bytes, answer) in [
            (&[0xff][..], &[0xfa, 0xaa][..]),
            (&[0xf2], &[0xfa, 0xab, 0x83]),
            (&[0xee], &[0xee]),
            (&[0xed, 0x07], &[0xfa, 0xfa]),
            (&[0xf3, 0x20], &[0xfa, 0xfa]),
            (&[0xf0, 0], &[0xfa, 0xfa, 2]),
            (&[0xf0, 9], &[0xfa, 0xfe]),
            (&[0x12], &[0xfe]),
        ] {
            for byte in bytes {
                keyboard.write(*byte);
            }
            assert_eq!(take(&mut keyboard), answer, "{bytes:x?}");
        }
    }

    #[test]
    fn keys_are_sent_in_the_set_that_is_chosen() {
        let mut keyboard = KeyboardState::default();
        // Delete on the grey block is e0 53 in set 1 and e0 71 in set 2.
        keyboard.key(0xd3, true, false);
        keyboard.key(0xd3, false, false);
        assert_eq!(take(&mut keyboard), [0xe0, 0x71, 0xe0, 0xf0, 0x71]);
        keyboard.key(0xd3, true, true);
        keyboard.key(0xd3, false, true);
        assert_eq!(take(&mut keyboard), [0xe0, 0x53, 0xe0, 0xd3]);
        keyboard.write(0xf5);
        take(&mut keyboard);
        keyboard.key(0x1e, true, true);
        assert!(take(&mut keyboard).is_empty());
    }

    #[test]
    fn a_full_buffer_says_so_once_and_still_answers() {
        let mut keyboard = KeyboardState::default();
        for _ in 0..40 {
            keyboard.key(0x1e, true, true);
        }
        assert_eq!(keyboard.output.len(), BUFFER);
        assert_eq!(keyboard.output.iter().filter(|b| **b == OVERRUN).count(), 1);
        keyboard.write(0xee);
        assert_eq!(take(&mut keyboard), [0xee]);
    }
}
