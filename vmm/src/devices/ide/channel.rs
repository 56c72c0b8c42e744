//! A channel: the task file of two drives, the phases of a command, and its interrupt.

use super::{
    MediumError,
    bus_master::BusMaster,
    drive::{BUSY, DATA_REQUEST, Drive, FAILED, Kind, READY, SEEK_COMPLETE, SavedDrive},
    lane::{Job, Lane, Outcome, Work},
    sense::{READ_ERROR, TRANSFER_ERROR},
};
use crate::{interrupt::IrqLine, memory::GuestMemory};
use cenote_image::Image;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_memory::{Bytes as _, GuestAddress};

const DATA: u8 = 0;
const ERROR: u8 = 1;
const COUNT: u8 = 2;
const LOW: u8 = 3;
const MIDDLE: u8 = 4;
const HIGH: u8 = 5;
const DEVICE: u8 = 6;
const COMMAND: u8 = 7;

/// Bits of the device register.
const SECOND: u8 = 1 << 4;
pub(super) const BY_SECTOR: u8 = 1 << 6;
const DEVICE_ONES: u8 = 0xa0;

/// Bits of the control register.
const NO_INTERRUPT: u8 = 1 << 1;
const RESET: u8 = 1 << 2;
const DEEPER: u8 = 1 << 7;

const DEVICE_RESET: u8 = 0x08;

/// Bits of the error register.
pub(super) const ABORTED: u8 = 1 << 2;
pub(super) const NOT_FOUND: u8 = 1 << 4;
pub(super) const UNCORRECTABLE: u8 = 1 << 6;

/// How much is read ahead or gathered for programmed transfers, in bytes.
const BUFFER: u32 = 64 << 10;

/// Sectors that a command moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    /// The next sector.
    pub(super) sector: u64,
    /// Sectors that are still to be moved.
    pub(super) left: u32,
    /// Bytes of a sector.
    pub(super) size: u32,
    /// Bytes that are moved at one request for data.
    pub(super) block: u32,
    /// To the drive.
    pub(super) write: bool,
    /// Durable when the command ends.
    pub(super) durable: bool,
    /// The command came in a packet.
    pub(super) packet: bool,
}

impl Run {
    /// Splits off what goes through the buffer next.
    fn next(&mut self) -> (u64, u32) {
        let whole = (BUFFER / self.block).max(1) * self.block / self.size;
        let count = self.left.min(whole.max(1));
        let offset = self.sector * u64::from(self.size);
        self.sector += u64::from(count);
        self.left -= count;
        (offset, count * self.size)
    }
}

/// What follows when the data of a phase has been moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Then {
    /// The command ends without an interrupt.
    End,
    /// The packet command ends with an interrupt.
    PacketEnd,
    /// The packet is a command.
    Packet,
    /// More sectors; data that came is written at this offset.
    Sectors(Run, u64),
}

/// Where a command stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// None is under way.
    #[default]
    Idle,
    /// The guest reads or writes the data register.
    Data {
        buffer: Vec<u8>,
        at: usize,
        /// End of the block that is requested now.
        end: usize,
        block: usize,
        to_drive: bool,
        then: Then,
    },
    /// Sectors wait for the bus master.
    SectorDma(Run),
    /// A reply to a packet waits for the bus master.
    ReplyDma(Vec<u8>),
    /// A job is in the lane.
    #[serde(skip)]
    Busy(Busy),
}

/// What follows a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Busy {
    Read(Run),
    Write(Run),
    Dma {
        more: bool,
        packet: bool,
    },
    /// The command ends with an interrupt.
    Last,
}

/// A channel.
pub(super) struct Channel {
    pub(super) drives: [Option<Drive>; 2],
    pub(super) bus_master: BusMaster,
    pub(super) device: u8,
    control: u8,
    /// The drive that the phase belongs to.
    active: usize,
    pub(super) phase: Phase,
    requested: bool,
    may_master: bool,
    line: Arc<dyn IrqLine>,
    pub(super) memory: GuestMemory,
    lane: Arc<Lane>,
}

/// Saved state of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelState {
    drives: [Option<SavedDrive>; 2],
    bus_master: BusMaster,
    device: u8,
    control: u8,
    active: u8,
    phase: Phase,
    requested: bool,
}

impl Channel {
    pub(super) fn new(line: Arc<dyn IrqLine>, memory: GuestMemory) -> Self {
        Self {
            drives: [None, None],
            bus_master: BusMaster::default(),
            device: 0,
            control: 0,
            active: 0,
            phase: Phase::Idle,
            requested: false,
            may_master: false,
            line,
            memory,
            lane: Arc::default(),
        }
    }

