//! The registers of a type 0 header, as a guest sees them.

use super::*;
use proptest::prelude::*;

fn space() -> ConfigSpace {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        class: 0x01_8000,
        revision: 1,
    });
    space.add_bar(0, BarKind::Port, 0x40).unwrap();
    space
        .add_bar(
            1,
            BarKind::Memory32 {
                prefetchable: false,
            },
            0x1000,
        )
        .unwrap();
    space
        .add_bar(4, BarKind::Memory64 { prefetchable: true }, 1 << 33)
        .unwrap();
    space.add_rom(0x1_0000).unwrap();
    space
}

#[test]
fn identity_cannot_be_written() {
    let mut space = space();
    space.write(0, &[0xff; 4]);
    space.write(8, &[0xff; 4]);
    assert_eq!(space.dword(0), 0x1042_1af4);
    assert_eq!(space.dword(8), 0x0180_0001);
    assert_eq!(space.dword(0x2c), 0x1100_1af4);
}

#[test]
fn sizing_shows_the_size_and_the_kind() {
    let mut space = space();
    for (offset, expected) in [
        (0x10, 0xffff_ffc1),
        (0x14, 0xffff_f000),
        (0x18, 0),
        (0x20, 0x0000_000c),
        (0x24, 0xffff_fffe),
        (0x30, 0xffff_0001),
    ] {
        space.write(offset, &[0xff; 4]);
        assert_eq!(space.dword(offset), expected, "register {offset:#x}");
    }
}

#[test]
fn windows_follow_the_command_register_and_bytewise_writes() {
    let mut space = space();
    space.assign_bar(0, 0xc000);
    space.assign_bar(1, 0xfe00_0000);
    space.assign_bar(4, 0x40_0000_0000);
    assert_eq!(space.windows(), []);
    space.write(COMMAND, &[1]);
    let port = Window {
        window: 0,
        space: Space::Port,
        base: 0xc000,
        size: 0x40,
    };
    assert_eq!(space.windows(), [port]);
    space.write(0x11, &[0xd0]);
    assert_eq!(space.windows()[0].base, 0xd000);
    space.write(COMMAND, &[2]);
    let bases: Vec<_> = space.windows().iter().map(|w| (w.window, w.base)).collect();
    assert_eq!(bases, [(1, 0xfe00_0000), (4, 0x40_0000_0000)]);
    space.write(ROM_BAR, &0xfd00_0001u32.to_le_bytes());
    assert_eq!(space.windows()[2].window, ROM);
}

#[test]
fn a_bar_being_sized_or_unset_is_nowhere() {
    let mut space = space();
    space.write(COMMAND, &[3]);
    assert_eq!(space.windows(), []);
    for offset in [0x10, 0x14, 0x20, 0x24] {
        space.write(offset, &[0xff; 4]);
    }
    assert_eq!(space.windows(), []);
}

#[test]
fn capabilities_form_a_list() {
    let mut space = space();
    let a = space
        .add_capability(&Capability {
            id: 9,
            body: &[3, 1, 2],
            writable: &[],
        })
        .unwrap();
    let b = space
        .add_capability(&Capability {
            id: 0x11,
            body: &[0; 10],
            writable: &[0, 0xc0],
        })
        .unwrap();
    assert_eq!((a, b), (0x40, 0x48));
    assert_eq!(space.byte(CAPABILITIES), a);
    assert_eq!((space.byte(a), space.byte(a + 1)), (9, b));
    assert_eq!((space.byte(b), space.byte(b + 1)), (0x11, 0));
    assert_ne!(space.byte(STATUS) & STATUS_CAPABILITIES, 0);
    space.write(b + 2, &[0xff, 0xff]);
    assert_eq!(space.word(b + 2), 0xc000);
    let refused = space.add_capability(&Capability {
        id: 9,
        body: &[0; 200],
        writable: &[],
    });
    assert_eq!(refused, Err(ConfigError::Full { length: 202 }));
}

#[test]
fn impossible_bars_are_refused() {
    let mut space = space();
    let memory = BarKind::Memory32 {
        prefetchable: false,
    };
    for (index, kind, size) in [
        (0, memory, 0x1000),
        (5, memory, 0x1000),
        (6, memory, 0x1000),
        (2, memory, 0x1001),
        (2, memory, 8),
        (2, BarKind::Port, 512),
        (
            3,
            BarKind::Memory64 {
                prefetchable: false,
            },
            0x1000,
        ),
    ] {
        assert_eq!(
            space.add_bar(index, kind, size),
            Err(ConfigError::Bar { index, size })
        );
    }
}

#[test]
fn state_of_another_function_is_refused() {
    let mut space = space();
    space.write(COMMAND, &[7]);
    let saved = space.save();
    space.reset();
    assert!(!space.bus_master());
    space.restore(&saved).unwrap();
    assert!(space.bus_master());
    let mut other = saved.clone();
    other.bytes[2] ^= 1;
    assert!(space.restore(&other).is_err());
    other.bytes.pop();
    assert!(space.restore(&other).is_err());
}

proptest! {
    /// No sequence of writes changes a bit that is read-only or makes a window outside its space.
    #[test]
    fn writes_stay_within_their_masks(
        writes in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 1..5)), 0..64),
    ) {
        let mut space = space();
        let (before, writable, clearable) = (space.bytes, space.writable, space.clearable);
        for (offset, data) in writes {
            space.write(offset, &data);
            for window in space.windows() {
                prop_assert_eq!(window.base % window.size, 0);
                prop_assert!(window.base.checked_add(window.size).is_some());
            }
        }
        for index in 0..256 {
            let changed = space.bytes[index] ^ before[index];
            prop_assert_eq!(changed & !writable[index] & !clearable[index], 0);
        }
    }
}
