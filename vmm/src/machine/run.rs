//! Running a machine: its states, its commands, its end.

use super::{
    Board, ExitCause, ExitReport, OnReset, OnTripleFault,
    clock::MachineClock,
    console::{Output, RawTerminal},
    device_thread::DeviceThread,
    devices::DiskFunction,
    drives::{DriveError, open_disc},
    gate::{Gate, Pass},
    notices::{Notice, Notices, Watch},
};
use crate::{
    acpi::{self, Platform},
    boot::{self, Boot, BootError, Entry, Protocol},
    bus::AddressMap,
    clock::Clock as _,
    devices::ide::{MediumError, Position},
    disk::Layer,
    event::{EventSink, MachineEvent},
    firmware::Rom,
    footprint,
    kvm::{Exit, Vcpu, Vm, VmError, VmState},
    memory::{self, MemoryLayout},
    overlay::Overlay,
    sandbox::{self, Class},
    snapshot::{self, MachineState, STATE_VERSION, SnapshotError},
    virtio::block::{Block, BlockCounts},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};
use vm_memory::{Bytes as _, GuestAddress};

/// The ISA lines that firmware makes level-triggered: the SCI's and those that PCI may use.
const LEVEL_LINES: [u8; 4] = [5, 9, 10, 11];
/// Where 16-bit fixture code is loaded, and how long it may be.
const REAL_MODE_IMAGE: (u64, u64) = (0x1_0000, 0x8_0000);

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It runs.
    Running,
    /// It stands still until it is resumed.
    Paused,
}

/// Why a guest stands still without having been asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// A request of a disk failed on the host. It is made again on resume.
    IoError,
}

/// What can be asked of a machine.
#[derive(Debug)]
pub enum Command {
    /// Tell the status.
    Status,
    /// Stop the guest; does nothing if it stands still.
    Pause,
    /// Let the guest go on; does nothing if it runs.
    Resume,
    /// Push the power button. What follows is up to the guest.
    PowerButton,
    /// Reset the guest at once.
    Reset,
    /// Save the machine to a file. The guest stands still meanwhile.
    Save {
        /// The file, open for writing; what is in it is lost.
        file: File,
        /// End the monitor afterwards.
        end: bool,
    },
    /// Write what the display shows to a file, as PNG.
    Screenshot {
        /// The file, from where it stands.
        file: File,
    },
    /// Put another medium into a CD-ROM drive, or take the medium out.
    ChangeMedium {
        /// The drive.
        position: Position,
        /// The medium; the tray is left open without.
        file: Option<File>,
        /// Even if the guest has locked the tray.
        force: bool,
    },
    /// Put another chain of images in a disk's place. The guest does not notice.
    ChangeDisk {
        /// The disk's name.
        disk: String,
        /// The new chain, top first, which shows what the old one does.
        layers: Vec<Layer>,
    },
    /// Press keys of the keyboard, or let them go.
    Keys {
        /// Their scan codes in set 1; bit 7 stands for the prefix 0xe0.
        codes: Vec<u8>,
        /// They go down.
        down: bool,
    },
    /// Take or delete an internal snapshot of a disk's image. The guest does not notice.
    SnapshotDisk {
        /// The disk's name.
        disk: String,
        /// The snapshot's.
        name: String,
        /// Delete it, if it is there.
        delete: bool,
    },
    /// End the monitor at once.
    Quit,
}

/// Status of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the guest runs.
    pub state: RunState,
    /// Why the guest stands still, if not because somebody asked for it: `io-error` when a
    /// request of a disk failed on the host and its error policy is to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<StopReason>,
    /// Names of the network cards whose host's side has closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_links: Vec<String>,
    /// What the guest has done with its virtio disks, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<String, DiskStatus>,
    /// Number of virtual processors.
    pub vcpus: u8,
    /// Memory in bytes.
    pub memory: u64,
    /// How often the guest was reset in place.
    pub resets: u64,
    /// For how long the guest has run, in milliseconds, pauses not counted.
    pub ran_milliseconds: u64,
}

