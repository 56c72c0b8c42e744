//! The commands of a CD-ROM drive: those of ATA that it takes, and those that come in packets
//! (*MultiMedia Commands 5*, chapter 6).

use super::{
    MediumError,
    ata::{set_common, set_text},
    channel::{ABORTED, Channel, Phase, Run, Then},
    drive::{
        CD_SECTOR, DATA_REQUEST, FAILED, Identity, Kind, Optical, READY, Registers, SEEK_COMPLETE,
    },
    sense::{
        ILLEGAL_MODE, INVALID_COMMAND, INVALID_FIELD, MEDIUM_CHANGED, NO_MEDIUM,
        NO_MEDIUM_TRAY_OPEN, NO_SENSE, OUT_OF_RANGE, REMOVAL_PREVENTED, SAVING_NOT_SUPPORTED,
        Sense,
    },
};
use cenote_image::Image;

/// Length of a packet, in bytes.
pub(super) const PACKET: usize = 12;
const SIZE: u32 = CD_SECTOR as u32;
/// Bit of the features register: data comes by the bus master.
const BY_DMA: u8 = 1;

const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const START_STOP: u8 = 0x1b;
const PREVENT_ALLOW: u8 = 0x1e;
const READ_CAPACITY: u8 = 0x25;
const READ_10: u8 = 0x28;
const SEEK: u8 = 0x2b;
const READ_SUBCHANNEL: u8 = 0x42;
const READ_TOC: u8 = 0x43;
const GET_CONFIGURATION: u8 = 0x46;
const GET_EVENT: u8 = 0x4a;
const READ_DISC_INFORMATION: u8 = 0x51;
const MODE_SENSE: u8 = 0x5a;
const READ_12: u8 = 0xa8;
const READ_DVD_STRUCTURE: u8 = 0xad;
const SET_SPEED: u8 = 0xbb;
const MECHANISM_STATUS: u8 = 0xbd;
const READ_CD: u8 = 0xbe;

/// Media events.
const EVENT_EJECT: u8 = 1;
const EVENT_NEW: u8 = 2;
const EVENT_GONE: u8 = 3;

/// More sectors than a CD has make a DVD.
const LARGEST_CD: u32 = 360_000;
const PROFILE_DVD: u16 = 0x10;
const PROFILE_CD: u16 = 0x08;
/// The lead-out's number in a table of contents.
const LEAD_OUT: u8 = 0xaa;

/// What a packet command leads to.
enum Answer {
    Done,
    /// Data, already cut to what the guest has room for.
    Reply(Vec<u8>),
    /// First sector and number of sectors.
    Sectors(u32, u32),
    Failed(Sense),
}

impl Optical {
    /// Changes the medium from outside.
    pub(super) fn change(&mut self, medium: Option<Image>, force: bool) -> Result<(), MediumError> {
        let state = &mut self.state;
        if state.locked && !state.tray_open && !force {
            state.event = EVENT_EJECT;
            return Err(MediumError::Locked);
        }
        state.locked = false;
        state.tray_open = medium.is_none();
        if medium.is_some() {
            state.event = EVENT_NEW;
            state.attention = Some(MEDIUM_CHANGED);
        } else {
            state.event = EVENT_GONE;
            state.attention = None;
        }
        self.image = medium;
        Ok(())
    }

    fn no_medium(&self) -> Sense {
        if self.state.tray_open {
            NO_MEDIUM_TRAY_OPEN
        } else {
            NO_MEDIUM
        }
    }

    fn is_dvd(&self) -> bool {
        self.sectors() > LARGEST_CD
    }

    fn profile(&self) -> u16 {
        match self.sectors() {
            0 => 0,
            _ if self.is_dvd() => PROFILE_DVD,
            _ => PROFILE_CD,
        }
    }

