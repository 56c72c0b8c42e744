"""Measures what firmware and IDE drives cost beside QEMU's `pc` on the lab's KVM; run there by
`cargo xtask bench firmware`.

    python3 firmware.py ROUNDS [TEXT]

Prints values as vmm.py does, whose parts it uses.
"""

import os
import re
import subprocess
import sys

from vmm import DONE, FOLDER, INITRD, KERNEL, Running, command_line, tell

MEMORY = 256
PC = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
PC += ["-machine", "pc,accel=kvm", "-cpu", "host", "-smp", "1", "-m", str(MEMORY)]
PC += ["-serial", "stdio", "-qmp", f"unix:{FOLDER}/control,server=on,wait=off"]
# Passes over a drive and resets of a machine in one round.
PASSES = 3
RESETS = 20


def described(boot, ide):
    """Our machine, from the JSON of what it starts and of its drives."""
    path = f"{FOLDER}/machine.json"
    with open(path, "w") as file:
        file.write(
            f'{{"version": 1, "vcpus": 1, "memory": {MEMORY << 20}, "boot": {boot},'
            f' "ide": {ide}, "serial": {{"backend": "stdio"}}, "control": "{FOLDER}/control"}}'
        )
    return ["cenote-vmm", "--machine", path]


def drive(name, kind, path):
    """A drive as the program is told of it: a disk first on its cable, or a disc on the second."""
    if name == "cenote-vmm":
        if kind == "disk":
            image = f'{{"file": {{"path": "{path}"}}, "format": "raw", "boot_index": 0}}'
            return f'{{"primary-master": {{"disk": {image}}}}}'
        return f'{{"secondary-master": {{"cdrom": {{"file": {{"path": "{path}"}}}}}}}}'
    backend = f"if=none,id=drive,format=raw,file={path}"
    if kind == "disk":
        return ["-drive", backend, "-device", "ide-hd,bus=ide.0,drive=drive"]
    return ["-drive", f"{backend},media=cdrom,readonly=on", "-device", "ide-cd,bus=ide.1,drive=drive"]


def sector():
    """A disk whose boot sector says `B` on COM1 as its first deed, and waits for ever."""
    path = f"{FOLDER}/sector"
    # mov dx, 0x3f8; mov al, 'B'; out dx, al; again: hlt; jmp again
    code = bytes([0xBA, 0xF8, 0x03, 0xB0, ord("B"), 0xEE, 0xF4, 0xEB, 0xFD])
    with open(path, "wb") as file:
        file.write(code.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    return path


def reset(name):
    """From the request to reset the machine to its boot sector's first deed."""
    disk = drive(name, "disk", sector())
    if name == "cenote-vmm":
        running = Running(described('{"firmware": {}}', disk))
        request = '{"jsonrpc":"2.0","id":1,"method":"reset"}'
    else:
        running = Running(PC + disk)
        running.ask('{"execute":"qmp_capabilities"}')
        request = '{"execute":"system_reset"}'
    tell("start to boot sector", name, running.until(b"B"))
    # The first is not counted: what it touches is new.
    for count in range(RESETS + 1):
        running.output = b""
        before = running.since_start()
        running.ask(request)
        seconds = running.until(b"B") - before
        if count:
            tell("reset to boot sector", name, seconds)
    running.end()


def read(case, kind, device, name):
    """Reads all of a drive from Linux, past its page cache, several times."""
    path, size = contents(kind)
    passes = " ".join(str(number) for number in range(PASSES))
    guest = f"grep -H . /sys/class/ata_device/*/xfer_mode; for i in {passes}; do echo begin-$i;"
    guest += f" dd if={device} of=/dev/null bs=1M; echo end-$i;"
    guest += " echo 3 >/proc/sys/vm/drop_caches; done; echo bench: done; sleep 1000"
    ide = drive(name, kind, path)
    if name == "cenote-vmm":
        line = command_line(guest).replace('"', '\\"')
        boot = f'{{"kernel": {{"image": {{"path": "{KERNEL}"}}, "initrd": {{"path": "{INITRD}"}},'
        running = Running(described(f'{boot} "command_line": "{line}"}}}}', ide))
    else:
        kernel = ["-kernel", KERNEL, "-initrd", INITRD, "-append", command_line(guest)]
        running = Running(PC + kernel + ide)
    for number in range(PASSES):
        before = running.until(f"begin-{number}\r\n".encode())
        seconds = running.until(f"end-{number}\r\n".encode()) - before
        tell(case, name, size / (1 << 20) / seconds)
    running.until(DONE)
    text = running.output.decode(errors="replace")
    whole = f"{size >> 20}+{int(size % (1 << 20) > 0)} records in"
    if not re.search(r"xfer_mode:.*DMA", text) or whole not in text:
        running.fail("the drive was not read whole by DMA")
    running.end()


def contents(kind):
    """A file for the drive, in memory, and its size."""
    folder = f"{FOLDER}/memory"
    if not os.path.isdir(folder):
        os.makedirs(folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "memory", folder], check=True)
    path = f"{folder}/{kind}"
    if not os.path.exists(path):
        data = f"{folder}/data/data" if kind == "disc" else path
        os.makedirs(f"{folder}/data", exist_ok=True)
        with open(data, "wb") as file:
            for _ in range(200):
                file.write(os.urandom(1 << 20))
        if kind == "disc":
            words = ["xorriso", "-as", "mkisofs", "-quiet", "-o", path, f"{folder}/data"]
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
            os.unlink(data)
    return path, os.path.getsize(path)


CASES = {
    "reset to boot sector": reset,
    "disc, 200 MiB through ATAPI DMA": lambda name: read(
        "disc, 200 MiB through ATAPI DMA", "disc", "/dev/sr0", name
    ),
    "disk, 200 MiB through IDE DMA": lambda name: read(
        "disk, 200 MiB through IDE DMA", "disk", "/dev/sda", name
    ),
}


def main():
    rounds = int(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    os.makedirs(FOLDER, exist_ok=True)
    for turn in range(rounds):
        for case, measure in CASES.items():
            if wanted in case:
                # Each program comes first as often as last.
                for name in ["cenote-vmm", "QEMU pc"][:: -1 if turn % 2 else 1]:
                    measure(name)


main()