/// Status of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Size in bytes.
    pub size: u64,
    /// What the guest has asked for.
    #[serde(flatten)]
    pub counts: BlockCounts,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// It did not work; the text says why.
    #[error("{0}")]
    Failed(String),
}

/// What is done with a command's outcome, on the machine's thread.
pub(super) type Reply = Box<dyn FnOnce(Result<Status, CommandError>) + Send>;

pub(super) enum Message {
    Command(Command, Reply),
    Event(MachineEvent),
    /// The host's side of the network card of that name has closed.
    LinkLost(String),
    Stopped {
        vcpu: u8,
        exit: Exit,
    },
}

/// Sends commands to a running machine, from any thread.
#[derive(Clone)]
pub struct Remote {
    pub(super) sender: Sender<Message>,
    pub(super) notices: Notices,
}

impl Remote {
    /// Sends a command and waits until it is carried out.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn call(&self, command: Command) -> Result<Status, CommandError> {
        let (sender, answer) = mpsc::channel();
        self.send(
            command,
            Box::new(move |outcome| {
                // Whoever asked may have gone away.
                let _ = sender.send(outcome);
            }),
        )?;
        answer.recv().unwrap_or(Err(CommandError::Ended))
    }

    /// Sends a command; `reply` is called with its outcome, or dropped if the machine ends.
    ///
    /// # Errors
    /// [`CommandError::Ended`].
    pub(super) fn send(&self, command: Command, reply: Reply) -> Result<(), CommandError> {
        self.sender
            .send(Message::Command(command, reply))
            .map_err(|_| CommandError::Ended)
    }

    /// What happens to the machine from now on.
    pub(super) fn watch(&self) -> Watch {
        self.notices.watch()
    }

    /// Sends a command and does not wait.
    pub fn post(&self, command: Command) {
        // The machine has ended, which is what matters to nobody who does not wait.
        let _ = self.send(command, Box::new(|_| {}));
    }
}

/// Takes events from devices: stops the vCPUs and leaves the rest to the machine's own thread.
pub(super) struct Reporter {
    pub(super) gate: Arc<Gate>,
    pub(super) sender: Sender<Message>,
}

impl EventSink for Reporter {
    fn signal(&self, event: MachineEvent) {
        self.gate.close();
        // The receiver is gone only when the machine is ending anyway.
        let _ = self.sender.send(Message::Event(event));
    }
}

/// What is started, kept open for resets.
pub(super) enum Starter {
    Kernel {
        image: File,
        initrd: Option<File>,
        command_line: String,
        protocol: Protocol,
    },
    RealMode {
        image: File,
    },
    Firmware(Rom),
}

