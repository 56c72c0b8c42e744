//! The commands of a hard disk (*ATA/ATAPI-8 ACS*, chapter 7).

use super::{
    channel::{ABORTED, BY_SECTOR, Busy, Channel, NOT_FOUND, Phase, Run, Then},
    drive::{HEADS, HardDisk, Identity, Kind, SECTOR, TRACK},
    lane::Work,
};

/// The most sectors of one block of READ MULTIPLE.
const MULTIPLE: u8 = 16;
const SIZE: u32 = SECTOR as u32;

/// How a command moves its sectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Sector by sector through the data register.
    Single,
    /// Block by block through the data register.
    Multiple,
    /// By the bus master.
    Dma,
    /// Not at all: they are only read.
    Verify,
}

/// What a command code means, where it moves sectors.
struct Transfer {
    way: Way,
    write: bool,
    /// 48-bit addresses.
    wide: bool,
    durable: bool,
}

fn transfer(command: u8) -> Option<Transfer> {
    let (way, write, wide) = match command {
        0x20 | 0x21 => (Way::Single, false, false),
        0x24 => (Way::Single, false, true),
        0x25 => (Way::Dma, false, true),
        0x29 => (Way::Multiple, false, true),
        0x30 | 0x31 => (Way::Single, true, false),
        0x34 => (Way::Single, true, true),
        0x35 | 0x3d => (Way::Dma, true, true),
        0x39 | 0xce => (Way::Multiple, true, true),
        0x40 | 0x41 => (Way::Verify, false, false),
        0x42 => (Way::Verify, false, true),
        0xc4 => (Way::Multiple, false, false),
        0xc5 => (Way::Multiple, true, false),
        0xc8 | 0xc9 => (Way::Dma, false, false),
        0xca | 0xcb => (Way::Dma, true, false),
        _ => return None,
    };
    Some(Transfer {
        way,
        write,
        wide,
        durable: matches!(command, 0x3d | 0xce),
    })
}

impl Channel {
    fn disk(&mut self) -> Option<&mut HardDisk> {
        match &mut self.active()?.kind {
            Kind::Disk(disk) => Some(disk),
            Kind::Optical(_) => None,
        }
    }

    pub(super) fn disk_command(&mut self, command: u8) {
        if let Some(transfer) = transfer(command) {
            self.transfer(&transfer);
            return;
        }
        match command {
            // RECALIBRATE, SEEK; there are no heads to move.
            0x10..=0x1f | 0x70..=0x7f => self.complete(),
            0x90 => self.diagnose(),
            0x91 => self.initialize_parameters(),
            0xc6 => self.set_multiple(),
            // STANDBY and IDLE in their forms, SLEEP: the drive is always ready.
            0x94..=0x97 | 0x99 | 0xe0..=0xe3 | 0xe6 => self.complete(),
            0x98 | 0xe5 => {
                if let Some(drive) = self.active() {
                    drive.registers.count[0] = 0xff;
                }
                self.complete();
            }
            0xe7 | 0xea => self.start(0, Work::Nothing, true, Busy::Last),
            0xec => self.identify_disk(),
            0xef => self.set_features(),
            // SMART, security and all that this drive does not have.
            _ => self.fail(ABORTED),
        }
    }

    /// The first sector and the number of sectors that the registers name.
    fn address(&mut self, wide: bool) -> Option<(u64, u32)> {
        let device = self.device;
        let drive = self.active()?;
        let Kind::Disk(disk) = &drive.kind else {
            return None;
        };
        let r = &drive.registers;
        if wide {
            let bytes = [
                r.low[0],
                r.middle[0],
                r.high[0],
                r.low[1],
                r.middle[1],
                r.high[1],
                0,
                0,
            ];
            let count = match u16::from_le_bytes(r.count) {
                0 => 0x1_0000,
                count => u32::from(count),
            };
            return Some((u64::from_le_bytes(bytes), count));
        }
        let count = match r.count[0] {
            0 => 256,
            count => u32::from(count),
        };
        let head = device & 0xf;
        if device & BY_SECTOR != 0 {
            let sector = u32::from_le_bytes([r.low[0], r.middle[0], r.high[0], head]);
            return Some((sector.into(), count));
        }
        let cylinder = u64::from(u16::from_le_bytes([r.middle[0], r.high[0]]));
        let (heads, track) = (u64::from(disk.state.heads), u64::from(disk.state.track));
        let in_track = u64::from(r.low[0]).checked_sub(1)?;
        if u64::from(head) >= heads || in_track >= track {
            return None;
        }
        Some((
            (cylinder * heads + u64::from(head)) * track + in_track,
            count,
        ))
    }