    fn answer(&mut self, packet: &[u8; PACKET]) -> Answer {
        let told_first = !matches!(
            packet[0],
            REQUEST_SENSE | INQUIRY | GET_CONFIGURATION | GET_EVENT
        );
        if told_first && let Some(attention) = self.state.attention.take() {
            return Answer::Failed(attention);
        }
        let needs_medium = matches!(
            packet[0],
            TEST_UNIT_READY
                | READ_CAPACITY
                | READ_10
                | READ_12
                | READ_CD
                | SEEK
                | READ_SUBCHANNEL
                | READ_TOC
                | READ_DISC_INFORMATION
                | READ_DVD_STRUCTURE
        );
        if needs_medium && self.sectors() == 0 {
            return Answer::Failed(self.no_medium());
        }
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
        let room = |length: usize, data: Vec<u8>| {
            let mut data = data;
            data.truncate(length);
            Answer::Reply(data)
        };
        match packet[0] {
            TEST_UNIT_READY | SET_SPEED => Answer::Done,
            REQUEST_SENSE => {
                let pending = self.state.attention.take();
                let sense = std::mem::replace(&mut self.state.sense, NO_SENSE);
                let sense = if sense == NO_SENSE {
                    pending.unwrap_or(sense)
                } else {
                    sense
                };
                room(packet[4].into(), sense.data().to_vec())
            }
            // No vital product data.
            INQUIRY if packet[1] & 1 != 0 || packet[2] != 0 => Answer::Failed(INVALID_FIELD),
            INQUIRY => room(word(3).into(), inquiry(&self.identity)),
            START_STOP => self.start_stop(packet[4]),
            PREVENT_ALLOW => {
                self.state.locked = packet[4] & 1 != 0;
                Answer::Done
            }
            READ_CAPACITY => {
                let mut data = (self.sectors() - 1).to_be_bytes().to_vec();
                data.extend(SIZE.to_be_bytes());
                Answer::Reply(data)
            }
            READ_10 => self.read(long(2), word(7).into()),
            READ_12 => self.read(long(2), long(6)),
            READ_CD => self.read_cd(packet, long(2)),
            SEEK if long(2) < self.sectors() => Answer::Done,
            SEEK => Answer::Failed(OUT_OF_RANGE),
            // The header alone: no audio is playing.
            READ_SUBCHANNEL => room(word(7).into(), vec![0, 0x15, 0, 0]),
            READ_TOC => match self.table_of_contents(packet) {
                Some(data) => room(word(7).into(), data),
                None => Answer::Failed(INVALID_FIELD),
            },
            GET_CONFIGURATION => room(word(7).into(), self.configuration(packet[1] & 3, word(2))),
            // Only asking, no waiting.
            GET_EVENT if packet[1] & 1 == 0 => Answer::Failed(INVALID_FIELD),
            GET_EVENT => {
                let data = self.event(packet[4]);
                room(word(7).into(), data)
            }
            READ_DISC_INFORMATION if packet[1] & 7 != 0 => Answer::Failed(INVALID_FIELD),
            READ_DISC_INFORMATION => room(word(7).into(), disc_information()),
            MODE_SENSE => match self.mode_sense(packet[2]) {
                Ok(data) => room(word(7).into(), data),
                Err(sense) => Answer::Failed(sense),
            },
            READ_DVD_STRUCTURE => match self.dvd_structure(packet) {
                Some(data) => room(word(8).into(), data),
                None => Answer::Failed(INVALID_FIELD),
            },
            MECHANISM_STATUS => {
                let open = if self.state.tray_open { 0x10 } else { 0 };
                room(word(8).into(), vec![0, open, 0, 0, 0, 1, 0, 0])
            }
            _ => Answer::Failed(INVALID_COMMAND),
        }
    }

    fn start_stop(&mut self, what: u8) -> Answer {
        // LoEj and Start; without LoEj the disc only spins up or down.
        match what & 3 {
            2 if self.state.locked => return Answer::Failed(REMOVAL_PREVENTED),
            2 if !self.state.tray_open => {
                self.state.tray_open = true;
                self.state.event = EVENT_GONE;
            }
            3 if self.state.tray_open => {
                self.state.tray_open = false;
                if self.image.is_some() {
                    self.state.event = EVENT_NEW;
                    self.state.attention = Some(MEDIUM_CHANGED);
                }
            }
            _ => {}
        }
        Answer::Done
    }

    fn read(&self, first: u32, count: u32) -> Answer {
        let end = u64::from(first) + u64::from(count);
        if end > u64::from(self.sectors()) || first >= self.sectors() {
            Answer::Failed(OUT_OF_RANGE)
        } else if count == 0 {
            Answer::Done
        } else {
            Answer::Sectors(first, count)
        }
    }

