//! One vCPU: entry into the guest, what it left the guest for, and its registers.

use super::{
    VcpuState,
    run_page::RunPage,
    vm::{Action as _, VmError},
};
use crate::{boot::Entry, bus::AddressMap, event::MachineEvent, memory::GuestMemory};
use kvm_bindings::{
    CpuId, KVM_MP_STATE_UNINITIALIZED, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_fpu, kvm_mp_state, kvm_msr_entry, kvm_regs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::Mutex;
use std::{io, sync::Arc};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// What a vCPU is made from, beside its descriptor.
pub(super) struct VcpuSeed {
    pub(super) id: u8,
    pub(super) cpuid: CpuId,
    pub(super) msrs: Arc<[u32]>,
    pub(super) memory: GuestMemory,
}

/// Why a vCPU is back from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// An access was answered; enter again.
    Handled,
    /// A kick or a signal came.
    Interrupted,
    /// The guest's processor shut down (triple fault).
    TripleFault,
    /// The hypervisor interface reported an event.
    Event(MachineEvent),
    /// The guest cannot go on; the text says why.
    Stuck(String),
}

/// A virtual processor.
pub struct Vcpu {
    fd: VcpuFd,
    page: RunPage,
    seed: VcpuSeed,
    power_on: Option<Box<VcpuState>>,
    kicker: Arc<Kicker>,
}

/// Makes a vCPU leave the guest, from any thread.
pub struct Kicker {
    page: Mutex<Option<RunPage>>,
    thread: Mutex<Option<rustix::thread::Pid>>,
}

impl Kicker {
    /// Makes the vCPU leave the guest soon, or not enter it. Its thread then looks for what is
    /// wanted of it; whoever kicks has said so before.
    pub fn kick(&self) {
        if let Some(page) = &*self.page.lock() {
            page.set_immediate_exit(true);
        }
        if let Some(thread) = *self.thread.lock() {
            signal_thread(thread);
        }
    }
}

