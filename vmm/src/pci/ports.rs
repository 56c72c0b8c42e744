//! Configuration mechanism 1: an address register at port 0xcf8, data at 0xcfc to 0xcff.
//!
//! *PCI Local Bus Specification 3.0*, section 3.2.2.3.2. The address register answers only to
//! aligned 32-bit accesses; narrower ones at 0xcf8 to 0xcfb belong to other devices, of which the
//! reset control register at 0xcf9 (*PIIX3*, section 2.5.4.3) is one.

use super::{PciAddress, PciBus};
use crate::{
    bus::{PortIo, set_value, value_of},
    device::{Device, DeviceState, SavedState, StateError},
    event::{EventSink, MachineEvent},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const ADDRESS: u16 = 0xcf8;
const RESET_CONTROL: u16 = 0xcf9;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that exist: enable, bus, device, function, dword.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
const RESET_CPU: u8 = 1 << 2;
const RESET_BITS: u8 = 0x02;

/// Ports 0xcf8 to 0xcff.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    events: Arc<dyn EventSink>,
    state: ConfigPortsState,
}

/// Saved state of the ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigPortsState {
    /// CONFADD.
    pub address: u32,
    /// The reset control register.
    pub reset_control: u8,
}

impl SavedState for ConfigPortsState {
    const NAME: &'static str = "pci-config-ports";
    const VERSION: u32 = 1;
}

impl ConfigPorts {
    /// The ports of `bus`; resets are reported to `events`.
    pub fn new(bus: Arc<PciBus>, events: Arc<dyn EventSink>) -> Self {
        Self {
            bus,
            events,
            state: ConfigPortsState::default(),
        }
    }

    /// First port and number of ports.
    pub const PORTS: (u16, u16) = (ADDRESS, 8);

    /// The function and offset that an access to a data port means.
    fn selected(&self, port: u16, length: usize) -> Option<(PciAddress, u8)> {
        let address = self.state.address;
        let lane = (port - DATA) as u8;
        let whole = usize::from(lane) + length <= 4;
        (address & ENABLE != 0 && address >> 16 & 0xff == 0 && whole).then(|| {
            (
                PciAddress::from_devfn((address >> 8) as u8),
                address as u8 & !3 | lane,
            )
        })
    }

    fn write_reset_control(&mut self, value: u8) {
        let rising = value & RESET_CPU != 0 && self.state.reset_control & RESET_CPU == 0;
        self.state.reset_control = value & (RESET_BITS | RESET_CPU);
        if rising {
            // A reset clears the bit again.
            self.state.reset_control &= !RESET_CPU;
            self.events.signal(MachineEvent::Reset);
        }
    }
}

impl PortIo for ConfigPorts {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if port >= DATA {
            if let Some((address, offset)) = self.selected(port, data.len()) {
                self.bus.config_read(address, offset, data);
            }
        } else if port == ADDRESS && data.len() == 4 {
            set_value(data, self.state.address.into());
        } else if port == RESET_CONTROL
            && let Some(byte) = data.first_mut()
        {
            *byte = self.state.reset_control;
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        if port >= DATA {
            if let Some((address, offset)) = self.selected(port, data.len()) {
                self.bus.config_write(address, offset, data);
            }
        } else if port == ADDRESS && data.len() == 4 {
            self.state.address = value_of(data) as u32 & ADDRESS_BITS;
        } else if port == RESET_CONTROL
            && let Some(byte) = data.first()
        {
            self.write_reset_control(*byte);
        }
    }
}

impl Device for ConfigPorts {
    fn reset(&mut self) {
        self.state = ConfigPortsState::default();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        self.state.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let mut state = ConfigPortsState::load(state)?;
        state.address &= ADDRESS_BITS;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bus::AddressMap,
        event::testing::RecordedEvents,
        pci::bus::tests::{Plain, plain_bus},
    };
    use parking_lot::Mutex;
    use proptest::prelude::*;

    fn ports() -> (ConfigPorts, Arc<RecordedEvents>, Arc<AddressMap>) {
        let (bus, ports, _) = plain_bus();
        let function = Arc::new(Mutex::new(Plain::new()));
        bus.attach(PciAddress::new(3, 0).unwrap(), function)
            .unwrap();
        let events = Arc::new(RecordedEvents::default());
        (ConfigPorts::new(bus, events.clone()), events, ports)
    }

    fn read(ports: &mut ConfigPorts, port: u16, length: usize) -> u64 {
        let mut data = vec![0; length];
        ports.port_read(port, &mut data);
        value_of(&data)
    }

    fn select(ports: &mut ConfigPorts, device: u32, offset: u32) {
        ports.port_write(ADDRESS, &(ENABLE | device << 11 | offset).to_le_bytes());
    }

    #[test]
    fn every_width_reaches_its_bytes() {
        let (mut ports, ..) = ports();
        select(&mut ports, 3, 0);
        assert_eq!(read(&mut ports, ADDRESS, 4), 0x8000_1800);
        assert_eq!(read(&mut ports, DATA, 4), 0x1042_1af4);
        assert_eq!(read(&mut ports, DATA + 2, 2), 0x1042);
        assert_eq!(read(&mut ports, DATA + 1, 1), 0x1a);
        assert_eq!(read(&mut ports, DATA + 3, 2), 0xffff);
    }

    #[test]
    fn nobody_reads_as_ones() {
        let (mut ports, ..) = ports();
        assert_eq!(read(&mut ports, DATA, 4), 0xffff_ffff);
        select(&mut ports, 4, 0);
        assert_eq!(read(&mut ports, DATA, 4), 0xffff_ffff);
        ports.port_write(ADDRESS, &(ENABLE | 1 << 16 | 3 << 11).to_le_bytes());
        assert_eq!(read(&mut ports, DATA, 4), 0xffff_ffff);
    }

    #[test]
    fn narrow_writes_leave_the_address_alone_and_cf9_resets_on_its_edge() {
        let (mut ports, events, _) = ports();
        select(&mut ports, 3, 4);
        ports.port_write(ADDRESS, &[0]);
        ports.port_write(RESET_CONTROL, &[2]);
        assert_eq!(events.take(), []);
        assert_eq!(read(&mut ports, RESET_CONTROL, 1), 2);
        ports.port_write(RESET_CONTROL, &[6]);
        assert_eq!(events.take(), [MachineEvent::Reset]);
        assert_eq!(read(&mut ports, ADDRESS, 4), 0x8000_1804);
    }

    #[test]
    fn the_address_survives_storage() {
        let (mut first, ..) = ports();
        select(&mut first, 3, 8);
        let (mut second, ..) = ports();
        second.restore(&first.save().unwrap()).unwrap();
        assert_eq!(read(&mut second, ADDRESS, 4), 0x8000_1808);
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            accesses in prop::collection::vec((0u16..8, 0usize..3, any::<u32>()), 0..64),
        ) {
            let (mut ports, ..) = ports();
            for (port, width, value) in accesses {
                let length = 1 << width;
                ports.port_write(ADDRESS + port, &value.to_le_bytes()[..length]);
                read(&mut ports, ADDRESS + port, length);
            }
        }
    }
}