    pub(super) fn attach(&mut self, number: usize, drive: Drive) {
        self.drives[number] = Some(drive);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.drives.iter().all(Option::is_none)
    }

    pub(super) fn lane(&self) -> Arc<Lane> {
        Arc::clone(&self.lane)
    }

    fn selected(&self) -> usize {
        usize::from(self.device & SECOND != 0)
    }

    /// The drive that the phase belongs to.
    pub(super) fn active(&mut self) -> Option<&mut Drive> {
        self.drives[self.active].as_mut()
    }

    // Registers

    pub(super) fn read(&mut self, register: u8, data: &mut [u8]) {
        if self.is_empty() {
            // Nobody drives the bus.
            data.fill(0xff);
        } else if register == DATA {
            self.read_data(data);
        } else {
            for (register, byte) in (register..).zip(data) {
                *byte = self.read_register(register);
            }
        }
    }

    fn read_register(&mut self, register: u8) -> u8 {
        if register == COMMAND {
            self.requested = false;
            self.drive_line();
            return self.alternate_status();
        }
        // Where a drive is missing, the other one answers for it.
        let selected = self.selected();
        let Some(drive) = self.drives[selected]
            .as_ref()
            .or(self.drives[selected ^ 1].as_ref())
        else {
            return 0xff;
        };
        let deeper = usize::from(self.control & DEEPER != 0);
        let registers = &drive.registers;
        match register {
            ERROR if self.drives[selected].is_none() => 0,
            ERROR => registers.error,
            COUNT => registers.count[deeper],
            LOW => registers.low[deeper],
            MIDDLE => registers.middle[deeper],
            HIGH => registers.high[deeper],
            DEVICE => self.device | DEVICE_ONES,
            _ => 0xff,
        }
    }

    pub(super) fn alternate_status(&self) -> u8 {
        if self.is_empty() {
            return 0xff;
        }
        if self.control & RESET != 0 {
            return BUSY;
        }
        let drive = self.drives[self.selected()].as_ref();
        drive.map_or(0, |drive| drive.registers.status)
    }

