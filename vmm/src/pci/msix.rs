//! MSI-X: a table of messages in one of the function's windows, masks and pending bits.
//!
//! *PCI Local Bus Specification 3.0*, section 6.8.2. The function keeps an [`Msix`], forwards
//! accesses of its table and pending array to it, and calls [`Msix::sync`] after configuration
//! writes. Whoever raises interrupts holds an [`MsixVector`], which needs no lock of the function.

use super::{Capability, ConfigError, ConfigSpace};
use crate::{
    bus::{set_value, value_of},
    device::StateError,
    interrupt::{MsiAllocator, MsiRoute},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{io, sync::Arc};

const CAPABILITY_ID: u8 = 0x11;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
const ENTRY_SIZE: u64 = 16;
const VECTOR_MASKED: u32 = 1;

/// One vector of a function's MSI-X table.
pub struct MsixVector {
    state: Mutex<Vector>,
    route: Arc<dyn MsiRoute>,
}

#[derive(Default)]
struct Vector {
    entry: MsixVectorState,
    /// MSI-X is enabled in the function's control register.
    enabled: bool,
    /// All vectors are masked in the function's control register.
    function_masked: bool,
    /// What the route was told last.
    programmed: Option<(u64, u32)>,
}

/// Saved state of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixVectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control; bit 0 masks.
    pub control: u32,
    /// The vector was raised while masked.
    pub pending: bool,
}

impl Default for MsixVectorState {
    fn default() -> Self {
        Self {
            address: 0,
            data: 0,
            control: VECTOR_MASKED,
            pending: false,
        }
    }
}

/// Saved state of a function's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    /// All vectors.
    pub vectors: Vec<MsixVectorState>,
}

impl MsixVector {
    /// Raises the vector: sends its message, or marks it pending while it is masked. Does nothing
    /// and returns `false` while MSI-X is disabled, when INTx is to be used.
    pub fn raise(&self) -> bool {
        let mut state = self.state.lock();
        if !state.enabled {
            return false;
        }
        if state.masked() {
            state.entry.pending = true;
        } else {
            self.route.trigger();
        }
        true
    }

    fn change(&self, change: impl FnOnce(&mut Vector)) {
        let mut state = self.state.lock();
        change(&mut state);
        if !state.enabled || state.masked() {
            return;
        }
        let message = (state.entry.address, state.entry.data);
        if state.programmed != Some(message) {
            match self.route.program(message.0, message.1) {
                Ok(()) => state.programmed = Some(message),
                Err(error) => {
                    tracing::warn!(%error, address = message.0, "MSI-X message was refused");
                    return;
                }
            }
        }
        if std::mem::take(&mut state.entry.pending) {
            self.route.trigger();
        }
    }
}

impl Vector {
    fn masked(&self) -> bool {
        self.function_masked || self.entry.control & VECTOR_MASKED != 0
    }
}

/// A function's MSI-X table.
pub struct Msix {
    vectors: Vec<Arc<MsixVector>>,
    capability: u8,
}

