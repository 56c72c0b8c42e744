//! Putting a machine together from its description.

use super::{
    Board, BoardConfig, BootDescription, CharDevice, Command, Description, DescriptionError,
    DisplayDescription, DriveError, Machine, Remote, SerialDescription, Wiring,
    board::BoardError,
    clock::MachineClock,
    console::{Output, RawTerminal},
    device_thread::{DeviceThread, Input},
    devices,
    gate::Gate,
    nics,
    notices::Notices,
    run::{MachineError, Reporter, Starter, run_vcpu},
    timers::Timers,
};
use crate::{
    acpi::Platform,
    devices::{
        chardev::{CharBackend, Discard},
        display::{self, Display},
        fw_cfg::{FwCfg, Items},
    },
    firmware::{self, FirmwareError, Orders, Rom},
    kvm::{Host, HostError, Vm, VmError},
    memory::{GuestMemory, MemoryError, MemoryLayout},
    pci::OptionRom,
    snapshot::{SnapshotError, SnapshotFile},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, mpsc},
    thread,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a machine cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The host cannot run guests.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The description cannot be used.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// More vCPUs than the host's KVM can have.
    #[error("the host's KVM runs at most {most} vCPUs in one machine, {wanted} are wanted")]
    Vcpus {
        /// Wanted.
        wanted: u8,
        /// Possible.
        most: usize,
    },
    /// More memory than the host has.
    #[error(
        "the guest is to have {wanted} bytes of memory, the host has {present}: give the guest less"
    )]
    HostMemory {
        /// Wanted.
        wanted: u64,
        /// The host's RAM and swap.
        present: u64,
    },
    /// Memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM refused something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] super::DiskDescriptionError),
    /// A console port cannot be used.
    #[error(transparent)]
    Port(#[from] super::PortError),
    /// A network card cannot be used.
    #[error(transparent)]
    Nic(#[from] super::NicDescriptionError),
    /// The devices cannot be wired.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The saved machine cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The saved machine does not fit the description.
    #[error(transparent)]
    Restore(Box<MachineError>),
    /// The memory of the saved machine is another.
    #[error(
        "the saved machine has {saved} bytes of memory, the description {described}: restore it with the description that it was saved with"
    )]
    OtherMemory {
        /// In the file.
        saved: u64,
        /// In the description.
        described: u64,
    },
    /// A drive or the display cannot be had.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The firmware cannot be used.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// A thread or a descriptor could not be made.
    #[error("the host refused {what}")]
    Resource {
        /// What was to be made.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn resource(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Resource { what, source }
}

/// The host's side of the character devices.
#[derive(Default)]
struct Consoles {
    outputs: Vec<Output>,
    terminal: Option<RawTerminal>,
    /// Input for COM1.
    input: Option<OwnedFd>,
}

/// A device's back end, and which output feeds from it.
type Attached = (Box<dyn CharBackend>, Option<usize>);

impl Consoles {
    fn backend(
        &mut self,
        device: Option<&SerialDescription>,
        wake: &EventFd,
    ) -> Result<Option<Attached>, BuildError> {
        let Some(device) = device else {
            return Ok(None);
        };
        let sink: File = match &device.backend {
            CharDevice::Null => return Ok(Some((Box::new(Discard), None))),
            CharDevice::Stdio => {
                let duplicate = io::stdout().as_fd().try_clone_to_owned();
                self.input = io::stdin().as_fd().try_clone_to_owned().ok();
                self.terminal = Some(RawTerminal::enter());
                duplicate.map_err(resource("a descriptor"))?.into()
            }
            CharDevice::File(file) => file.create("console file")?,
        };
        let wake = wake.try_clone().map_err(resource("an event"))?;
        let (output, backend) =
            Output::start(sink, Some(wake)).map_err(resource("a thread for output"))?;
        self.outputs.push(output);
        Ok(Some((backend, Some(self.outputs.len() - 1))))
    }
}

