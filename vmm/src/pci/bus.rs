//! The root bus: finds functions, and keeps the address maps in step with their windows.
//!
//! Lock order: the list of functions, then a function's table of windows, then the function. The
//! address maps' locks are leaves.

use super::{PciAddress, PciFunction, Space, Window};
use crate::bus::{AddressMap, MapError, Priority, RangeId, Target};
use parking_lot::{Mutex, RwLock};
use std::{collections::BTreeMap, sync::Arc};

/// Why a function was not attached.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AttachError {
    /// The address is taken.
    #[error("PCI address {0} is taken: give the device another slot")]
    Taken(PciAddress),
    /// All 32 slots are taken.
    #[error("all 32 slots of the PCI bus are taken: remove a device from the machine description")]
    Full,
}

/// The functions of bus 0.
pub struct PciBus {
    ports: Arc<AddressMap>,
    memory: Arc<AddressMap>,
    functions: RwLock<BTreeMap<u8, Arc<Attached>>>,
}

struct Attached {
    function: Arc<Mutex<dyn PciFunction>>,
    mapped: Mutex<Vec<(Window, Option<RangeId>)>>,
}

impl PciBus {
    /// An empty bus whose functions decode in `ports` and `memory`.
    #[must_use]
    pub fn new(ports: Arc<AddressMap>, memory: Arc<AddressMap>) -> Arc<Self> {
        Arc::new(Self {
            ports,
            memory,
            functions: RwLock::default(),
        })
    }

    /// Puts a function at `address`.
    ///
    /// # Errors
    /// [`AttachError::Taken`].
    pub fn attach(
        &self,
        address: PciAddress,
        function: Arc<Mutex<dyn PciFunction>>,
    ) -> Result<(), AttachError> {
        let mut functions = self.functions.write();
        if functions.contains_key(&address.devfn()) {
            return Err(AttachError::Taken(address));
        }
        let attached = Arc::new(Attached {
            function,
            mapped: Mutex::default(),
        });
        functions.insert(address.devfn(), Arc::clone(&attached));
        self.remap(address, &attached);
        Ok(())
    }

    /// The lowest slot from `first` on without any function.
    ///
    /// # Errors
    /// [`AttachError::Full`].
    pub fn free_slot(&self, first: u8) -> Result<u8, AttachError> {
        let functions = self.functions.read();
        (first..32)
            .find(|slot| functions.range(slot << 3..=slot << 3 | 7).next().is_none())
            .ok_or(AttachError::Full)
    }

    /// All functions, by address.
    #[must_use]
    pub fn functions(&self) -> Vec<(PciAddress, Arc<Mutex<dyn PciFunction>>)> {
        let functions = self.functions.read();
        functions
            .iter()
            .map(|(devfn, f)| (PciAddress::from_devfn(*devfn), Arc::clone(&f.function)))
            .collect()
    }

    /// A guest's read of configuration space; absent functions read as ones.
    pub fn config_read(&self, address: PciAddress, offset: u8, data: &mut [u8]) {
        match self.find(address) {
            Some(attached) => attached.function.lock().config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A guest's write to configuration space; moves the function's windows if they changed.
    pub fn config_write(&self, address: PciAddress, offset: u8, data: &[u8]) {
        if let Some(attached) = self.find(address) {
            attached.function.lock().config_write(offset, data);
            self.remap(address, &attached);
        }
    }

    /// Looks at every function's windows again: after a reset, a restore, or an assignment of
    /// addresses that did not go through [`PciBus::config_write`].
    pub fn refresh(&self) {
        let functions: Vec<_> = self
            .functions
            .read()
            .iter()
            .map(|(k, v)| (*k, v.clone()))
            .collect();
        for (devfn, attached) in functions {
            self.remap(PciAddress::from_devfn(devfn), &attached);
        }
    }

    fn find(&self, address: PciAddress) -> Option<Arc<Attached>> {
        self.functions.read().get(&address.devfn()).cloned()
    }

    fn remap(&self, address: PciAddress, attached: &Arc<Attached>) {
        let mut mapped = attached.mapped.lock();
        let wanted = attached.function.lock().windows();
        let stale = |known: &Window| !wanted.contains(known);
        for (window, id) in mapped.extract_if(.., |(window, _)| stale(window)) {
            if let Some(id) = id {
                self.map(window.space).release(id);
            }
            if !wanted.iter().any(|w| w.window == window.window) {
                attached.function.lock().window_moved(window.window, None);
            }
        }
        for window in wanted {
            if mapped.iter().any(|(known, _)| *known == window) {
                continue;
            }
            let id = self.claim(address, attached, window);
            if let Err(error) = &id {
                tracing::debug!(%address, window = window.window, %error, "PCI window cannot be mapped");
            }
            mapped.push((window, id.ok()));
            attached
                .function
                .lock()
                .window_moved(window.window, Some(window.base));
        }
    }

    fn claim(
        &self,
        address: PciAddress,
        attached: &Arc<Attached>,
        window: Window,
    ) -> Result<RangeId, MapError> {
        let rank = u16::from(address.devfn()) << 4 | u16::from(window.window & 0xf);
        let target = Arc::new(WindowTarget {
            function: Arc::clone(&attached.function),
            window: window.window,
        });
        self.map(window.space)
            .claim(Priority::movable(rank), window.base, window.size, target)
    }

    fn map(&self, space: Space) -> &AddressMap {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.memory,
        }
    }
}

struct WindowTarget {
    function: Arc<Mutex<dyn PciFunction>>,
    window: u8,
}

impl Target for WindowTarget {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        self.function.lock().window_read(self.window, offset, data);
    }

