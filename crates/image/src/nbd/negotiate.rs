//! The handshake: which export, and which extensions.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, Fields, INIT_MAGIC, MAX_PAYLOAD, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, handshake, info, invalid, option, reply, transmission,
};
use super::server::Export;

/// The longest option that is read; export names have 4096 bytes at most.
const OPTION_MAX: u32 = 64 << 10;
/// The longest that is skipped before the client is dropped.
const SKIPPED_MAX: u32 = 16 << 20;
/// Options of one client before it is dropped.
const OPTIONS_MAX: usize = 1000;

/// What was agreed.
pub(super) struct Agreement<'a> {
    pub(super) export: &'a Export,
    pub(super) structured: bool,
    /// Whether `base:allocation` was chosen for this export.
    pub(super) allocation: bool,
}

/// A negotiation under way.
struct Negotiation<'a, 's> {
    stream: &'s UnixStream,
    exports: &'a [Export],
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    allocation: Option<String>,
}

/// Goes through the handshake. `None` when the client ended it.
pub(super) fn negotiate<'a>(
    stream: &UnixStream,
    exports: &'a [Export],
) -> io::Result<Option<Agreement<'a>>> {
    let mut hello = Vec::with_capacity(18);
    hello.extend(INIT_MAGIC.to_be_bytes());
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend((handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
    let mut writer = stream;
    writer.write_all(&hello)?;
    let mut flags = [0; 4];
    let mut reader = stream;
    reader.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) != 0 {
        return Err(invalid("unknown client flags"));
    }
    let mut negotiation = Negotiation {
        stream,
        exports,
        no_zeroes: flags & u32::from(handshake::NO_ZEROES) != 0,
        structured: false,
        allocation: None,
    };
    for _ in 0..OPTIONS_MAX {
        match negotiation.next()? {
            Step::Continue => {}
            Step::Leave => return Ok(None),
            Step::Enter(export) => {
                return Ok(Some(Agreement {
                    allocation: negotiation.allocation.as_deref() == Some(&export.name),
                    structured: negotiation.structured,
                    export,
                }));
            }
        }
    }
    Err(invalid("too many options"))
}

enum Step<'a> {
    Continue,
    Leave,
    Enter(&'a Export),
}

/// The flags that an export is announced with.
fn transmission_flags(export: &Export, structured: bool) -> u16 {
    use transmission as t;
    let mut flags = t::HAS_FLAGS | t::SEND_FLUSH | t::CAN_MULTI_CONN | t::SEND_CACHE;
    if export.is_read_only() {
        flags |= t::READ_ONLY;
    } else {
        flags |= t::SEND_FUA | t::SEND_TRIM | t::SEND_WRITE_ZEROES;
    }
    if structured {
        flags |= t::SEND_DF;
    }
    flags
}