impl Machine {
    /// Puts a machine together on `host`, new or going on from `saved`. Nothing of the guest runs
    /// yet.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(
        host: &Host,
        description: &Description,
        saved: Option<&SnapshotFile>,
    ) -> Result<Self, BuildError> {
        description.check()?;
        let layout = MemoryLayout::new(description.memory)?;
        check_host(host, description)?;
        let starter = open_starter(&description.boot)?;
        let memory = match saved {
            None => layout.map()?,
            Some(saved) if saved.state().layout == layout => saved.map_memory()?,
            Some(saved) => {
                return Err(BuildError::OtherMemory {
                    saved: saved.state().layout.size(),
                    described: layout.size(),
                });
            }
        };
        let vm = Vm::new(host, memory)?;
        let vcpus = vm.create_vcpus(host, description.vcpus, &description.cpu.masks)?;
        let gate = Gate::new(vcpus.iter().map(crate::kvm::Vcpu::kicker).collect());
        let (sender, messages) = mpsc::channel();
        let notices = Notices::new();

        let clock = Arc::new(MachineClock::default());
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(resource("an event"))?;
        let timers = Timers::new(wake.try_clone().map_err(resource("an event"))?);
        let mut consoles = Consoles::default();
        let serial = consoles.backend(description.serial.as_ref(), &wake)?;
        let debug = consoles.backend(description.debug_console.as_ref(), &wake)?;
        let (serial, serial_output) = serial.unzip();
        let wiring = Wiring {
            controller: vm.controller(),
            events: Arc::new(Reporter {
                gate: Arc::clone(&gate),
                sender: sender.clone(),
            }),
            clock: clock.clone(),
            timers: Arc::clone(&timers),
        };
        let config = BoardConfig {
            vcpus: description.vcpus,
            layout,
            serial,
            debug_console: debug.map(|(backend, _)| backend),
            pvpanic: description.pvpanic,
            clock_offset: description.clock_offset,
        };
        let mut board = Board::new(&wiring, config)?;
        let mut rom_overlay = None;
        let mut order = add_devices(&mut board, description, &vm)?;
        let disks = devices::add_devices(&mut board, &vm, description, &wiring.events, &mut order)?;
        nics::add(&mut board, &vm, description, &sender, &mut order)?;
        if let Starter::Firmware(rom) = &starter {
            board.add_firmware_configuration(firmware_configuration(
                description,
                &layout,
                order.into_values().collect(),
                vm.memory(),
            )?)?;
            let mut overlay = vm
                .overlays()
                .create(rom.memory(), false)
                .map_err(resource("memory for firmware"))?;
            overlay.place(Some(rom.address()));
            rom_overlay = Some(overlay);
        }

        let mut inputs = Vec::new();
        if let Some(serial) = &board.serial {
            if let Some(output) = serial_output
                .flatten()
                .and_then(|i| consoles.outputs.get(i))
            {
                output.attach(&(serial.clone() as _));
            }
            if let Some(source) = consoles.input.take() {
                let remote = Remote {
                    sender: sender.clone(),
                    notices: notices.clone(),
                };
                let raw = consoles.terminal.as_ref().is_some_and(RawTerminal::is_raw);
                let escape = raw.then(|| -> Box<dyn FnMut() + Send> {
                    Box::new(move || remote.post(Command::Quit))
                });
                inputs.push(Input::new(source, serial.clone(), escape));
            }
        }
        let device_thread = DeviceThread::start(wake, clock.clone(), timers, inputs)
            .map_err(resource("the device thread"))?;
        let vcpus: Vec<_> = vcpus.into_iter().map(|v| Arc::new(Mutex::new(v))).collect();
        let mut machine = Self {
            gate,
            threads: Vec::new(),
            vcpus,
            board,
            disks,
            stopped_by_error: false,
            lost_links: Vec::new(),
            notices,
            device_thread,
            outputs: consoles.outputs,
            terminal: consoles.terminal,
            clock,
            messages,
            sender,
            starter,
            layout,
            pvpanic: description.pvpanic,
            on_reset: description.on_reset,
            resets: 0,
            running: false,
            restored: false,
            waiting: std::collections::VecDeque::new(),
            on_triple_fault: description.on_triple_fault,
            power_on: vm.save()?,
            _rom: rom_overlay,
            vm,
        };
        machine.start_threads()?;
        if let Some(saved) = saved
            && let Err(error) = machine.take_over(saved.state())
        {
            machine.gate.end();
            return Err(BuildError::Restore(Box::new(error)));
        }
        Ok(machine)
    }

    fn start_threads(&mut self) -> Result<(), BuildError> {
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            let vcpu = Arc::clone(vcpu);
            let gate = Arc::clone(&self.gate);
            let ports = Arc::clone(&self.board.ports);
            let memory = Arc::clone(&self.board.memory);
            let sender = self.sender.clone();
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(256 * 1024)
                .spawn(move || run_vcpu(&vcpu, &gate, &ports, &memory, &sender));
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(source) => {
                    self.gate.end();
                    return Err(resource("a thread for a vCPU")(source));
                }
            }
        }
        Ok(())
    }
}

