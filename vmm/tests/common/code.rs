//! 16-bit code of fixture guests, and disks and discs that start it.

/// Prints DL's character to COM1 when the transmitter is empty, and returns.
pub(crate) const PRINT: &[u8] = &[
    0x52, // push dx
    0xb4, 0x00, // mov ah, 0
    0x88, 0xd4, // mov ah, dl
    0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x20, // test al, 0x20
    0x74, 0xf8, // jz wait
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x88, 0xe0, // mov al, ah
    0xee, // out dx, al
    0x5a, // pop dx
    0xc3, // ret
];

/// ACPI power-off: sleep enable with type 0 to PM1a control.
pub(crate) const POWER_OFF: &[u8] = &[
    0xba, 0x04, 0x06, // mov dx, 0x604
    0xb8, 0x00, 0x20, // mov ax, 0x2000
    0xef, // out dx, ax
    0xf4, // hlt
];

/// Tells the firmware that there is nothing to boot here.
pub(crate) const GO_ON: &[u8] = &[0xcd, 0x18]; // int 0x18

/// `mov dx, PORT; mov al, VALUE; out dx, al; hlt`.
pub(crate) fn out_and_halt(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xba, low, high, 0xb0, value, 0xee, 0xf4]
}

/// Code that prints `text` and goes on with `then`.
pub(crate) fn printing(text: &[u8], then: &[u8]) -> Vec<u8> {
    // jmp over PRINT, which lies at offset 2.
    let mut code = vec![0xeb, PRINT.len() as u8];
    code.extend(PRINT);
    for byte in text {
        code.extend([0xb2, *byte]); // mov dl, byte
        let back = 2i32 - (code.len() as i32 + 3);
        code.push(0xe8); // call PRINT
        code.extend((back as i16).to_le_bytes());
    }
    code.extend(then);
    code
}

/// Code that does `again` the first `times` times that it runs, and `then` afterwards. It counts
/// in CMOS memory, which outlives resets.
pub(crate) fn counting(times: u8, again: &[u8], then: &[u8]) -> Vec<u8> {
    let mut code = vec![
        0xb0,
        0x50,
        0xe6,
        0x70, // mov al, 0x50; out 0x70, al
        0xe4,
        0x71, // in al, 0x71
        0x3c,
        times, // cmp al, times
        0x74,
        (again.len() + 4) as u8, // je then
        0xfe,
        0xc0, // inc al
        0xe6,
        0x71, // out 0x71, al
    ];
    code.extend(again);
    code.extend(then);
    code
}

/// Code that writes `sector` as the first of the first disk, and resets the machine.
pub(crate) fn installer(sector: &[u8]) -> Vec<u8> {
    let mut code = vec![
        0xb8, 0x01, 0x03, // mov ax, 0x301
        0xb9, 0x01, 0x00, // mov cx, 1
        0xba, 0x80, 0x00, // mov dx, 0x80
        0x0e, 0x07, // push cs; pop es
        0xe8, 0x00, 0x00, // call next
        0x5b, // next: pop bx
        0x81, 0xc3, // add bx, distance to the sector
    ];
    let rest = [
        0xcd, 0x13, // int 0x13
        0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
        0xf4, // hlt
    ];
    code.extend((5 + rest.len() as u16).to_le_bytes());
    code.extend(rest);
    code.extend(sector);
    code
}

/// A disk of `sectors` sectors whose first starts `code`.
pub(crate) fn disk(code: &[u8], sectors: usize) -> Vec<u8> {
    assert!(
        code.len() <= 446,
        "the code leaves no room for a partition table"
    );
    let mut disk = vec![0; sectors * 512];
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// Where the parts of [`disc`] lie, in sectors of 2048 bytes.
pub(crate) const BOOT_RECORD: usize = 17;
pub(crate) const CATALOGUE: usize = 19;
const CODE: u32 = 20;

/// An ISO image without files that starts `code` by El Torito, without emulation of a floppy.
pub(crate) fn disc(code: &[u8]) -> Vec<u8> {
    let mut disc = vec![0; 24 * 2048];
    let mut put = |sector: usize, at: usize, bytes: &[u8]| {
        let at = sector * 2048 + at;
        disc[at..at + bytes.len()].copy_from_slice(bytes);
    };
    // Primary volume descriptor, boot record, end.
    put(16, 0, b"\x01CD001\x01");
    put(BOOT_RECORD, 0, b"\0CD001\x01EL TORITO SPECIFICATION");
    put(BOOT_RECORD, 0x47, &(CATALOGUE as u32).to_le_bytes());
    put(18, 0, b"\xffCD001\x01");
    // Validation entry: its words sum to zero.
    put(CATALOGUE, 0, &[1, 0]);
    put(CATALOGUE, 28, &[0xaa, 0x55, 0x55, 0xaa]);
    // Default entry: bootable, no emulation, segment 0x7c0, four sectors of 512 bytes.
    put(CATALOGUE, 32, &[0x88, 0, 0, 0, 0, 0, 4, 0]);
    put(CATALOGUE, 40, &CODE.to_le_bytes());
    put(CODE as usize, 0, code);
    disc
}