/// Something that went wrong while the machine changed state.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The kernel cannot be started.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest memory could not be changed.
    #[error("guest memory cannot be cleared")]
    Memory(#[source] std::io::Error),
    /// A device's state is not what it should be.
    #[error(transparent)]
    State(#[from] crate::device::StateError),
    /// A disk could not be brought up to date.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskError),
    /// The state could not be written or read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The saved machine is another.
    #[error("the saved machine has {saved} vCPUs, the description {described}")]
    Vcpus {
        /// In the file.
        saved: usize,
        /// In the description.
        described: usize,
    },
}

/// Why a request about a device was not carried out.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the machine has no display")]
    NoDisplay,
    #[error("the display shows nothing: the guest has not set a mode")]
    NoPicture,
    #[error("the picture cannot be written")]
    Write(#[source] io::Error),
    #[error(transparent)]
    Medium(#[from] MediumError),
    #[error(transparent)]
    Drive(#[from] DriveError),
}

/// A machine that is put together. Its vCPU threads wait at the gate.
pub struct Machine {
    pub(super) gate: Arc<Gate>,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) vcpus: Vec<Arc<Mutex<Vcpu>>>,
    pub(super) board: Board,
    pub(super) disks: Vec<DiskFunction>,
    /// The guest stands still because a request failed on the host.
    pub(super) stopped_by_error: bool,
    /// Network cards whose host's side has closed.
    pub(super) lost_links: Vec<String>,
    pub(super) notices: Notices,
    pub(super) device_thread: DeviceThread,
    pub(super) outputs: Vec<Output>,
    pub(super) terminal: Option<RawTerminal>,
    pub(super) clock: Arc<MachineClock>,
    pub(super) messages: Receiver<Message>,
    pub(super) sender: Sender<Message>,
    pub(super) starter: Starter,
    pub(super) layout: MemoryLayout,
    pub(super) pvpanic: bool,
    pub(super) on_reset: OnReset,
    pub(super) on_triple_fault: OnTripleFault,
    pub(super) resets: u64,
    pub(super) running: bool,
    pub(super) restored: bool,
    /// Commands that came while events were thrown away.
    pub(super) waiting: VecDeque<Message>,
    pub(super) power_on: VmState,
    /// Keeps the firmware in the guest's address space.
    pub(super) _rom: Option<Box<dyn Overlay>>,
    pub(super) vm: Vm,
}

/// What became of a message.
enum Next {
    Continue,
    End(ExitCause, Option<String>),
}

impl Machine {
    /// A handle that sends commands.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote {
            sender: self.sender.clone(),
            notices: self.notices.clone(),
        }
    }

    /// Runs the machine to its end. With `paused`, the guest waits for [`Command::Resume`]. In a
    /// sandbox the calling thread is restricted to what it needs for that.
    pub fn run(mut self, paused: bool) -> ExitReport {
        sandbox::restrict_thread(Class::Machine);
        let started = if self.restored {
            Ok(())
        } else {
            self.start_guest()
        };
        let (cause, detail) = match started {
            Ok(()) => {
                footprint::forget_start();
                if !paused {
                    self.resume();
                }
                self.serve()
            }
            Err(error) => (ExitCause::MonitorError, Some(describe(&error))),
        };
        self.gate.end();
        for thread in self.threads.drain(..) {
            // A panic there has been reported by its thread.
            let _ = thread.join();
        }
        self.clock.stop();
        let detail = self.close_disks().or(detail);
        self.outputs.clear();
        self.terminal = None;
        ExitReport {
            version: 1,
            cause,
            detail,
            resets: self.resets,
            ran_milliseconds: self.clock.running().as_millis() as u64,
        }
    }

    fn change_disk(&self, name: &str, layers: Vec<Layer>) -> Result<(), String> {
        let mut disks = self.disks.iter().map(|disk| disk.lock());
        let found = disks.find(|disk| disk.device().name() == name);
        let mut disk = found.ok_or_else(|| format!("there is no disk '{name}'"))?;
        disk.at_rest(|block| block.change(layers))
            .map_err(|error| describe(&error))
    }

    fn snapshot_disk(&self, name: &str, snapshot: &str, delete: bool) -> Result<(), String> {
        let mut disks = self.disks.iter().map(|disk| disk.lock());
        let found = disks.find(|disk| disk.device().name() == name);
        let mut disk = found.ok_or_else(|| format!("there is no disk '{name}'"))?;
        disk.at_rest(|block| block.snapshot(snapshot, delete))
            .map_err(|error| describe(&error))
    }

    /// Makes durable what the guest wrote and lets go of its disks; gives what went wrong.
    fn close_disks(&mut self) -> Option<String> {
        let mut failures = Vec::new();
        for disk in &self.disks {
            let closed = disk.lock().at_rest(Block::close);
            if let Err(error) = closed {
                let text = format!("a disk was not closed properly: {}", describe(&error));
                tracing::error!("{text}");
                failures.push(text);
            }
        }
        (!failures.is_empty()).then(|| failures.join("; "))
    }

    fn serve(&mut self) -> (ExitCause, Option<String>) {
        loop {
            let message = match self.waiting.pop_front() {
                Some(message) => message,
                None => match self.messages.recv() {
                    Ok(message) => message,
                    Err(_) => return (ExitCause::Quit, None),
                },
            };
            let next = match message {
                Message::Command(command, reply) => self.obey(command, reply),
                Message::Event(event) => self.react(event),
                Message::LinkLost(nic) => {
                    self.lost_links.push(nic.clone());
                    self.notices.tell(Notice::LinkLost { nic });
                    Ok(Next::Continue)
                }
                Message::Stopped { vcpu, exit } => self.stopped(vcpu, exit),
            };
            match next {
                Ok(Next::Continue) => {}
                Ok(Next::End(cause, detail)) => return (cause, detail),
                Err(error) => return (ExitCause::MonitorError, Some(describe(&error))),
            }
        }
    }

    fn obey(&mut self, command: Command, reply: Reply) -> Result<Next, MachineError> {
        match command {
            Command::Status => {}
            Command::Pause => self.pause(),
            Command::Resume => self.resume(),
            Command::PowerButton => self.board.power.lock().push_power_button(),
            Command::Reset => {
                if let Err(error) = self.reset() {
                    reply(Err(CommandError::Failed(describe(&error))));
                    return Err(error);
                }
            }
            Command::Save { file, end } => {
                let was_running = self.running;
                self.pause();
                let saved = self.save(&file);
                if was_running && !(end && saved.is_ok()) {
                    self.resume();
                }
                if end && saved.is_ok() {
                    reply(Ok(self.status()));
                    return Ok(Next::End(ExitCause::Saved, None));
                }
                if let Err(error) = saved {
                    // The machine is as it was and goes on.
                    reply(Err(CommandError::Failed(describe(&error))));
                    return Ok(Next::Continue);
                }
            }
            Command::Screenshot { file } => {
                if let Err(error) = self.screenshot(&file) {
                    reply(Err(CommandError::Failed(describe(&error))));
                    return Ok(Next::Continue);
                }
            }
            Command::ChangeMedium {
                position,
                file,
                force,
            } => {
                if let Err(error) = self.change_medium(position, file, force) {
                    reply(Err(CommandError::Failed(describe(&error))));
                    return Ok(Next::Continue);
                }
            }
            Command::ChangeDisk { disk, layers } => {
                if let Err(error) = self.change_disk(&disk, layers) {
                    reply(Err(CommandError::Failed(error)));
                    return Ok(Next::Continue);
                }
            }
            Command::Keys { codes, down } => {
                let mut keyboard = self.board.keyboard.lock();
                codes.iter().for_each(|code| keyboard.key(*code, down));
            }
            Command::SnapshotDisk { disk, name, delete } => {
                if let Err(error) = self.snapshot_disk(&disk, &name, delete) {
                    reply(Err(CommandError::Failed(error)));
                    return Ok(Next::Continue);
                }
            }
            Command::Quit => {
                reply(Ok(self.status()));
                return Ok(Next::End(ExitCause::Quit, None));
            }
        }
        reply(Ok(self.status()));
        Ok(Next::Continue)
    }

    fn status(&self) -> Status {
        Status {
            state: if self.running {
                RunState::Running
            } else {
                RunState::Paused
            },
            reason: (!self.running && self.stopped_by_error).then_some(StopReason::IoError),
            lost_links: self.lost_links.clone(),
            disks: self.disks.iter().map(disk_status).collect(),
            vcpus: self.vcpus.len() as u8,
            memory: self.layout.size(),
            resets: self.resets,
            ran_milliseconds: self.clock.running().as_millis() as u64,
        }
    }

    fn react(&mut self, event: MachineEvent) -> Result<Next, MachineError> {
        tracing::info!(?event, "the guest changes the machine's state");
        // Another vCPU's event may have been dealt with meanwhile, which opened the gate.
        self.gate.close();
        self.gate.wait_closed();
        match event {
            MachineEvent::PowerOff | MachineEvent::ShutdownRequested => {
                Ok(Next::End(ExitCause::GuestPowerOff, None))
            }
            MachineEvent::Panicked => Ok(Next::End(ExitCause::GuestPanic, None)),
            MachineEvent::Reset if self.on_reset == OnReset::Exit => {
                Ok(Next::End(ExitCause::GuestReset, None))
            }
            MachineEvent::Reset => {
                self.reset()?;
                Ok(Next::Continue)
            }
            MachineEvent::IoError => {
                self.stopped_by_error = true;
                self.pause();
                self.notices.tell(Notice::Stopped {
                    reason: StopReason::IoError,
                });
                Ok(Next::Continue)
            }
            MachineEvent::CrashLoaded => {
                if self.running {
                    self.gate.open();
                }
                Ok(Next::Continue)
            }
        }
    }

    fn stopped(&mut self, vcpu: u8, exit: Exit) -> Result<Next, MachineError> {
        let at = format!("vCPU {vcpu}");
        match exit {
            Exit::Handled | Exit::Interrupted => Ok(Next::Continue),
            Exit::Event(event) => self.react(event),
            Exit::TripleFault if self.on_triple_fault == OnTripleFault::Reset => {
                self.react(MachineEvent::Reset)
            }
            Exit::TripleFault => Ok(Next::End(ExitCause::TripleFault, Some(at))),
            Exit::Stuck(reason) => Ok(Next::End(
                ExitCause::MonitorError,
                Some(format!("{at}: {reason}")),
            )),
        }
    }

    fn pause(&mut self) {
        if !self.running {
            return;
        }
        self.running = false;
        self.gate.close();
        self.gate.wait_closed();
        self.clock.stop();
        self.board.pause();
        for vcpu in &self.vcpus {
            vcpu.lock().note_pause();
        }
    }

    fn resume(&mut self) {
        if self.running {
            return;
        }
        self.stopped_by_error = false;
        self.clock.start();
        self.board.resume();
        self.device_thread.wake();
        self.running = true;
        self.gate.open();
    }

    fn screenshot(&self, file: &File) -> Result<(), RequestError> {
        let display = self.board.display.as_ref().ok_or(RequestError::NoDisplay)?;
        let picture = display.lock().picture().ok_or(RequestError::NoPicture)?;
        picture
            .write_png(io::BufWriter::new(file))
            .map_err(RequestError::Write)
    }

    fn change_medium(
        &self,
        position: Position,
        file: Option<File>,
        force: bool,
    ) -> Result<(), RequestError> {
        let medium = file.map(|file| open_disc(file, position)).transpose()?;
        let ide = self.board.ide.as_ref().ok_or(MediumError::NoDrive)?;
        ide.lock().change_medium(position, medium, force)?;
        Ok(())
    }

    /// Everything back to power-on, then the kernel is started anew.
    fn reset(&mut self) -> Result<(), MachineError> {
        let was_running = self.running;
        self.gate.close();
        self.gate.wait_closed();
        self.board.reset();
        memory::clear(self.vm.memory()).map_err(MachineError::Memory)?;
        self.vm.restore(&self.power_on)?;
        for vcpu in &self.vcpus {
            vcpu.lock().reset()?;
        }
        self.forget_events();
        self.start_guest()?;
        self.resets += 1;
        if was_running {
            self.gate.open();
        }
        Ok(())
    }

    /// Throws away events that the guest caused before they were reset.
    fn forget_events(&mut self) {
        let pending: Vec<_> = self
            .waiting
            .drain(..)
            .chain(self.messages.try_iter())
            .collect();
        self.waiting = pending
            .into_iter()
            .filter(|message| matches!(message, Message::Command(..) | Message::LinkLost(_)))
            .collect();
    }

    /// Saves the machine, which is paused.
    fn save(&self, file: &File) -> Result<(), MachineError> {
        // What the saved guest takes to be written must not depend on this process's life.
        for disk in &self.disks {
            disk.lock().device().flush()?;
        }
        let state = self.state()?;
        Ok(snapshot::write(file, &state, self.vm.memory())?)
    }

    fn state(&self) -> Result<MachineState, MachineError> {
        let vcpus: Result<Vec<_>, VmError> =
            self.vcpus.iter().map(|vcpu| vcpu.lock().save()).collect();
        Ok(MachineState {
            version: STATE_VERSION,
            layout: self.layout,
            vcpus: vcpus?,
            vm: self.vm.save()?,
            devices: self.board.save()?,
            resets: self.resets,
        })
    }

    /// Takes over a saved machine's state; its memory is mapped already.
    pub(super) fn take_over(&mut self, state: &MachineState) -> Result<(), MachineError> {
        if state.vcpus.len() != self.vcpus.len() {
            return Err(MachineError::Vcpus {
                saved: state.vcpus.len(),
                described: self.vcpus.len(),
            });
        }
        self.vm.restore(&state.vm)?;
        for (vcpu, state) in self.vcpus.iter().zip(&state.vcpus) {
            let mut vcpu = vcpu.lock();
            vcpu.restore(state)?;
            vcpu.note_pause();
        }
        self.board.restore(&state.devices)?;
        self.resets = state.resets;
        self.restored = true;
        Ok(())
    }

    /// Loads what is to be started and sets the first vCPU on it.
    fn start_guest(&self) -> Result<(), MachineError> {
        let memory = self.vm.memory();
        let entry = match &self.starter {
            Starter::Kernel {
                image,
                initrd,
                command_line,
                protocol,
            } => {
                self.board.prepare_without_firmware();
                self.vm.set_level_triggered(&LEVEL_LINES)?;
                let platform = Platform {
                    vcpus: self.vcpus.len() as u8,
                    layout: &self.layout,
                    serial: self.board.serial.is_some(),
                    pvpanic: self.pvpanic,
                };
                let rsdp = acpi::write(&platform, memory).map_err(BootError::Memory)?;
                let boot = Boot {
                    kernel: image,
                    initrd: initrd.as_ref(),
                    command_line,
                    protocol: *protocol,
                    rsdp,
                };
                boot::load(&boot, memory, &self.layout)?
            }
            Starter::Firmware(rom) => {
                // The processors start in it by themselves.
                rom.write_shadow(memory).map_err(BootError::Memory)?;
                return Ok(());
            }
            Starter::RealMode { image } => {
                self.board.prepare_without_firmware();
                load_real_mode(image, memory)?
            }
        };
        if let Some(first) = self.vcpus.first() {
            first.lock().set_entry(&entry)?;
        }
        Ok(())
    }
}