/// Adds the display and the drives, and gives the paths of those to boot from, by their turns.
fn add_devices(
    board: &mut Board,
    description: &Description,
    vm: &Vm,
) -> Result<BTreeMap<u32, String>, BuildError> {
    let mut order = BTreeMap::new();
    if let Some(display) = &description.display {
        let rom = display_rom(display, &description.boot)?;
        let display = Display::new(rom.as_deref(), &*vm.overlays()).map_err(DriveError::from)?;
        board.add_display(display)?;
    }
    if !description.ide.is_empty() {
        let mut drives = Vec::new();
        for (position, drive) in &description.ide {
            drives.push((*position, drive.open(*position)?));
            if let Some(index) = drive.boot_index() {
                let (channel, number) = position.numbers();
                let path = format!("/pci@i0cf8/*@1,1/drive@{channel}/disk@{number}");
                order.insert(index, path);
            }
        }
        board.add_ide(drives, vm.memory())?;
    }
    Ok(order)
}

/// The display's option ROM, if it is to have one.
fn display_rom(
    display: &DisplayDescription,
    boot: &BootDescription,
) -> Result<Option<Vec<u8>>, BuildError> {
    let Some(source) = display.source(matches!(boot, BootDescription::Firmware(_)))? else {
        return Ok(None);
    };
    let (vendor, device) = display::NAMES;
    let content = OptionRom::read_file(&source.open("option ROM")?, vendor, device)
        .map_err(DriveError::from)?;
    Ok(Some(content))
}

/// What firmware is told of the machine.
fn firmware_configuration(
    description: &Description,
    layout: &MemoryLayout,
    devices: Vec<String>,
    memory: &GuestMemory,
) -> Result<FwCfg, BuildError> {
    let BootDescription::Firmware(firmware) = &description.boot else {
        return Ok(FwCfg::new(&Items::new(), memory.clone()));
    };
    let platform = Platform {
        vcpus: description.vcpus,
        layout,
        serial: description.serial.is_some(),
        pvpanic: description.pvpanic,
    };
    let orders = Orders {
        devices,
        only_listed: firmware.only_listed,
        menu: firmware.menu,
        fail_wait: firmware.fail_wait.map(|wait| wait as u32),
        serial_console: firmware.serial_console,
    };
    let product = description.product.clone().unwrap_or_default();
    let items = firmware::items(&platform, &orders, &product)?;
    Ok(FwCfg::new(&items, memory.clone()))
}

fn check_host(host: &Host, description: &Description) -> Result<(), BuildError> {
    let most = host.max_vcpus();
    if usize::from(description.vcpus) > most {
        return Err(BuildError::Vcpus {
            wanted: description.vcpus,
            most,
        });
    }
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    let present = (info.totalram + info.totalswap).saturating_mul(unit);
    if description.memory > present {
        return Err(BuildError::HostMemory {
            wanted: description.memory,
            present,
        });
    }
    Ok(())
}

fn open_starter(boot: &BootDescription) -> Result<Starter, BuildError> {
    Ok(match boot {
        BootDescription::Kernel {
            image,
            initrd,
            command_line,
            protocol,
        } => Starter::Kernel {
            image: image.open("kernel")?,
            initrd: initrd
                .as_ref()
                .map(|file| file.open("initrd"))
                .transpose()?,
            command_line: command_line.clone(),
            protocol: *protocol,
        },
        BootDescription::Firmware(firmware) => {
            let file = firmware.source()?.open("firmware")?;
            Starter::Firmware(Rom::read(&file)?)
        }
        BootDescription::RealMode { image } => Starter::RealMode {
            image: image.open("real-mode image")?,
        },
    })
}