    /// The user data of a sector is all that an image has of it.
    fn read_cd(&self, packet: &[u8; PACKET], first: u32) -> Answer {
        let count = u32::from_be_bytes([0, packet[6], packet[7], packet[8]]);
        match packet[9] & 0xf8 {
            0 => Answer::Done,
            0x10 if packet[10] & 7 == 0 => self.read(first, count),
            _ => Answer::Failed(ILLEGAL_MODE),
        }
    }

    fn table_of_contents(&self, packet: &[u8; PACKET]) -> Option<Vec<u8>> {
        let by_time = packet[1] & 2 != 0;
        let start = packet[6];
        // The format stands in byte 2, or as older drivers have it, in the last.
        let format = match packet[2] & 0xf {
            0 => packet[9] >> 6,
            format => format,
        };
        let address = |sector: u32| -> [u8; 4] {
            if by_time {
                let frames = sector + 150;
                let minute = (frames / 75 / 60).min(255) as u8;
                [0, minute, (frames / 75 % 60) as u8, (frames % 75) as u8]
            } else {
                sector.to_be_bytes()
            }
        };
        let mut data = vec![0, 0, 1, 1];
        match format {
            0 => {
                if start > 1 && start != LEAD_OUT {
                    return None;
                }
                if start <= 1 {
                    // A data track that may be copied.
                    data.extend([0, 0x14, 1, 0]);
                    data.extend(address(0));
                }
                data.extend([0, 0x14, LEAD_OUT, 0]);
                data.extend(address(self.sectors()));
            }
            // One session, which starts with track 1.
            1 => {
                data.extend([0, 0x14, 1, 0]);
                data.extend(address(0));
            }
            2 => {
                let mut entry = |point: u8, at: [u8; 4]| {
                    data.extend([1, 0x14, 0, point, 0, 0, 0]);
                    data.extend(at);
                };
                entry(0xa0, [0, 1, 0, 0]);
                entry(0xa1, [0, 1, 0, 0]);
                entry(0xa2, address(self.sectors()));
                entry(1, address(0));
            }
            _ => return None,
        }
        let length = (data.len() as u16 - 2).to_be_bytes();
        data[..2].copy_from_slice(&length);
        Some(data)
    }

