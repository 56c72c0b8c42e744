//! Keys by their names: Linux's key codes (`linux/input-event-codes.h`), which are libvirt's usual
//! code set, and the scan codes of set 1 that a PC's keyboard has for them.

use std::time::Duration;

use super::error::Error as DomainError;
use crate::error::Result;
use crate::node::Node;
use crate::supervisor::protocol::Request;

/// The most keys that are pressed together, libvirt's own limit.
pub const MOST_KEYS: usize = 16;

/// Names of the key codes 1 to 88, without `KEY_`. These are the scan codes, too.
const PLAIN: &str = "ESC 1 2 3 4 5 6 7 8 9 0 MINUS EQUAL BACKSPACE TAB Q W E R T Y U I O P \
    LEFTBRACE RIGHTBRACE ENTER LEFTCTRL A S D F G H J K L SEMICOLON APOSTROPHE GRAVE LEFTSHIFT \
    BACKSLASH Z X C V B N M COMMA DOT SLASH RIGHTSHIFT KPASTERISK LEFTALT SPACE CAPSLOCK F1 F2 \
    F3 F4 F5 F6 F7 F8 F9 F10 NUMLOCK SCROLLLOCK KP7 KP8 KP9 KPMINUS KP4 KP5 KP6 KPPLUS KP1 KP2 \
    KP3 KP0 KPDOT - ZENKAKUHANKAKU 102ND F11 F12";

/// Names, key codes and scan codes of keys whose scan codes follow 0xe0, which bit 7 stands for.
const PREFIXED: [(&str, u16, u8); 19] = [
    ("KPENTER", 96, 0x9c),
    ("RIGHTCTRL", 97, 0x9d),
    ("KPSLASH", 98, 0xb5),
    ("SYSRQ", 99, 0xb7),
    ("RIGHTALT", 100, 0xb8),
    ("HOME", 102, 0xc7),
    ("UP", 103, 0xc8),
    ("PAGEUP", 104, 0xc9),
    ("LEFT", 105, 0xcb),
    ("RIGHT", 106, 0xcd),
    ("END", 107, 0xcf),
    ("DOWN", 108, 0xd0),
    ("PAGEDOWN", 109, 0xd1),
    ("INSERT", 110, 0xd2),
    ("DELETE", 111, 0xd3),
    ("POWER", 116, 0xde),
    ("LEFTMETA", 125, 0xdb),
    ("RIGHTMETA", 126, 0xdc),
    ("COMPOSE", 127, 0xdd),
];

/// The scan code of a key by its name in Linux's set (`KEY_A`) or its number there; bit 7 stands
/// for the prefix 0xe0. `None` for keys that a PC's keyboard does not have.
pub fn scan_code(key: &str) -> Option<u8> {
    if let Ok(number) = key.parse::<u16>() {
        let prefixed = PREFIXED.iter().find(|(_, code, _)| *code == number);
        let plain = u8::try_from(number)
            .ok()
            .filter(|code| (1..=88).contains(code) && *code != 84);
        return prefixed.map(|(.., code)| *code).or(plain);
    }
    let name = key.strip_prefix("KEY_")?;
    let prefixed = PREFIXED.iter().find(|(found, ..)| *found == name);
    let plain = || {
        PLAIN
            .split_whitespace()
            .position(|found| found == name && name != "-")
    };
    match prefixed {
        Some((.., code)) => Some(*code),
        None => u8::try_from(plain()?.checked_add(1)?).ok(),
    }
}

impl Node {
    /// Presses keys of a running domain together, by their scan codes, and lets them go after
    /// `held`.
    ///
    /// # Errors
    /// There are none, or more than [`MOST_KEYS`]; the domain does not run.
    pub fn domain_send_keys(&self, key: &str, codes: &[u8], held: Duration) -> Result<String> {
        if codes.is_empty() || codes.len() > MOST_KEYS {
            let text = format!(
                "{} keys cannot be pressed: give 1 to {MOST_KEYS}",
                codes.len()
            );
            return Err(DomainError::InvalidArgument(text).into());
        }
        let (row, _lock) = self.lock_domain(key)?;
        let request = |down| Request::Keys {
            codes: codes.to_vec(),
            down,
        };
        self.ask_row(&row, "press keys of", &request(true))?;
        if !self.is_read_only() {
            std::thread::sleep(held);
        }
        self.ask_row(&row, "let keys go of", &request(false))?;
        Ok(row.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_scan_codes_of_a_pc() {
        for (key, code) in [
            ("KEY_ESC", Some(1)),
            ("KEY_A", Some(0x1e)),
            ("KEY_SPACE", Some(0x39)),
            ("KEY_F10", Some(0x44)),
            ("KEY_KPDOT", Some(0x53)),
            ("KEY_102ND", Some(0x56)),
            ("KEY_F12", Some(0x58)),
            ("KEY_DELETE", Some(0xd3)),
            ("KEY_LEFTCTRL", Some(0x1d)),
            ("30", Some(0x1e)),
            ("111", Some(0xd3)),
            ("0", None),
            ("84", None),
            ("500", None),
            ("KEY_-", None),
            ("A", None),
        ] {
            assert_eq!(scan_code(key), code, "{key}");
        }
    }
}