impl Msix {
    /// Adds the capability to `config` with `count` vectors (1 to 2048). The table lies at offset
    /// `table` of window `bar`, the pending array at offset `pending`; both multiples of 8.
    ///
    /// # Errors
    /// If the host has no routes left, or configuration space no room.
    pub fn new(
        config: &mut ConfigSpace,
        count: u16,
        bar: u8,
        table: u32,
        pending: u32,
        allocator: &dyn MsiAllocator,
    ) -> Result<Self, io::Error> {
        let last = count.checked_sub(1).filter(|last| *last < 2048);
        let last = last.ok_or_else(|| io::Error::other("MSI-X needs 1 to 2048 vectors"))?;
        let vectors = (0..count)
            .map(|_| {
                Ok(Arc::new(MsixVector {
                    state: Mutex::default(),
                    route: allocator.allocate()?,
                }))
            })
            .collect::<io::Result<_>>()?;
        let mut body = [0; 10];
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&(table & !7 | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending & !7 | u32::from(bar)).to_le_bytes());
        let capability = config
            .add_capability(&Capability {
                id: CAPABILITY_ID,
                body: &body,
                writable: &(CONTROL_ENABLE | CONTROL_MASK).to_le_bytes(),
            })
            .map_err(|error: ConfigError| io::Error::other(error))?;
        Ok(Self {
            vectors,
            capability,
        })
    }

    /// Length of the table in bytes.
    #[must_use]
    pub fn table_size(&self) -> u64 {
        self.vectors.len() as u64 * ENTRY_SIZE
    }

    /// Length of the pending array in bytes.
    #[must_use]
    pub fn pending_size(&self) -> u64 {
        (self.vectors.len() as u64).div_ceil(64) * 8
    }

    /// A vector, to hand to whoever raises it.
    #[must_use]
    pub fn vector(&self, index: u16) -> Option<Arc<MsixVector>> {
        self.vectors.get(usize::from(index)).cloned()
    }

    /// Number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Never true; there is at least one vector.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The guest has enabled MSI-X.
    #[must_use]
    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        config.word(self.capability + 2) & CONTROL_ENABLE != 0
    }

    /// Takes over the control register; to be called after writes to configuration space.
    pub fn sync(&self, config: &ConfigSpace) {
        let control = config.word(self.capability + 2);
        for vector in &self.vectors {
            vector.change(|state| {
                state.enabled = control & CONTROL_ENABLE != 0;
                state.function_masked = control & CONTROL_MASK != 0;
            });
        }
    }

    /// A read at `offset` of the table. Accesses are of any width; each 32-bit word is one register.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, index) in data.iter_mut().zip(0..) {
            let at = offset.saturating_add(index);
            let value = self.entry(at).map_or(u32::MAX, |(vector, register)| {
                let entry = vector.state.lock().entry;
                match register {
                    0 => entry.address as u32,
                    1 => (entry.address >> 32) as u32,
                    2 => entry.data,
                    _ => entry.control,
                }
            });
            *byte = value.to_le_bytes()[(at % 4) as usize];
        }
    }

    /// A write at `offset` of the table. Only aligned words of four or eight bytes count, as the
    /// specification demands of software; others are lost.
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        for (word, at) in data.chunks_exact(4).zip([offset, offset.saturating_add(4)]) {
            let value = value_of(word) as u32;
            if let Some((vector, register)) = self.entry(at) {
                vector.change(|state| {
                    let entry = &mut state.entry;
                    let address = entry.address;
                    match register {
                        0 => entry.address = address & !0xffff_ffff | u64::from(value & !3),
                        1 => entry.address = address & 0xffff_ffff | u64::from(value) << 32,
                        2 => entry.data = value,
                        _ => entry.control = value & VECTOR_MASKED,
                    }
                });
            }
        }
    }

    /// A read at `offset` of the pending array, which cannot be written.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        let mut value = 0u64;
        let first = offset.saturating_mul(8);
        for bit in 0..(data.len() as u64 * 8).min(64) {
            let index = usize::try_from(first.saturating_add(bit)).ok();
            let vector = index.and_then(|index| self.vectors.get(index));
            if vector.is_some_and(|vector| vector.state.lock().entry.pending) {
                value |= 1 << bit;
            }
        }
        set_value(data, value);
    }

    fn entry(&self, offset: u64) -> Option<(&Arc<MsixVector>, u64)> {
        let index = usize::try_from(offset / ENTRY_SIZE).ok()?;
        Some((self.vectors.get(index)?, offset % ENTRY_SIZE / 4))
    }

    /// Back to power-on: all vectors masked, nothing pending, disabled.
    pub fn reset(&self) {
        for vector in &self.vectors {
            *vector.state.lock() = Vector::default();
        }
    }

    /// The state to store; the control register is in configuration space.
    #[must_use]
    pub fn save(&self) -> MsixState {
        MsixState {
            vectors: self.vectors.iter().map(|v| v.state.lock().entry).collect(),
        }
    }

    /// Takes over a stored state and the control register of the restored `config`.
    ///
    /// # Errors
    /// [`StateError::Invalid`] if the number of vectors differs.
    pub fn restore(&self, state: &MsixState, config: &ConfigSpace) -> Result<(), StateError> {
        if state.vectors.len() != self.vectors.len() {
            return Err(StateError::Invalid {
                kind: "msi-x table",
                reason: format!(
                    "{} vectors, this machine's function has {}",
                    state.vectors.len(),
                    self.vectors.len()
                ),
            });
        }
        for (vector, entry) in self.vectors.iter().zip(&state.vectors) {
            vector.state.lock().entry = *entry;
        }
        self.sync(config);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::interrupt::testing::ProbeRoute;

    /// Hands out routes that remember what was sent.
    #[derive(Default)]
    pub(crate) struct ProbeAllocator(pub(crate) Mutex<Vec<Arc<ProbeRoute>>>);

    impl MsiAllocator for ProbeAllocator {
        fn allocate(&self) -> io::Result<Arc<dyn MsiRoute>> {
            let route = Arc::new(ProbeRoute::default());
            self.0.lock().push(route.clone());
            Ok(route)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::ProbeAllocator, *};
    use crate::pci::{BarKind, Identity};

    fn function() -> (ConfigSpace, Msix, ProbeAllocator) {
        let mut config = ConfigSpace::new(Identity {
            vendor: 1,
            device: 2,
            subsystem_vendor: 3,
            subsystem: 4,
            class: 0,
            revision: 0,
        });
        config
            .add_bar(
                1,
                BarKind::Memory32 {
                    prefetchable: false,
                },
                0x1000,
            )
            .unwrap();
        let allocator = ProbeAllocator::default();
        let msix = Msix::new(&mut config, 3, 1, 0, 0x800, &allocator).unwrap();
        (config, msix, allocator)
    }

    fn enable(config: &mut ConfigSpace, msix: &Msix, control: u16) {
        config.write(msix.capability + 2, &control.to_le_bytes());
        msix.sync(config);
    }

    #[test]
    fn the_capability_describes_the_table() {
        let (config, msix, _) = function();
        assert_eq!(config.byte(msix.capability), 0x11);
        assert_eq!(config.word(msix.capability + 2), 2);
        assert_eq!(config.dword(msix.capability + 4), 1);
        assert_eq!(config.dword(msix.capability + 8), 0x801);
        assert_eq!((msix.table_size(), msix.pending_size()), (48, 8));
    }

    #[test]
    fn a_masked_vector_waits_and_is_sent_once_when_unmasked() {
        let (mut config, msix, allocator) = function();
        let vector = msix.vector(1).unwrap();
        assert!(!vector.raise());
        enable(&mut config, &msix, 0x8000);
        msix.table_write(16, &0xfee0_1000u64.to_le_bytes());
        msix.table_write(24, &0x41u32.to_le_bytes());
        assert!(vector.raise() && vector.raise());
        let mut pending = [0; 8];
        msix.pending_read(0, &mut pending);
        assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
        msix.table_write(28, &[0; 4]);
        let route = allocator.0.lock()[1].clone();
        assert_eq!(*route.sent.lock(), [(0xfee0_1000, 0x41)]);
        enable(&mut config, &msix, 0xc000);
        vector.raise();
        assert_eq!(route.sent.lock().len(), 1);
        enable(&mut config, &msix, 0x8000);
        assert_eq!(route.sent.lock().len(), 2);
        vector.raise();
        assert_eq!(route.sent.lock().len(), 3);
    }

    #[test]
    fn odd_accesses_of_the_table_do_no_harm() {
        let (_, msix, _) = function();
        for length in [1, 2, 3, 4, 8] {
            for offset in (0..64).chain([u64::MAX - 7, u64::MAX]) {
                let mut data = vec![0; length];
                msix.table_write(offset, &data);
                msix.table_read(offset, &mut data);
                msix.pending_read(offset, &mut data);
            }
        }
        let mut control = [0xff; 2];
        msix.table_read(13, &mut control);
        assert_eq!(control, [0, 0]);
    }

    #[test]
    fn state_goes_on_in_another_table() {
        let (mut config, msix, _) = function();
        enable(&mut config, &msix, 0x8000);
        msix.table_write(0, &0xfee0_0000u64.to_le_bytes());
        msix.vector(0).unwrap().raise();
        let (mut other_config, other, allocator) = function();
        other_config.restore(&config.save()).unwrap();
        other.restore(&msix.save(), &other_config).unwrap();
        other.table_write(12, &[0; 4]);
        assert_eq!(allocator.0.lock()[0].sent.lock().len(), 1);
        let mut short = msix.save();
        short.vectors.pop();
        assert!(other.restore(&short, &other_config).is_err());
    }
}