    fn transfer(&mut self, transfer: &Transfer) {
        let address = self.address(transfer.wide);
        let Some(disk) = self.disk() else { return };
        let (sectors, multiple) = (disk.sectors, disk.state.multiple);
        let durable = transfer.durable || (transfer.write && !disk.state.write_cache);
        if transfer.write && !disk.image.is_writable() {
            self.fail(ABORTED);
            return;
        }
        let Some((sector, left)) = address.filter(|(s, n)| s + u64::from(*n) <= sectors) else {
            self.fail(NOT_FOUND);
            return;
        };
        if transfer.way == Way::Multiple && multiple == 0 {
            self.fail(ABORTED);
            return;
        }
        let run = Run {
            sector,
            left,
            size: SIZE,
            block: match transfer.way {
                Way::Multiple => u32::from(multiple) * SIZE,
                _ => SIZE,
            },
            write: transfer.write,
            durable,
            packet: false,
        };
        match transfer.way {
            Way::Dma => self.move_by_dma(run),
            Way::Verify => {
                let length = u64::from(left) * SECTOR;
                let work = Work::Verify { length };
                self.start(sector * SECTOR, work, false, Busy::Last);
            }
            // The first block of a write is asked for without an interrupt.
            _ if transfer.write => self.write_sectors(run),
            _ => self.read_sectors(run),
        }
    }

    fn initialize_parameters(&mut self) {
        let head = self.device & 0xf;
        let Some(drive) = self.active() else { return };
        let track = drive.registers.count[0];
        if let Kind::Disk(disk) = &mut drive.kind
            && track != 0
        {
            disk.state.heads = head + 1;
            disk.state.track = track;
            self.complete();
        } else {
            self.fail(ABORTED);
        }
    }

    fn set_multiple(&mut self) {
        let Some(drive) = self.active() else { return };
        let count = drive.registers.count[0];
        if let Kind::Disk(disk) = &mut drive.kind
            && (count == 0 || count.is_power_of_two() && count <= MULTIPLE)
        {
            disk.state.multiple = count;
            self.complete();
        } else {
            self.fail(ABORTED);
        }
    }

    pub(super) fn set_features(&mut self) {
        let Some(drive) = self.active() else { return };
        let (feature, value) = (drive.registers.features[0], drive.registers.count[0]);
        match (&mut drive.kind, feature) {
            (Kind::Disk(disk), 0x02) => disk.state.write_cache = true,
            (Kind::Disk(disk), 0x82) => {
                disk.state.write_cache = false;
                // What was written until now is not to be kept in memory any longer.
                self.start(0, Work::Nothing, true, Busy::Last);
                return;
            }
            (kind, 0x03) if mode_exists(value) => match kind {
                Kind::Disk(disk) => disk.state.mode = value,
                Kind::Optical(optical) => optical.state.mode = value,
            },
            // Read look-ahead on and off, power-on defaults kept and reverted to.
            (_, 0xaa | 0x55 | 0x66 | 0xcc) => {}
            _ => {
                self.fail(ABORTED);
                return;
            }
        }
        self.complete();
    }

    fn identify_disk(&mut self) {
        let Some(disk) = self.disk() else { return };
        let words = identify_disk(disk);
        self.reply_words(&words);
    }

