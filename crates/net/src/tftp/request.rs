//! TFTP packets (RFC 1350), their options (RFC 2347, 2348, 2349, 7440).

/// Error codes of RFC 1350 and RFC 2347.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorCode {
    Undefined = 0,
    NotFound = 1,
    AccessViolation = 2,
    IllegalOperation = 4,
    UnknownTransfer = 5,
}

/// The longest file name, in bytes.
const LONGEST_NAME: usize = 512;
/// Block size without the option.
pub(super) const DEFAULT_BLOCK: u16 = 512;
/// Most blocks in flight that are granted.
const LARGEST_WINDOW: u16 = 64;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Read(ReadRequest),
    Acknowledge(u16),
    /// The client ends the transfer.
    Error,
    /// Something else, with the code to refuse it by.
    Refused(ErrorCode, &'static str),
}

/// A request to read a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadRequest {
    /// The name, as it was asked for.
    pub(super) name: String,
    /// Size of a block in bytes, 8 to 65464.
    pub(super) block_size: Option<u16>,
    /// Whether the file's size is asked for.
    pub(super) size: bool,
    /// Seconds until a block is sent again, 1 to 255.
    pub(super) timeout: Option<u8>,
    /// Blocks in flight.
    pub(super) window: Option<u16>,
}

impl Packet {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        match bytes.split_at_checked(2) {
            Some(([0, 1], rest)) => Self::read_request(rest),
            Some(([0, 2], _)) => {
                Self::Refused(ErrorCode::AccessViolation, "nothing is written here")
            }
            Some(([0, 4], [high, low, ..])) => Self::Acknowledge(u16::from_be_bytes([*high, *low])),
            Some(([0, 5], _)) => Self::Error,
            _ => Self::Refused(ErrorCode::IllegalOperation, "not a TFTP request"),
        }
    }

    fn read_request(bytes: &[u8]) -> Self {
        let malformed = Self::Refused(ErrorCode::IllegalOperation, "malformed request");
        // Every string, the last one too, ends with a zero byte.
        let Some((0, strings)) = bytes.split_last() else {
            return malformed;
        };
        let mut strings = strings.split(|&byte| byte == 0);
        let (Some(name), Some(mode)) = (strings.next(), strings.next()) else {
            return malformed;
        };
        let Ok(name) = std::str::from_utf8(name) else {
            return Self::Refused(ErrorCode::NotFound, "file not found");
        };
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Self::Refused(ErrorCode::NotFound, "file not found");
        }
        if !mode.eq_ignore_ascii_case(b"octet") {
            return Self::Refused(ErrorCode::IllegalOperation, "only octet mode is served");
        }
        let mut request = ReadRequest {
            name: name.to_owned(),
            block_size: None,
            size: false,
            timeout: None,
            window: None,
        };
        // An option that is unknown or out of range is ignored, as RFC 2347 has it.
        while let (Some(option), Some(value)) = (strings.next(), strings.next()) {
            let value = std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.parse::<u64>().ok());
            let Some(value) = value else { continue };
            match option.to_ascii_lowercase().as_slice() {
                b"blksize" if (8..=65_464).contains(&value) => {
                    request.block_size = u16::try_from(value).ok();
                }
                b"tsize" => request.size = true,
                b"timeout" if (1..=255).contains(&value) => {
                    request.timeout = u8::try_from(value).ok();
                }
                b"windowsize" if (1..=65_535).contains(&value) => {
                    request.window = u16::try_from(value)
                        .ok()
                        .map(|window| window.min(LARGEST_WINDOW));
                }
                _ => {}
            }
        }
        Self::Read(request)
    }
}

/// A block of the file.
pub(super) fn data(number: u64, content: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(4 + content.len());
    packet.extend_from_slice(&[0, 3]);
    // Numbers begin again at 0 in files of more than 65535 blocks, as clients expect.
    packet.extend_from_slice(&(number as u16).to_be_bytes());
    packet.extend_from_slice(content);
    packet
}

/// The options that were granted.
pub(super) fn option_acknowledgement(options: &[(&str, u64)]) -> Vec<u8> {
    let mut packet = vec![0, 6];
    for (name, value) in options {
        packet.extend_from_slice(name.as_bytes());
        packet.push(0);
        packet.extend_from_slice(value.to_string().as_bytes());
        packet.push(0);
    }
    packet
}

pub(super) fn error(code: ErrorCode, text: &str) -> Vec<u8> {
    let mut packet = vec![0, 5, 0, code as u8];
    packet.extend_from_slice(text.as_bytes());
    packet.push(0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &[u8]) -> Packet {
        let mut bytes = vec![0, 1];
        bytes.extend_from_slice(text);
        Packet::parse(&bytes)
    }

    #[test]
    fn options_are_read_and_those_out_of_range_ignored() {
        let Packet::Read(read) = request(
            b"pxelinux.0\0OCTET\0tsize\x000\0BlkSize\x001408\0timeout\x00300\0windowsize\x00500\0odd\x001\0",
        ) else {
            panic!("not a request");
        };
        assert_eq!(read.name, "pxelinux.0");
        assert_eq!(read.block_size, Some(1408));
        assert!(read.size);
        assert_eq!(read.timeout, None);
        assert_eq!(read.window, Some(LARGEST_WINDOW));
        for (size, expected) in [
            ("7", None),
            ("8", Some(8)),
            ("65464", Some(65464)),
            ("65465", None),
            ("-1", None),
        ] {
            let Packet::Read(read) = request(format!("f\0octet\0blksize\0{size}\0").as_bytes())
            else {
                panic!("not a request");
            };
            assert_eq!(read.block_size, expected);
        }
    }

    #[test]
    fn what_is_not_a_read_request_is_refused() {
        for bytes in [
            &b"f\0octet"[..],
            b"f\0",
            b"\0octet\0",
            b"",
            b"f\0netascii\0",
            b"f\0mail\0",
            b"\xff\xfe\0octet\0",
        ] {
            assert!(matches!(request(bytes), Packet::Refused(..)), "{bytes:?}");
        }
        let long = [vec![b'a'; LONGEST_NAME + 1], b"\0octet\0".to_vec()].concat();
        assert!(matches!(
            request(&long),
            Packet::Refused(ErrorCode::NotFound, _)
        ));
        assert!(matches!(
            Packet::parse(b"\0\x02f\0octet\0"),
            Packet::Refused(ErrorCode::AccessViolation, _)
        ));
        assert!(matches!(Packet::parse(b"\0\x04\0"), Packet::Refused(..)));
        assert_eq!(Packet::parse(b"\0\x04\x01\x02"), Packet::Acknowledge(0x102));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), opcode in 0u8..7) {
            let mut packet = vec![0, opcode];
            packet.extend_from_slice(&bytes);
            let _ = Packet::parse(&packet);
            let _ = Packet::parse(&bytes);
        }
    }
}