fn load_real_mode(mut image: &File, memory: &memory::GuestMemory) -> Result<Entry, BootError> {
    use std::io::{Seek as _, SeekFrom};
    let size = image
        .seek(SeekFrom::End(0))
        .map_err(BootError::KernelRead)?;
    let (start, most) = REAL_MODE_IMAGE;
    if size == 0 || size > most {
        return Err(BootError::KernelLarge {
            start,
            end: start.saturating_add(size),
        });
    }
    image.rewind().map_err(BootError::KernelRead)?;
    memory.read_exact_volatile_from(GuestAddress(start), &mut image, size as usize)?;
    Ok(Entry::real_mode(start))
}

/// The error with all its causes, in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.to_string();
        if !text.ends_with(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        source = error.source();
    }
    text
}

/// A vCPU's thread: passes the gate, runs the guest, comes to rest.
pub(super) fn run_vcpu(
    vcpu: &Mutex<Vcpu>,
    gate: &Gate,
    ports: &AddressMap,
    memory: &AddressMap,
    sender: &Sender<Message>,
) {
    sandbox::restrict_thread(Class::Vcpu);
    vcpu.lock().adopt();
    while gate.pass() == Pass::Run {
        let mut vcpu = vcpu.lock();
        vcpu.clear_kick();
        while gate.is_open() {
            match vcpu.enter(ports, memory) {
                Exit::Handled => {}
                // Cleared before the gate is looked at, so that no kick is lost.
                Exit::Interrupted => vcpu.clear_kick(),
                exit => {
                    gate.close();
                    let id = vcpu.id();
                    // The receiver is gone only when the machine is ending anyway.
                    let _ = sender.send(Message::Stopped { vcpu: id, exit });
                }
            }
        }
        vcpu.complete(ports, memory);
    }
}

fn disk_status(disk: &DiskFunction) -> (String, DiskStatus) {
    let disk = disk.lock();
    let block = disk.device();
    let status = DiskStatus {
        size: block.size(),
        counts: block.counts(),
    };
    (block.name().to_owned(), status)
}