    /// Gives the guest an identification.
    pub(super) fn reply_words(&mut self, words: &[u16; 256]) {
        let buffer: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let block = buffer.len();
        self.phase = Phase::Idle;
        self.request_data(buffer, block, false, Then::End);
        self.interrupt();
    }
}

/// PIO by default, PIO 0 to 4, multiword DMA 0 to 2, Ultra DMA 0 to 5.
fn mode_exists(value: u8) -> bool {
    match value >> 3 {
        0 => value & 7 <= 1,
        1 => value & 7 <= 4,
        4 => value & 7 <= 2,
        8 => value & 7 <= 5,
        _ => false,
    }
}

/// Text in an identification: ASCII, padded with spaces, the bytes of each word swapped.
pub(super) fn set_text(words: &mut [u16], text: &str) {
    let mut bytes = text
        .bytes()
        .map(|byte| {
            if (0x20..0x7f).contains(&byte) {
                byte
            } else {
                b'?'
            }
        })
        .chain(std::iter::repeat(b' '));
    for word in words {
        let pair = [bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')];
        *word = u16::from_be_bytes(pair);
    }
}

/// The words that disks and CD-ROM drives have alike: names and transfer modes.
pub(super) fn set_common(words: &mut [u16; 256], identity: &Identity, mode: u8) {
    set_text(&mut words[10..20], &identity.serial);
    set_text(&mut words[23..27], env!("CARGO_PKG_VERSION"));
    set_text(&mut words[27..47], &identity.model);
    // Words 54-58, 64-70 and 88 mean something.
    words[53] = 7;
    let chosen = 1u16 << (mode & 7);
    words[63] = 0x07 | if mode >> 3 == 4 { chosen << 8 } else { 0 };
    words[64] = 3;
    words[65..69].fill(120);
    // ATA-4 to ATA-7.
    words[80] = 0xf0;
    words[88] = 0x3f | if mode >> 3 == 8 { chosen << 8 } else { 0 };
    // Reset found the cable and the drive in order.
    words[93] = 0x600b;
}

fn identify_disk(disk: &HardDisk) -> [u16; 256] {
    let mut words = [0; 256];
    let state = &disk.state;
    let cylinders = |heads: u8, track: u8, most: u64| {
        let size = u64::from(heads) * u64::from(track);
        (disk.sectors / size).min(most)
    };
    words[0] = 0x0040;
    words[1] = cylinders(HEADS, TRACK, 16_383) as u16;
    words[3] = HEADS.into();
    words[6] = TRACK.into();
    set_common(&mut words, &disk.identity, state.mode);
    words[47] = 0x8000 | u16::from(MULTIPLE);
    // LBA, DMA, IORDY.
    words[49] = 0x0f00;
    words[50] = 0x4000;
    let current = cylinders(state.heads, state.track, 65_535);
    let capacity = current * u64::from(state.heads) * u64::from(state.track);
    words[54] = current as u16;
    words[55] = state.heads.into();
    words[56] = state.track.into();
    words[57] = capacity as u16;
    words[58] = (capacity >> 16) as u16;
    if state.multiple > 0 {
        words[59] = 0x100 | u16::from(state.multiple);
    }
    let short = disk.sectors.min((1 << 28) - 1);
    words[60] = short as u16;
    words[61] = (short >> 16) as u16;
    // Write cache, look-ahead, power management; FLUSH CACHE and its wide form, 48-bit addresses.
    words[82] = 0x0068;
    words[83] = 0x7400;
    words[84] = 0x4040;
    words[85] = 0x0048 | if state.write_cache { 0x20 } else { 0 };
    words[86] = 0x3400;
    words[87] = 0x4040;
    for (word, shift) in words[100..104].iter_mut().zip([0, 16, 32, 48]) {
        *word = (disk.sectors >> shift) as u16;
    }
    // No moving parts.
    words[217] = 1;
    // Signature and checksum.
    words[255] = 0x00a5;
    let sum = words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0u8, u8::wrapping_add);
    words[255] |= u16::from(sum.wrapping_neg()) << 8;
    words
}