    fn write(&self, _base: u64, offset: u64, data: &[u8]) {
        self.function.lock().window_write(self.window, offset, data);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        device::{Device, DeviceState, StateError},
        pci::{BarKind, ConfigSpace, Identity},
    };
    use proptest::prelude::*;

    /// A function whose windows read as their number and that notes where they went.
    pub(crate) struct Plain {
        config: ConfigSpace,
        moves: Vec<(u8, Option<u64>)>,
    }

    impl Plain {
        pub(crate) fn new() -> Self {
            let mut config = ConfigSpace::new(Identity {
                vendor: 0x1af4,
                device: 0x1042,
                subsystem_vendor: 0,
                subsystem: 0,
                class: 0xff_0000,
                revision: 0,
            });
            config.add_bar(0, BarKind::Port, 0x20).unwrap();
            config
                .add_bar(
                    1,
                    BarKind::Memory32 {
                        prefetchable: false,
                    },
                    0x1000,
                )
                .unwrap();
            config
                .add_bar(
                    2,
                    BarKind::Memory64 {
                        prefetchable: false,
                    },
                    0x4000,
                )
                .unwrap();
            Self {
                config,
                moves: Vec::new(),
            }
        }
    }

    impl Device for Plain {
        fn reset(&mut self) {
            self.config.reset();
        }

        fn save(&self) -> Result<DeviceState, StateError> {
            unreachable!("not saved in these tests")
        }

        fn restore(&mut self, _state: &DeviceState) -> Result<(), StateError> {
            unreachable!("not restored in these tests")
        }
    }

    impl PciFunction for Plain {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }

        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }

        fn window_moved(&mut self, window: u8, base: Option<u64>) {
            self.moves.push((window, base));
        }

        fn window_read(&mut self, window: u8, _offset: u64, data: &mut [u8]) {
            data.fill(window);
        }
    }

    pub(crate) fn plain_bus() -> (Arc<PciBus>, Arc<AddressMap>, Arc<AddressMap>) {
        let ports = Arc::new(AddressMap::ports());
        let memory = Arc::new(AddressMap::memory());
        (PciBus::new(ports.clone(), memory.clone()), ports, memory)
    }

    fn byte(map: &AddressMap, address: u64) -> u8 {
        let mut data = [0];
        map.read(address, &mut data);
        data[0]
    }

    #[test]
    fn windows_appear_move_and_vanish() {
        let (bus, _, memory) = plain_bus();
        let function = Arc::new(Mutex::new(Plain::new()));
        let address = PciAddress::new(2, 0).unwrap();
        bus.attach(address, function.clone()).unwrap();
        bus.config_write(address, 0x14, &0xfe00_0000u32.to_le_bytes());
        assert_eq!(byte(&memory, 0xfe00_0000), 0xff);
        bus.config_write(address, 4, &[2]);
        assert_eq!(byte(&memory, 0xfe00_0fff), 1);
        bus.config_write(address, 0x14, &0xfd00_0000u32.to_le_bytes());
        assert_eq!(
            (byte(&memory, 0xfe00_0000), byte(&memory, 0xfd00_0000)),
            (0xff, 1)
        );
        bus.config_write(address, 4, &[0]);
        assert_eq!(byte(&memory, 0xfd00_0000), 0xff);
        let expected = [(1, Some(0xfe00_0000)), (1, Some(0xfd00_0000)), (1, None)];
        assert_eq!(function.lock().moves, expected);
    }

    #[test]
    fn overlapping_functions_answer_by_address_whatever_came_first() {
        let (bus, _, memory) = plain_bus();
        for device in [5, 4] {
            let address = PciAddress::new(device, 0).unwrap();
            bus.attach(address, Arc::new(Mutex::new(Plain::new())))
                .unwrap();
            bus.config_write(address, 4, &[2]);
            let register = if device == 5 { 0x18 } else { 0x14 };
            bus.config_write(address, register, &0xe000_0000u32.to_le_bytes());
        }
        assert_eq!(byte(&memory, 0xe000_0000), 1);
        assert_eq!(byte(&memory, 0xe000_1000), 2);
        bus.config_write(PciAddress::new(4, 0).unwrap(), 4, &[0]);
        assert_eq!(byte(&memory, 0xe000_0000), 2);
    }

    #[test]
    fn slots_are_given_once() {
        let (bus, ..) = plain_bus();
        let address = PciAddress::new(0, 0).unwrap();
        bus.attach(address, Arc::new(Mutex::new(Plain::new())))
            .unwrap();
        let again = bus.attach(address, Arc::new(Mutex::new(Plain::new())));
        assert_eq!(again, Err(AttachError::Taken(address)));
        assert_eq!(bus.free_slot(0), Ok(1));
        assert_eq!(bus.free_slot(32), Err(AttachError::Full));
    }

    proptest! {
        /// Whatever a guest writes, what answers in memory is what the functions say they decode.
        #[test]
        fn maps_agree_with_the_functions(
            writes in prop::collection::vec((0u8..3, 0u8..64, 0usize..3, any::<u32>()), 0..48),
        ) {
            let (bus, ports, memory) = plain_bus();
            for device in 0..3 {
                let address = PciAddress::new(device, 0).unwrap();
                bus.attach(address, Arc::new(Mutex::new(Plain::new()))).unwrap();
            }
            for (device, offset, width, value) in writes {
                let length = 1usize << width;
                let offset = offset & !(length as u8 - 1);
                let address = PciAddress::new(device, 0).unwrap();
                bus.config_write(address, offset, &value.to_le_bytes()[..length]);
            }
            for (_, function) in bus.functions().iter().rev() {
                for window in function.lock().config().windows() {
                    let map = if window.space == Space::Port { &ports } else { &memory };
                    prop_assert!(map.is_claimed(window.base));
                }
            }
        }
    }
}