    /// Features from `first` on: all, the current ones, or only that one.
    fn configuration(&self, which: u8, first: u16) -> Vec<u8> {
        let current = self.profile();
        let with_medium = u8::from(current != 0);
        let profile = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [high, low, u8::from(number == current), 0]
        };
        let mut profiles = vec![0, 0, 3, 8];
        profiles.extend(profile(PROFILE_DVD));
        profiles.extend(profile(PROFILE_CD));
        let features: [(u16, Vec<u8>, u8); 6] = [
            (0, profiles, 1),
            // The core: ATAPI.
            (1, vec![0, 1, 0x0b, 8, 0, 0, 0, 2, 1, 0, 0, 0], 1),
            // Morphing: asked, not told.
            (2, vec![0, 2, 7, 4, 2, 0, 0, 0], 1),
            // A tray that can be locked and opened.
            (3, vec![0, 3, 3, 4, 0x29, 0, 0, 0], 1),
            (
                0x10,
                vec![0, 0x10, 0, 8, 0, 0, 8, 0, 0, 1, 0, 0],
                with_medium,
            ),
            (
                0x1e,
                vec![0, 0x1e, 8, 4, 0, 0, 0, 0],
                u8::from(current == PROFILE_CD),
            ),
        ];
        let mut data = vec![0; 6];
        data.extend(current.to_be_bytes());
        for (number, mut bytes, is_current) in features {
            bytes[2] = bytes[2] & !1 | is_current;
            let wanted = match which {
                0 => number >= first,
                1 => number >= first && is_current == 1,
                _ => number == first,
            };
            if wanted {
                data.extend(bytes);
            }
        }
        let length = (data.len() as u32 - 4).to_be_bytes();
        data[..4].copy_from_slice(&length);
        data
    }

    fn event(&mut self, classes: u8) -> Vec<u8> {
        const MEDIA: u8 = 4;
        if classes & 1 << MEDIA == 0 {
            // No event of a class that is known here.
            return vec![0, 2, 0x80, 1 << MEDIA];
        }
        let event = std::mem::take(&mut self.state.event);
        let open = u8::from(self.state.tray_open);
        let present = u8::from(self.sectors() > 0) << 1;
        vec![0, 6, MEDIA, 1 << MEDIA, event, open | present, 0, 0]
    }

    fn mode_sense(&self, page: u8) -> Result<Vec<u8>, Sense> {
        if page >> 6 == 3 {
            return Err(SAVING_NOT_SUPPORTED);
        }
        // Nothing can be changed.
        let shown = |bytes: &[u8]| -> Vec<u8> {
            let keep = if page >> 6 == 1 { 2 } else { bytes.len() };
            let mut bytes = bytes.to_vec();
            bytes[keep..].fill(0);
            bytes
        };
        let recovery = shown(&[1, 6, 0, 5, 0, 0, 0, 0]);
        let lock = u8::from(self.state.locked) << 1;
        let mut capabilities = [0; 22];
        capabilities[..8].copy_from_slice(&[0x2a, 20, 0x3b, 0, 0x70, 0, 0x29 | lock, 0]);
        // Speeds in kB/s: 706 is fourfold for a CD.
        capabilities[8..10].copy_from_slice(&706u16.to_be_bytes());
        capabilities[11] = 2;
        capabilities[12..14].copy_from_slice(&512u16.to_be_bytes());
        capabilities[14..16].copy_from_slice(&706u16.to_be_bytes());
        let capabilities = shown(&capabilities);
        let pages = match page & 0x3f {
            0x01 => recovery,
            0x2a => capabilities,
            0x3f => [recovery, capabilities].concat(),
            _ => return Err(INVALID_FIELD),
        };
        let kind = match (self.state.tray_open, self.sectors()) {
            (true, _) => 0x71,
            (false, 0) => 0x70,
            _ => 0x01,
        };
        let [high, low] = (pages.len() as u16 + 6).to_be_bytes();
        let mut data = vec![high, low, kind, 0, 0, 0, 0, 0];
        data.extend(pages);
        Ok(data)
    }

    fn dvd_structure(&self, packet: &[u8; PACKET]) -> Option<Vec<u8>> {
        // Physical format information of a DVD's only layer.
        if !self.is_dvd() || packet[1] & 0xf != 0 || packet[6] != 0 || packet[7] != 0 {
            return None;
        }
        const FIRST: u32 = 0x3_0000;
        // The length of what follows; a DVD-ROM of 120 mm with one layer, and its addresses.
        let mut data = vec![0x08, 0x02, 0, 0, 0x01, 0x0f, 0x01, 0];
        data.extend(FIRST.to_be_bytes());
        data.extend((FIRST + self.sectors().min(0xf0_0000) - 1).to_be_bytes());
        data.resize(2052, 0);
        Some(data)
    }
}

fn inquiry(identity: &Identity) -> Vec<u8> {
    // CD-ROM, removable, MMC, 31 more bytes.
    let mut data = vec![5, 0x80, 0, 0x21, 31, 0, 0, 0];
    let mut text = |text: &str, length: usize| {
        let bytes = text
            .bytes()
            .filter(u8::is_ascii)
            .chain(std::iter::repeat(b' '));
        data.extend(bytes.take(length));
    };
    text("CENOTE", 8);
    text(&identity.model, 16);
    text(env!("CARGO_PKG_VERSION"), 4);
    data
}

/// One finished session with one track, nothing to be written.
fn disc_information() -> Vec<u8> {
    let mut data = vec![0, 32, 0x0e, 1, 1, 1, 1, 0x20, 0, 0, 0, 0, 0, 0, 0, 0];
    data.extend([0xff; 8]);
    data.resize(34, 0);
    data
}