impl<'a> Negotiation<'a, '_> {
    fn next(&mut self) -> io::Result<Step<'a>> {
        let mut head = [0; 16];
        let mut reader = self.stream;
        reader.read_exact(&mut head)?;
        let mut fields = Fields(&head);
        if fields.u64() != Some(OPTION_MAGIC) {
            return Err(invalid("option without magic number"));
        }
        let (Some(number), Some(length)) = (fields.u32(), fields.u32()) else {
            return Err(invalid("short option"));
        };
        if length > SKIPPED_MAX {
            return Err(invalid("option too long"));
        }
        if length > OPTION_MAX {
            io::copy(&mut reader.take(u64::from(length)), &mut io::sink())?;
            self.reply(number, reply::ERR_TOO_BIG, b"option too long")?;
            return Ok(Step::Continue);
        }
        let mut data = vec![0; length as usize];
        reader.read_exact(&mut data)?;
        self.answer(number, &data)
    }

    fn answer(&mut self, number: u32, data: &[u8]) -> io::Result<Step<'a>> {
        match number {
            option::EXPORT_NAME => return self.export_name(data),
            option::ABORT => {
                self.reply(number, reply::ACK, &[])?;
                return Ok(Step::Leave);
            }
            option::LIST if data.is_empty() => self.list(number)?,
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(number, reply::ACK, &[])?;
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.reply(number, reply::ERR_INVALID, b"the option takes no data")?;
            }
            option::INFO | option::GO => return self.info(number, data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(number, data)?;
            }
            _ => self.reply(number, reply::ERR_UNSUPPORTED, b"not supported")?,
        }
        Ok(Step::Continue)
    }

    fn reply(&self, number: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(20 + data.len());
        message.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        message.extend(number.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        let mut writer = self.stream;
        writer.write_all(&message)
    }

    /// The export of this name; the empty name is the first one.
    fn find(&self, name: &str) -> Option<&'a Export> {
        let exports = self.exports;
        match name {
            "" => exports
                .iter()
                .find(|export| export.name.is_empty())
                .or(exports.first()),
            _ => exports.iter().find(|export| export.name == name),
        }
    }

    /// The old way in; there is no way to refuse but to hang up.
    fn export_name(&mut self, data: &[u8]) -> io::Result<Step<'a>> {
        let export = std::str::from_utf8(data)
            .ok()
            .and_then(|name| self.find(name))
            .ok_or_else(|| invalid("unknown export"))?;
        let mut message = Vec::with_capacity(134);
        message.extend(export.device.size().to_be_bytes());
        message.extend(transmission_flags(export, self.structured).to_be_bytes());
        if !self.no_zeroes {
            message.resize(message.len() + 124, 0);
        }
        let mut writer = self.stream;
        writer.write_all(&message)?;
        Ok(Step::Enter(export))
    }

    fn list(&self, number: u32) -> io::Result<()> {
        for export in self.exports {
            let mut data = (export.name.len() as u32).to_be_bytes().to_vec();
            data.extend(export.name.as_bytes());
            data.extend(export.description.as_bytes());
            self.reply(number, reply::SERVER, &data)?;
        }
        self.reply(number, reply::ACK, &[])
    }

    fn info(&mut self, number: u32, data: &[u8]) -> io::Result<Step<'a>> {
        let Some((name, requests)) = parse_info(data) else {
            self.reply(number, reply::ERR_INVALID, b"malformed option")?;
            return Ok(Step::Continue);
        };
        let Some(export) = self.find(name) else {
            self.reply(number, reply::ERR_UNKNOWN, b"no such export")?;
            return Ok(Step::Continue);
        };
        let mut message = info::EXPORT.to_be_bytes().to_vec();
        message.extend(export.device.size().to_be_bytes());
        message.extend(transmission_flags(export, self.structured).to_be_bytes());
        self.reply(number, reply::INFO, &message)?;
        for request in requests {
            self.information(number, export, request)?;
        }
        self.reply(number, reply::ACK, &[])?;
        if number == option::INFO {
            return Ok(Step::Continue);
        }
        // Contexts chosen under the empty name belong to the export it means.
        if let Some(chosen) = &self.allocation
            && self
                .find(chosen)
                .is_some_and(|found| std::ptr::eq(found, export))
        {
            self.allocation = Some(export.name.clone());
        }
        Ok(Step::Enter(export))
    }

    fn information(&self, number: u32, export: &Export, request: u16) -> io::Result<()> {
        let mut message = request.to_be_bytes().to_vec();
        match request {
            info::NAME => message.extend(export.name.as_bytes()),
            info::DESCRIPTION => message.extend(export.description.as_bytes()),
            info::BLOCK_SIZE => {
                let preferred = export.device.preferred_block_size();
                for size in [1, preferred.clamp(512, MAX_PAYLOAD), MAX_PAYLOAD] {
                    message.extend(size.to_be_bytes());
                }
            }
            // EXPORT was sent already; unknown requests are ignored.
            _ => return Ok(()),
        }
        self.reply(number, reply::INFO, &message)
    }

    fn meta_context(&mut self, number: u32, data: &[u8]) -> io::Result<()> {
        let setting = number == option::SET_META_CONTEXT;
        let parsed = parse_meta_context(data).filter(|_| self.structured);
        let Some((name, queries)) = parsed else {
            return self.reply(
                number,
                reply::ERR_INVALID,
                b"malformed option, or structured replies were not chosen before",
            );
        };
        if setting {
            self.allocation = None;
        }
        if self.find(name).is_none() {
            return self.reply(number, reply::ERR_UNKNOWN, b"no such export");
        }
        let every = !setting && queries.is_empty();
        let asked = queries
            .iter()
            .any(|query| *query == BASE_ALLOCATION || (!setting && *query == "base:"));
        if every || asked {
            let id = if setting { BASE_ALLOCATION_ID } else { 0 };
            let mut message = id.to_be_bytes().to_vec();
            message.extend(BASE_ALLOCATION.as_bytes());
            self.reply(number, reply::META_CONTEXT, &message)?;
            if setting {
                self.allocation = Some(name.to_owned());
            }
        }
        self.reply(number, reply::ACK, &[])
    }
}

fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u16()?;
    let requests = (0..count)
        .map(|_| fields.u16())
        .collect::<Option<Vec<_>>>()?;
    fields.0.is_empty().then_some((name, requests))
}

fn parse_meta_context(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u32()?;
    let queries = (0..count)
        .map(|_| fields.text())
        .collect::<Option<Vec<_>>>()?;
    fields.0.is_empty().then_some((name, queries))
}