#[allow(unsafe_code)] // No safe wrapper sends a signal to one thread.
fn signal_thread(thread: rustix::thread::Pid) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: tgkill takes numbers only. The signal has a handler that does nothing, so that even
    // a thread that has got the number since is not harmed.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            own,
            thread.as_raw_nonzero().get(),
            SIGRTMIN(),
        )
    };
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Vcpu {
    pub(super) fn new(mut fd: VcpuFd, seed: VcpuSeed) -> Result<Self, VmError> {
        fd.set_cpuid2(&seed.cpuid).to("set a vCPU's features")?;
        register_signal_handler(SIGRTMIN(), nothing).to("handle the signal that stops vCPUs")?;
        let page = RunPage::of(&mut fd);
        let kicker = Arc::new(Kicker {
            page: Mutex::new(Some(page.duplicate())),
            thread: Mutex::new(None),
        });
        let mut vcpu = Self {
            fd,
            page,
            seed,
            power_on: None,
            kicker,
        };
        vcpu.power_on = Some(Box::new(vcpu.save()?));
        Ok(vcpu)
    }

    /// Number of the vCPU; 0 starts, the others wait for its start-up message.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.seed.id
    }

    /// A handle that makes this vCPU leave the guest.
    #[must_use]
    pub fn kicker(&self) -> Arc<Kicker> {
        Arc::clone(&self.kicker)
    }

    /// To be called by the thread that will run this vCPU.
    pub fn adopt(&self) {
        *self.kicker.thread.lock() = Some(rustix::thread::gettid());
    }

    /// Takes back a kick. Whoever calls this looks afterwards at what is wanted of the vCPU.
    pub fn clear_kick(&self) {
        self.page.set_immediate_exit(false);
    }

    /// Runs the guest until it needs an answer or a kick comes, and answers accesses from `ports`
    /// and `memory`.
    pub fn enter(&mut self, ports: &AddressMap, memory: &AddressMap) -> Exit {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(errno) => {
                return match errno.errno() {
                    libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                    _ => Exit::Stuck(format!("KVM_RUN failed: {}", io::Error::from(errno))),
                };
            }
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                let size = self.page.port_access_size().max(1);
                for item in data.chunks_mut(size) {
                    ports.read(port.into(), item);
                }
                Exit::Handled
            }
            VcpuExit::IoOut(port, data) => {
                let size = self.page.port_access_size().max(1);
                for item in data.chunks(size) {
                    ports.write(port.into(), item);
                }
                Exit::Handled
            }
            VcpuExit::MmioRead(address, data) => {
                memory.read(address, data);
                Exit::Handled
            }
            VcpuExit::MmioWrite(address, data) => {
                memory.write(address, data);
                Exit::Handled
            }
            VcpuExit::Intr => Exit::Interrupted,
            VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => Exit::Handled,
            VcpuExit::Shutdown => Exit::TripleFault,
            VcpuExit::SystemEvent(kind, _) => match kind {
                KVM_SYSTEM_EVENT_SHUTDOWN => Exit::Event(MachineEvent::PowerOff),
                KVM_SYSTEM_EVENT_RESET => Exit::Event(MachineEvent::Reset),
                KVM_SYSTEM_EVENT_CRASH => Exit::Event(MachineEvent::Panicked),
                kind => Exit::Stuck(format!("KVM reported system event {kind}")),
            },
            VcpuExit::InternalError => Exit::Stuck(self.describe_internal_error()),
            VcpuExit::FailEntry(reason, cpu) => Exit::Stuck(format!(
                "the processor refused to enter the guest on host CPU {cpu}, reason {reason:#x}"
            )),
            VcpuExit::MemoryFault { flags, gpa, size } => Exit::Stuck(format!(
                "memory fault at {gpa:#x}, {size} bytes, flags {flags:#x}"
            )),
            other => Exit::Stuck(format!("KVM left the guest with {other:?}")),
        }
    }

    /// Carries out the rest of an access that was answered last, so that the registers are those
    /// of a completed instruction. The guest does not run.
    pub fn complete(&mut self, ports: &AddressMap, memory: &AddressMap) {
        self.page.set_immediate_exit(true);
        // A string instruction or a wide access may need several answers; the kernel limits it to
        // fragments of one page.
        for _ in 0..8192 {
            let before = self.fd.get_kvm_run().exit_reason;
            match self.fd.run() {
                Err(_) => break,
                Ok(VcpuExit::MmioRead(address, data)) => memory.read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => memory.write(address, data),
                Ok(VcpuExit::IoIn(port, data)) => {
                    let size = self.page.port_access_size().max(1);
                    for item in data.chunks_mut(size) {
                        ports.read(port.into(), item);
                    }
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    let size = self.page.port_access_size().max(1);
                    for item in data.chunks(size) {
                        ports.write(port.into(), item);
                    }
                }
                Ok(_) => {
                    tracing::debug!(before, "a vCPU left the guest while it was stopped");
                    break;
                }
            }
        }
    }

    fn describe_internal_error(&self) -> String {
        let (suberror, data) = self.page.internal_error();
        let place = match self.fd.get_regs() {
            Ok(regs) => format!(" at instruction pointer {:#x}", regs.rip),
            Err(_) => String::new(),
        };
        let kind = match suberror {
            1 => "KVM could not emulate an instruction",
            2 => "an exception came while another was delivered",
            3 => "an exception came while an interrupt was delivered",
            4 => "the processor left the guest for an unknown reason",
            _ => "KVM met an internal error",
        };
        format!("{kind}{place} (suberror {suberror}, data {data:x?})")
    }

    /// Sets the registers for the start of a kernel, on the vCPU that starts.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn set_entry(&self, entry: &Entry) -> Result<(), VmError> {
        let mut sregs = self.fd.get_sregs().to("tell a vCPU's registers")?;
        entry.set_special(&mut sregs);
        self.fd.set_sregs(&sregs).to("set a vCPU's registers")?;
        let regs: kvm_regs = entry.registers();
        self.fd.set_regs(&regs).to("set a vCPU's registers")?;
        let fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..Default::default()
        };
        self.fd.set_fpu(&fpu).to("set a vCPU's FPU")
    }

    /// Back to the state at power-on.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn reset(&mut self) -> Result<(), VmError> {
        if let Some(state) = self.power_on.take() {
            let result = self.apply(&state);
            self.power_on = Some(state);
            result?;
        }
        if self.seed.id != 0 {
            let waiting = kvm_mp_state {
                mp_state: KVM_MP_STATE_UNINITIALIZED,
            };
            self.fd.set_mp_state(waiting).to("make a vCPU wait")?;
        }
        Ok(())
    }

    /// The vCPU's registers. It stands still and has completed its last access.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn save(&self) -> Result<VcpuState, VmError> {
        const TELL: &str = "tell a vCPU's registers";
        let fd = &self.fd;
        // The order matters: reading the state of execution lets KVM finish pending APIC events.
        let mp = fd.get_mp_state().to(TELL)?;
        let mut msrs = self.read_msrs()?;
        keep_deadline(&mut msrs);
        Ok(VcpuState {
            mp,
            regs: fd.get_regs().to(TELL)?,
            sregs: fd.get_sregs().to(TELL)?,
            xsave: Box::new(fd.get_xsave().to(TELL)?),
            xcrs: fd.get_xcrs().to(TELL)?,
            debug: fd.get_debug_regs().to(TELL)?,
            lapic: Box::new(fd.get_lapic().to(TELL)?),
            events: fd.get_vcpu_events().to(TELL)?,
            msrs,
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        })
    }

    /// Reads all registers that can be read; KVM lists some that this processor does not have.
    fn read_msrs(&self) -> Result<Vec<kvm_msr_entry>, VmError> {
        let mut wanted: Vec<u32> = self.seed.msrs.to_vec();
        let mut read = Vec::with_capacity(wanted.len());
        while !wanted.is_empty() {
            let entries: Vec<_> = wanted
                .iter()
                .map(|index| kvm_msr_entry {
                    index: *index,
                    ..Default::default()
                })
                .collect();
            let mut msrs = Msrs::from_entries(&entries)
                .map_err(|error| io::Error::other(format!("{error:?}")))
                .to("list model-specific registers")?;
            let count = self
                .fd
                .get_msrs(&mut msrs)
                .to("tell model-specific registers")?;
            read.extend(msrs.as_slice().iter().take(count).copied());
            // The one after the last that was read is what stopped it.
            wanted.drain(..(count + 1).min(wanted.len()));
        }
        Ok(read)
    }

    /// Takes over a state made by [`Vcpu::save`] on a host with the same features.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn restore(&mut self, state: &VcpuState) -> Result<(), VmError> {
        let own = self.fd.get_tsc_khz().unwrap_or(0);
        if state.tsc_khz != 0 && own != 0 && own != state.tsc_khz {
            self.fd
                .set_tsc_khz(state.tsc_khz)
                .to("run the time stamp counter at the saved frequency")?;
        }
        self.apply(state)
    }

    #[allow(unsafe_code)] // The kernel reads as many bytes of the state as it has decided on.
    fn apply(&mut self, state: &VcpuState) -> Result<(), VmError> {
        const SET: &str = "set a vCPU's registers";
        let fd = &self.fd;
        fd.set_mp_state(state.mp).to(SET)?;
        fd.set_regs(&state.regs).to(SET)?;
        fd.set_sregs(&state.sregs).to(SET)?;
        // SAFETY: no dynamically enabled feature is asked for, so the kernel's state is no larger
        // than the 4096 bytes of this type.
        unsafe { fd.set_xsave(&state.xsave) }.to(SET)?;
        fd.set_xcrs(&state.xcrs).to(SET)?;
        fd.set_debug_regs(&state.debug).to(SET)?;
        fd.set_lapic(&state.lapic).to(SET)?;
        self.write_msrs(&state.msrs)?;
        self.fd.set_vcpu_events(&state.events).to(SET)
    }

    fn write_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), VmError> {
        let mut left = entries;
        while !left.is_empty() {
            let msrs = Msrs::from_entries(left)
                .map_err(|error| io::Error::other(format!("{error:?}")))
                .to("list model-specific registers")?;
            let count = self.fd.set_msrs(&msrs).to("set model-specific registers")?;
            let Some(refused) = left.get(count) else {
                break;
            };
            // A register that can be read but not written matters only if its value would change.
            if !self.has_msr(refused) {
                return Err(VmError::Msr {
                    index: refused.index,
                });
            }
            left = &left[count + 1..];
        }
        Ok(())
    }

    fn has_msr(&self, entry: &kvm_msr_entry) -> bool {
        let probe = kvm_msr_entry {
            index: entry.index,
            ..Default::default()
        };
        let Ok(mut msrs) = Msrs::from_entries(&[probe]) else {
            return false;
        };
        let read = self.fd.get_msrs(&mut msrs);
        read.is_ok_and(|count| count == 1) && msrs.as_slice()[0].data == entry.data
    }

    /// Tells the guest's kvmclock that it was stopped, so that its watchdogs do not bark.
    pub fn note_pause(&self) {
        // Fails where the guest does not use kvmclock.
        if let Err(error) = self.fd.kvmclock_ctrl() {
            tracing::trace!(%error, "guest does not use kvmclock");
        }
    }

    /// The memory that this vCPU runs on; keeps it mapped.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.seed.memory
    }
}

/// A deadline that has passed but not been delivered reads as zero, which would disarm the timer
/// of the restored guest for ever. A deadline of now makes it come; a guest that had none armed
/// gets at most one interrupt too many, which the architecture allows.
fn keep_deadline(msrs: &mut [kvm_msr_entry]) {
    const TIME_STAMP_COUNTER: u32 = 0x10;
    const TSC_DEADLINE: u32 = 0x6e0;
    let now = msrs
        .iter()
        .find(|msr| msr.index == TIME_STAMP_COUNTER)
        .map(|msr| msr.data);
    let deadline = msrs.iter_mut().find(|msr| msr.index == TSC_DEADLINE);
    if let (Some(now), Some(deadline)) = (now, deadline)
        && deadline.data == 0
    {
        deadline.data = now;
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // The page goes with the descriptor, while kickers may live on.
        *self.kicker.page.lock() = None;
        *self.kicker.thread.lock() = None;
    }
}