fn identify(optical: &Optical) -> [u16; 256] {
    let mut words = [0; 256];
    // ATAPI, CD-ROM, removable, 12-byte packets, data requests within 50 microseconds.
    words[0] = 0x85c0;
    set_common(&mut words, &optical.identity, optical.state.mode);
    set_text(&mut words[27..47], &optical.identity.model);
    // DMA, LBA, IORDY.
    words[49] = 0x0f00;
    // PACKET, DEVICE RESET.
    words[82] = 0x0210;
    words[83] = 0x4000;
    words[84] = 0x4000;
    words[85] = 0x0210;
    words[87] = 0x4000;
    // Interrupt reasons are not needed to be waited for.
    words[125] = 0;
    words
}

impl Channel {
    fn optical(&mut self) -> Option<(&mut Optical, &mut Registers)> {
        let drive = self.active()?;
        match &mut drive.kind {
            Kind::Optical(optical) => Some((optical, &mut drive.registers)),
            Kind::Disk(_) => None,
        }
    }

    pub(super) fn packet_drive_command(&mut self, command: u8) {
        match command {
            0x90 => self.diagnose(),
            0xa0 => self.ask_for_packet(),
            0xa1 => {
                let Some((optical, _)) = self.optical() else {
                    return;
                };
                let words = identify(optical);
                self.reply_words(&words);
            }
            0xe0..=0xe3 | 0xe6 => self.complete(),
            0xe5 => {
                if let Some((_, registers)) = self.optical() {
                    registers.count[0] = 0xff;
                }
                self.complete();
            }
            0xef => self.set_features(),
            // IDENTIFY DEVICE and READ SECTORS are answered with the signature, by which a driver
            // finds out what it talks to.
            0xec | 0x20 => {
                if let Some(drive) = self.active() {
                    drive.sign();
                }
                self.fail(ABORTED);
            }
            _ => self.fail(ABORTED),
        }
    }

    fn ask_for_packet(&mut self) {
        if let Some((_, registers)) = self.optical() {
            // Command, to the drive.
            registers.count[0] = 1;
        }
        self.request_data(vec![0; PACKET], PACKET, true, Then::Packet);
    }

    /// A packet has arrived.
    pub(super) fn packet(&mut self, bytes: &[u8]) {
        let Ok(packet) = <&[u8; PACKET]>::try_from(bytes) else {
            return;
        };
        let Some((optical, registers)) = self.optical() else {
            return;
        };
        let by_dma = registers.features[0] & BY_DMA != 0;
        // How much the guest takes at once: an even number of bytes.
        let limit = match u16::from_le_bytes([registers.middle[0], registers.high[0]]) & !1 {
            0 => 0xfffe,
            limit => limit,
        };
        let answer = optical.answer(packet);
        tracing::trace!(command = packet[0], by_dma, "packet command");
        match answer {
            Answer::Failed(sense) => self.fail_packet(sense),
            Answer::Done => self.complete_packet(),
            Answer::Reply(data) if data.is_empty() => self.complete_packet(),
            Answer::Reply(data) if by_dma => {
                self.phase = Phase::ReplyDma(data);
                self.set_status(READY | SEEK_COMPLETE | DATA_REQUEST);
                self.start_bus_master();
            }
            Answer::Reply(data) => {
                self.request_data(data, limit.into(), false, Then::PacketEnd);
                self.interrupt();
            }
            Answer::Sectors(first, count) => {
                let run = Run {
                    sector: first.into(),
                    left: count,
                    size: SIZE,
                    block: limit.into(),
                    write: false,
                    durable: false,
                    packet: true,
                };
                if by_dma {
                    self.move_by_dma(run);
                } else {
                    self.read_sectors(run);
                }
            }
        }
    }

    /// The packet command has been carried out.
    pub(super) fn complete_packet(&mut self) {
        if let Some((optical, registers)) = self.optical() {
            // REQUEST SENSE has taken the sense data already.
            optical.state.sense = NO_SENSE;
            // Status, to the guest.
            registers.count[0] = 3;
        }
        self.complete();
    }

    /// The packet command has failed; REQUEST SENSE tells why.
    pub(super) fn fail_packet(&mut self, sense: Sense) {
        self.phase = Phase::Idle;
        if let Some((optical, registers)) = self.optical() {
            optical.state.sense = sense;
            registers.count[0] = 3;
            registers.error = sense.key << 4 | if sense.key == 5 { ABORTED } else { 0 };
            registers.status = READY | SEEK_COMPLETE | FAILED;
        }
        self.interrupt();
    }
}
