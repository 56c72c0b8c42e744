//! PCI configuration under any accesses: BARs moved onto each other and onto what is fixed.
#![no_main]

use std::sync::Arc;

use cenote_fuzz::registers::{Nobody, Step, access};
use cenote_vmm::bus::{AddressMap, Priority, Target};
use cenote_vmm::device::{Device, DeviceState, StateError};
use cenote_vmm::pci::{
    BarKind, Capability, ConfigPorts, ConfigSpace, Identity, PciAddress, PciBus, PciFunction,
    Space, Window,
};
use libfuzzer_sys::fuzz_target;
use parking_lot::Mutex;

/// A function whose windows read as its number.
struct Tagged {
    config: ConfigSpace,
    tag: u8,
}

impl Tagged {
    fn new(tag: u8) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x02_0000,
            revision: 1,
        });
        let bars = [
            (0, BarKind::Port, 0x20),
            (1, BarKind::Memory32 { prefetchable: false }, 0x1000),
            (2, BarKind::Memory64 { prefetchable: true }, 1 << (12 + tag * 6)),
        ];
        for (index, kind, size) in bars {
            config.add_bar(index, kind, size).expect("a valid BAR");
        }
        config.add_rom(0x1_0000).expect("a valid ROM");
        let capability = Capability {
            id: 9,
            body: &[16, 1, 2, 3],
            writable: &[0, 0xff],
        };
        config.add_capability(&capability).expect("there is room");
        config.set_interrupt_pin(1);
        Self { config, tag }
    }
}

impl Device for Tagged {
    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        Ok(DeviceState {
            kind: "tagged".to_owned(),
            version: 1,
            data: serde_json::to_value(self.config.save()).expect("it can be written"),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = serde_json::from_value(state.data.clone()).expect("it was written");
        self.config.restore(&state)
    }
}

impl PciFunction for Tagged {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn window_read(&mut self, _window: u8, _offset: u64, data: &mut [u8]) {
        data.fill(self.tag);
    }
}

/// Something of the platform that no BAR may hide.
struct Fixed;

impl Target for Fixed {
    fn read(&self, _base: u64, _offset: u64, data: &mut [u8]) {
        data.fill(0xee);
    }

    fn write(&self, _base: u64, _offset: u64, _data: &[u8]) {}
}

const FIXED_MEMORY: u64 = 0xfec0_0000;
const FIXED_PORT: u64 = 0x3f8;

fn check(windows: &[(u8, Window)], ports: &AddressMap, memory: &AddressMap) {
    let read = |space, address| {
        let mut byte = [0];
        match space {
            Space::Port => ports.read(address, &mut byte),
            Space::Memory => memory.read(address, &mut byte),
        }
        byte[0]
    };
    assert_eq!(read(Space::Memory, FIXED_MEMORY), 0xee);
    assert_eq!(read(Space::Port, FIXED_PORT), 0xee);
    for (tag, window) in windows {
        assert!(window.size.is_power_of_two());
        assert_eq!(window.base % window.size, 0, "{window:?}");
        let last = window.base + (window.size - 1);
        assert!(window.space == Space::Memory || last <= 0xffff, "{window:?}");
        for address in [window.base, last] {
            // The function itself, one that comes before it, or what is fixed.
            let answer = read(window.space, address);
            let before = windows.iter().any(|(other, w)| {
                *other == answer
                    && *other <= *tag
                    && w.space == window.space
                    && (w.base..=w.base + (w.size - 1)).contains(&address)
            });
            assert!(before || answer == 0xee, "{window:?} {address:#x} {answer}");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let ports = Arc::new(AddressMap::ports());
    let memory = Arc::new(AddressMap::memory());
    let fixed = Arc::new(Fixed);
    ports
        .claim(Priority::FIXED, FIXED_PORT, 8, fixed.clone())
        .expect("a free place");
    memory
        .claim(Priority::FIXED, FIXED_MEMORY, 0x1000, fixed)
        .expect("a free place");
    let bus = PciBus::new(ports.clone(), memory.clone());
    let functions: Vec<_> = [1, 2, 4]
        .into_iter()
        .map(|tag| {
            let function = Arc::new(Mutex::new(Tagged::new(tag)));
            let address = PciAddress::new(tag, 0).expect("an address");
            bus.attach(address, function.clone()).expect("a free slot");
            function
        })
        .collect();
    let mut registers = ConfigPorts::new(bus.clone(), Arc::new(Nobody));
    for step in Step::all(input) {
        let [first, second, third] = step.operands;
        match step.what & 7 {
            0 => {
                access(&mut registers, &step, 0xcf8, 8);
            }
            // What a guest does all the time: address and data of one register.
            1..=5 => {
                use cenote_vmm::bus::PortIo as _;
                let devfn = u32::from([1u8, 2, 4, 4][usize::from(step.what >> 6)]) << 3;
                let address = 0x8000_0000 | devfn << 8 | u32::from(first & 0xfc);
                registers.port_write(0xcf8, &address.to_le_bytes());
                let mut data = [0; 4];
                registers.port_read(0xcfc, &mut data);
                // High bytes of a BAR are as likely as low ones.
                let lane = usize::from(first & 3);
                data[lane] = second;
                data[(lane + 1) & 3] = third;
                registers.port_write(0xcfc, &data);
            }
            6 => functions.iter().for_each(|function| {
                let state = function.lock().save().expect("it can be saved");
                let mut fresh = Tagged::new(function.lock().tag);
                fresh.restore(&state).expect("its own state is taken over");
                assert_eq!(fresh.save().expect("it can be saved"), state);
                assert_eq!(fresh.windows(), function.lock().windows());
            }),
            _ if first == 0 => {
                for function in &functions {
                    function.lock().reset();
                }
                bus.refresh();
            }
            _ => {
                let at = u64::from(second) << 24 | u64::from(third) << 12;
                memory.write(at, &[first; 8]);
                ports.write(u64::from(second) << 8 | u64::from(third), &[first; 4]);
            }
        }
        let mut windows = Vec::new();
        for function in &functions {
            let function = function.lock();
            windows.extend(function.windows().into_iter().map(|w| (function.tag, w)));
        }
        check(&windows, &ports, &memory);
    }
});