    pub(super) fn write(&mut self, register: u8, data: &[u8]) {
        if register == DATA {
            self.write_data(data);
        } else {
            for (register, byte) in (register..).zip(data) {
                self.write_register(register, *byte);
            }
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        let busy = matches!(self.phase, Phase::Busy(_)) || self.control & RESET != 0;
        if register == COMMAND {
            if !busy || value == DEVICE_RESET {
                self.command(value);
            }
            return;
        }
        if busy {
            return;
        }
        self.control &= !DEEPER;
        if register == DEVICE {
            self.device = value & !DEVICE_ONES;
            return;
        }
        for drive in self.drives.iter_mut().flatten() {
            let registers = &mut drive.registers;
            let deep = match register {
                ERROR => &mut registers.features,
                COUNT => &mut registers.count,
                LOW => &mut registers.low,
                MIDDLE => &mut registers.middle,
                HIGH => &mut registers.high,
                _ => return,
            };
            *deep = [value, deep[0]];
        }
    }

    pub(super) fn write_control(&mut self, value: u8) {
        let before = self.control;
        self.control = value & (NO_INTERRUPT | RESET | DEEPER);
        if value & !before & RESET != 0 {
            self.forget();
        }
        if before & !value & RESET != 0 {
            self.device = 0;
            for drive in self.drives.iter_mut().flatten() {
                drive.sign();
            }
        }
        self.drive_line();
    }

    /// Gives up what is under way.
    fn forget(&mut self) {
        self.lane.cancel();
        self.phase = Phase::Idle;
        self.requested = false;
        self.drive_line();
    }

    fn command(&mut self, command: u8) {
        self.requested = false;
        self.drive_line();
        let selected = self.selected();
        if command == DEVICE_RESET {
            if let Some(drive) = &mut self.drives[selected]
                && matches!(drive.kind, Kind::Optical(_))
            {
                drive.sign();
                if self.active == selected {
                    self.forget();
                }
            } else if !matches!(self.phase, Phase::Busy(_)) {
                self.active = selected;
                self.fail(ABORTED);
            }
            return;
        }
        let Some(drive) = &mut self.drives[selected] else {
            return;
        };
        drive.registers.error = 0;
        drive.registers.status = READY | SEEK_COMPLETE;
        let optical = matches!(drive.kind, Kind::Optical(_));
        self.active = selected;
        self.phase = Phase::Idle;
        if optical {
            self.packet_drive_command(command);
        } else {
            self.disk_command(command);
        }
    }

    /// The signature of both drives, as EXECUTE DEVICE DIAGNOSTIC leaves it.
    pub(super) fn diagnose(&mut self) {
        self.device = 0;
        for drive in self.drives.iter_mut().flatten() {
            drive.sign();
        }
        self.interrupt();
    }

    // Interrupt

    pub(super) fn interrupt(&mut self) {
        self.requested = true;
        self.bus_master.note_interrupt();
        self.drive_line();
    }

    fn drive_line(&self) {
        self.line
            .set(self.requested && self.control & NO_INTERRUPT == 0);
    }

    // Ends of commands

    pub(super) fn set_status(&mut self, status: u8) {
        if let Some(drive) = self.active() {
            drive.registers.status = status;
        }
    }

    /// The command has been carried out.
    pub(super) fn complete(&mut self) {
        self.phase = Phase::Idle;
        self.set_status(READY | SEEK_COMPLETE);
        self.interrupt();
    }

    /// The command has failed.
    pub(super) fn fail(&mut self, error: u8) {
        self.phase = Phase::Idle;
        if let Some(drive) = self.active() {
            drive.registers.error = error;
            drive.registers.status = READY | SEEK_COMPLETE | FAILED;
        }
        self.interrupt();
    }

    // Data through the data register

    /// Asks the guest to move `buffer`, block by block.
    pub(super) fn request_data(
        &mut self,
        buffer: Vec<u8>,
        block: usize,
        to_drive: bool,
        then: Then,
    ) {
        let end = block.min(buffer.len());
        self.phase = Phase::Data {
            buffer,
            at: 0,
            end,
            block,
            to_drive,
            then,
        };
        self.show_block();
    }

    /// Status and, for packets, byte count of the block that is requested now.
    fn show_block(&mut self) {
        let Phase::Data {
            at,
            end,
            to_drive,
            then,
            ..
        } = &self.phase
        else {
            return;
        };
        let length = end - at;
        let packet = match then {
            Then::PacketEnd => true,
            Then::Sectors(run, _) => run.packet,
            Then::End | Then::Packet => false,
        };
        let to_drive = *to_drive;
        let Some(drive) = self.active() else { return };
        drive.registers.status = READY | SEEK_COMPLETE | DATA_REQUEST;
        if packet {
            let [low, high] = (length as u16).to_le_bytes();
            drive.registers.middle[0] = low;
            drive.registers.high[0] = high;
            drive.registers.count[0] = if to_drive { 0 } else { 2 };
        }
    }

    fn read_data(&mut self, data: &mut [u8]) {
        if self.selected() != self.active {
            data.fill(0xff);
            return;
        }
        let Phase::Data {
            buffer,
            at,
            end,
            to_drive: false,
            ..
        } = &mut self.phase
        else {
            data.fill(0xff);
            return;
        };
        let count = data.len().min(*end - *at);
        data[..count].copy_from_slice(&buffer[*at..*at + count]);
        data[count..].fill(0);
        *at += count;
        if at == end {
            self.block_moved();
        }
    }

    fn write_data(&mut self, data: &[u8]) {
        if self.selected() != self.active {
            return;
        }
        let Phase::Data {
            buffer,
            at,
            end,
            to_drive: true,
            ..
        } = &mut self.phase
        else {
            return;
        };
        let count = data.len().min(*end - *at);
        buffer[*at..*at + count].copy_from_slice(&data[..count]);
        *at += count;
        if at == end {
            self.block_moved();
        }
    }

    /// The requested block has been moved: the next one, or what follows.
    fn block_moved(&mut self) {
        if let Phase::Data {
            buffer,
            at,
            end,
            block,
            ..
        } = &mut self.phase
            && *end < buffer.len()
        {
            *end = (*at + *block).min(buffer.len());
            self.show_block();
            self.interrupt();
            return;
        }
        let Phase::Data { buffer, then, .. } = std::mem::take(&mut self.phase) else {
            return;
        };
        match then {
            Then::End => self.set_status(READY | SEEK_COMPLETE),
            Then::PacketEnd => self.complete_packet(),
            Then::Packet => self.packet(&buffer),
            Then::Sectors(run, offset) if run.write => {
                let flush = run.durable && run.left == 0;
                self.start(
                    offset,
                    Work::Write { data: buffer },
                    flush,
                    Busy::Write(run),
                );
            }
            Then::Sectors(run, _) if run.left > 0 => self.read_sectors(run),
            Then::Sectors(run, _) if run.packet => self.complete_packet(),
            Then::Sectors(..) => self.set_status(READY | SEEK_COMPLETE),
        }
    }

    // Sectors

    /// Reads sectors for the data register.
    pub(super) fn read_sectors(&mut self, mut run: Run) {
        let (offset, length) = run.next();
        let work = Work::Read {
            length: length as usize,
        };
        self.start(offset, work, false, Busy::Read(run));
    }

    /// Asks for the data of sectors to be written.
    pub(super) fn write_sectors(&mut self, mut run: Run) {
        let (offset, length) = run.next();
        let buffer = vec![0; length as usize];
        self.request_data(buffer, run.block as usize, true, Then::Sectors(run, offset));
    }

    /// Waits for the bus master to move sectors.
    pub(super) fn move_by_dma(&mut self, run: Run) {
        self.phase = Phase::SectorDma(run);
        self.set_status(READY | SEEK_COMPLETE | DATA_REQUEST);
        self.start_bus_master();
    }

    fn image(&self) -> Option<Image> {
        match &self.drives[self.active].as_ref()?.kind {
            Kind::Disk(disk) => Some(disk.image.clone()),
            Kind::Optical(optical) => optical.medium().cloned(),
        }
    }

    /// Puts a job into the lane.
    pub(super) fn start(&mut self, offset: u64, work: Work, flush: bool, then: Busy) {
        let Some(image) = self.image() else {
            self.phase = Phase::Busy(then);
            self.finish(Outcome::MediumError);
            return;
        };
        self.phase = Phase::Busy(then);
        self.set_status(BUSY);
        self.lane.put(Job {
            image,
            offset,
            work,
            flush,
            memory: self.memory.clone(),
        });
    }

    // Bus master

    pub(super) fn allow_bus_master(&mut self, allowed: bool) {
        let newly = allowed && !self.may_master;
        self.may_master = allowed;
        if newly {
            self.start_bus_master();
        }
    }

    pub(super) fn write_bus_master(&mut self, register: u8, value: u8) {
        if self.bus_master.write(register, value) {
            self.start_bus_master();
        }
    }

    /// Moves what waits for the bus master, if that has been started.
    pub(super) fn start_bus_master(&mut self) {
        if !self.bus_master.is_active() || !self.may_master {
            return;
        }
        match std::mem::take(&mut self.phase) {
            Phase::SectorDma(run) => self.start_sector_dma(run),
            Phase::ReplyDma(reply) => self.reply_by_dma(&reply),
            other => self.phase = other,
        }
    }

    fn start_sector_dma(&mut self, run: Run) {
        let wanted = u64::from(run.left) * u64::from(run.size);
        let table = self.bus_master.table(wanted, &self.memory);
        if table.length < wanted || self.bus_master.to_memory() == run.write {
            self.fail_transfer(run.packet);
            return;
        }
        let pieces = table.pieces;
        let work = if run.write {
            Work::FromMemory { pieces }
        } else {
            Work::ToMemory { pieces }
        };
        let then = Busy::Dma {
            more: table.more,
            packet: run.packet,
        };
        let offset = run.sector * u64::from(run.size);
        self.start(offset, work, run.durable, then);
    }

    fn reply_by_dma(&mut self, reply: &[u8]) {
        let table = self.bus_master.table(reply.len() as u64, &self.memory);
        let mut rest = reply;
        let mut moved = self.bus_master.to_memory() && table.length == reply.len() as u64;
        for piece in &table.pieces {
            if !moved {
                break;
            }
            let (part, behind) = rest.split_at(rest.len().min(piece.length as usize));
            rest = behind;
            let address = GuestAddress(piece.address);
            moved = self.memory.write_slice(part, address).is_ok();
        }
        if moved {
            self.bus_master.finish(table.more);
            self.complete_packet();
        } else {
            self.fail_transfer(true);
        }
    }

    /// The guest's memory or its table cannot be used.
    fn fail_transfer(&mut self, packet: bool) {
        self.bus_master.fail();
        if packet {
            self.fail_packet(TRANSFER_ERROR);
        } else {
            self.fail(ABORTED);
        }
    }

    // Outcomes

    /// Takes what the thread has left, if anything.
    pub(super) fn collect(&mut self) {
        if let Some(outcome) = self.lane.take() {
            self.finish(outcome);
        }
    }

    /// Waits until nothing is under way.
    pub(super) fn settle(&mut self) {
        while let Some(outcome) = self.lane.settle() {
            self.finish(outcome);
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        let Phase::Busy(busy) = std::mem::take(&mut self.phase) else {
            return;
        };
        match (outcome, busy) {
            (Outcome::Done(data), Busy::Read(run)) => {
                self.request_data(data, run.block as usize, false, Then::Sectors(run, 0));
                self.interrupt();
            }
            (Outcome::Done(_), Busy::Write(run)) if run.left > 0 => {
                self.write_sectors(run);
                self.interrupt();
            }
            (Outcome::Done(_), Busy::Dma { more, packet }) => {
                self.bus_master.finish(more);
                if packet {
                    self.complete_packet();
                } else {
                    self.complete();
                }
            }
            (Outcome::Done(_), Busy::Write(_) | Busy::Last) => self.complete(),
            (outcome, busy) => {
                let packet = match busy {
                    Busy::Read(run) | Busy::Write(run) => run.packet,
                    Busy::Dma { packet, .. } => {
                        self.bus_master.fail();
                        packet
                    }
                    Busy::Last => false,
                };
                let medium = outcome == Outcome::MediumError;
                match (packet, medium) {
                    (true, true) => self.fail_packet(READ_ERROR),
                    (true, false) => self.fail_packet(TRANSFER_ERROR),
                    (false, true) => self.fail(UNCORRECTABLE),
                    (false, false) => self.fail(ABORTED),
                }
            }
        }
    }

    // Life

    pub(super) fn reset(&mut self) {
        self.control = 0;
        self.forget();
        self.device = 0;
        self.active = 0;
        self.bus_master = BusMaster::default();
        self.may_master = false;
        for drive in self.drives.iter_mut().flatten() {
            drive.reset();
        }
    }

    pub(super) fn save(&self) -> ChannelState {
        ChannelState {
            drives: self.drives.each_ref().map(|d| d.as_ref().map(Drive::save)),
            bus_master: self.bus_master.clone(),
            device: self.device,
            control: self.control,
            active: self.active as u8,
            phase: self.phase.clone(),
            requested: self.requested,
        }
    }

    pub(super) fn restore(&mut self, state: ChannelState) -> Result<(), String> {
        if !state.phase.is_possible() || state.active > 1 {
            return Err("the phase of a command".to_owned());
        }
        for (drive, saved) in self.drives.iter_mut().zip(state.drives) {
            match (drive, saved) {
                (None, None) => {}
                (Some(drive), Some(saved)) => drive.restore(saved)?,
                _ => return Err("other drives than this machine has".to_owned()),
            }
        }
        self.bus_master = state.bus_master.sane();
        self.device = state.device & !DEVICE_ONES;
        self.control = state.control & (NO_INTERRUPT | RESET | DEEPER);
        self.active = state.active.into();
        self.phase = state.phase;
        self.requested = state.requested;
        self.drive_line();
        Ok(())
    }

    // Media

    pub(super) fn change_medium(
        &mut self,
        number: usize,
        medium: Option<Image>,
        force: bool,
    ) -> Result<(), MediumError> {
        // What is being read is read from the old medium.
        self.settle();
        match self.drives[number].as_mut().map(|drive| &mut drive.kind) {
            Some(Kind::Optical(optical)) => optical.change(medium, force),
            _ => Err(MediumError::NoDrive),
        }
    }

    pub(super) fn tray_open(&self, number: usize) -> Option<bool> {
        match &self.drives[number].as_ref()?.kind {
            Kind::Optical(optical) => Some(optical.state.tray_open),
            Kind::Disk(_) => None,
        }
    }
}

impl Phase {
    /// Whether a saved phase can be gone on from.
    fn is_possible(&self) -> bool {
        let run_fits = |run: &Run| {
            matches!(run.size, 512 | 2048)
                && (1..=BUFFER).contains(&run.block)
                && run.left <= 1 << 24
                && run.sector < 1 << 49
        };
        match self {
            Self::Idle => true,
            Self::Data {
                buffer,
                at,
                end,
                block,
                then,
                ..
            } => {
                at < end
                    && *end <= buffer.len()
                    && *block > 0
                    && match then {
                        Then::Sectors(run, _) => run_fits(run),
                        Then::Packet => buffer.len() == super::atapi::PACKET,
                        Then::End | Then::PacketEnd => true,
                    }
            }
            Self::SectorDma(run) => run_fits(run),
            Self::ReplyDma(_) => true,
            Self::Busy(_) => false,
        }
    }
}
