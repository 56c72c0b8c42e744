"""Measures monitors side by side on the lab's KVM; run there by `cargo xtask bench vmm`.

    python3 vmm.py ROUNDS [TEXT]

Prints a line per value: {"case": "…", "program": "…", "value": N, "rss": KIB}. Programs take
turns within each round. Only modules of python3-minimal are used.
"""

import os
import socket
import subprocess
import sys
import time

KERNEL = "/lab/guest/vmlinux-cloud"
INITRD = "/lab/guest/initramfs.cpio.gz"
READY = b"guest: ready"
PATIENCE = 120
FOLDER = "/tmp/bench-vmm"


def command_line(guest):
    return f'console=ttyS0 quiet panic=-1 GUEST="{guest}"'


def cenote(guest, memory, restore=None):
    control = f"{FOLDER}/control"
    description = f"{FOLDER}/machine.json"
    line = command_line(guest).replace('"', '\\"')
    with open(description, "w") as file:
        file.write(
            f'{{"version": 1, "vcpus": 1, "memory": {memory << 20},'
            f' "boot": {{"kernel": {{"image": {{"path": "{KERNEL}"}},'
            f' "initrd": {{"path": "{INITRD}"}}, "command_line": "{line}"}}}},'
            f' "serial": {{"backend": "stdio"}}, "control": "{control}"}}'
        )
    words = ["cenote-vmm", "--machine", description]
    return words + (["--paused", "--restore", restore] if restore else [])


def qemu(machine, guest, memory, restore=None):
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-machine", f"{machine},accel=kvm", "-cpu", "host", "-smp", "1"]
    words += ["-m", str(memory), "-kernel", KERNEL, "-initrd", INITRD]
    words += ["-append", command_line(guest), "-serial", "stdio"]
    words += ["-qmp", f"unix:{FOLDER}/control,server=on,wait=off"]
    return words + (["-S", "-incoming", f"exec:cat {restore}"] if restore else [])


PROGRAMS = {
    "cenote-vmm": cenote,
    "QEMU q35": lambda *rest, **named: qemu("q35", *rest, **named),
    "QEMU microvm": lambda *rest, **named: qemu("microvm", *rest, **named),
}


class Running:
    """A monitor, its guest's output, and its control socket."""

    def __init__(self, words):
        for name in ("control", "messages"):
            try:
                os.unlink(f"{FOLDER}/{name}")
            except FileNotFoundError:
                pass
        self.words = words
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=open(f"{FOLDER}/messages", "w"),
        )
        self.output = b""
        self.socket = None

    def fail(self, what):
        with open(f"{FOLDER}/messages") as messages:
            text = messages.read()
        self.end()
        sys.exit(f"{' '.join(self.words)}: {what}\n{self.output.decode(errors='replace')}\n{text}")

    def until(self, text):
        """Seconds from the start until the guest has printed `text`."""
        pipe = self.process.stdout.fileno()
        while text not in self.output:
            piece = os.read(pipe, 65536)
            now = time.monotonic()
            if not piece or now - self.begun > PATIENCE:
                self.fail(f"{text} did not come")
            self.output += piece
        return now - self.begun

    def ask(self, line, files=()):
        """Sends a line to the control socket; gives the line that answers it."""
        if self.socket is None:
            self.socket = self.connect()
            self.lines = self.socket.makefile("rb")
        data = line.encode() + b"\n"
        if files:
            socket.send_fds(self.socket, [data], [file.fileno() for file in files])
        else:
            self.socket.sendall(data)
        while True:
            answer = self.lines.readline()
            if not answer:
                self.fail(f"no answer to {line}")
            # QEMU tells of events in between and greets first.
            if b'"event"' not in answer and b'"QMP"' not in answer:
                return answer

    def connect(self):
        while time.monotonic() - self.begun < PATIENCE:
            attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                attempt.connect(f"{FOLDER}/control")
                attempt.settimeout(PATIENCE)
                return attempt
            except OSError:
                time.sleep(0.001)
        self.fail("no control socket")

    def cpu(self):
        """Seconds of CPU that all threads have had so far."""
        total = 0
        folder = f"/proc/{self.process.pid}/task"
        for thread in os.listdir(folder):
            with open(f"{folder}/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
        return total / 1e9

    def own_memory(self, guest):
        """Resident KiB without the guest's memory of `guest` MiB."""
        total = size = 0
        with open(f"/proc/{self.process.pid}/smaps") as file:
            for line in file:
                word, *rest = line.split()
                if word == "Size:":
                    size = int(rest[0])
                # Our guest's memory is two mappings: up to the video window, and the rest.
                elif word == "Rss:" and size != 640 and size < guest * 1024 - 1024:
                    total += int(rest[0])
        return total

    def end(self):
        self.process.kill()
        self.process.wait()


def tell(case, program, value, rss=0):
    print(
        f'{{"case": "{case}", "program": "{program}", "value": {value:.6f}, "rss": {rss}}}',
        flush=True,
    )


def start(name, words):
    """Start to the guest's first process; then the monitor's own memory at rest."""
    running = Running(words("sleep 1000", 256))
    seconds = running.until(READY)
    time.sleep(0.5)
    rss = running.own_memory(256)
    running.end()
    tell("start to init", name, seconds, rss)
    tell("own memory", name, rss / 1024, rss)


COUNT = "i=0; while :; do echo count $i; i=$((i+1)); sleep 0.1; done"


def save_and_restore(name, words):
    """CPU of saving a guest of 1 GiB, and of restoring it up to its first instruction."""
    file = f"{FOLDER}/saved"
    running = Running(words(COUNT, 1024))
    running.until(b"count 5")
    before = running.cpu()
    if name == "cenote-vmm":
        with open(file, "wb+") as saved:
            line = '{"jsonrpc":"2.0","id":1,"method":"%s"%s}'
            running.ask(line % ("pause", ""))
            before = running.cpu()
            answer = running.ask(line % ("save", ',"descriptors":1'), [saved])
            if b'"error"' in answer:
                running.fail(answer.decode())
    else:
        running.ask('{"execute":"qmp_capabilities"}')
        running.ask('{"execute":"stop"}')
        before = running.cpu()
        running.ask('{"execute":"migrate","arguments":{"uri":"exec:cat >%s"}}' % file)
        while b"completed" not in (answer := running.ask('{"execute":"query-migrate"}')):
            if b"failed" in answer:
                running.fail(answer.decode())
            time.sleep(0.01)
    tell("save 1 GiB, CPU", name, (running.cpu() - before) * 1000)
    running.end()

    running = Running(words(COUNT, 1024, restore=file))
    if name == "cenote-vmm":
        running.ask('{"jsonrpc":"2.0","id":1,"method":"status"}')
    else:
        running.ask('{"execute":"qmp_capabilities"}')
        while b"inmigrate" in running.ask('{"execute":"query-status"}'):
            time.sleep(0.002)
    cpu = running.cpu()
    seconds = time.monotonic() - running.begun
    if name == "cenote-vmm":
        running.ask('{"jsonrpc":"2.0","id":2,"method":"resume"}')
    else:
        running.ask('{"execute":"cont"}')
    # The guest goes on indeed.
    running.until(b"count 1")
    running.end()
    os.unlink(file)
    tell("restore 1 GiB, CPU", name, cpu * 1000)
    tell("restore 1 GiB", name, seconds)


# What is measured, and for which programs.
CASES = {"start": (start, PROGRAMS), "save": (save_and_restore, ["cenote-vmm", "QEMU q35"])}


def main():
    rounds = int(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    os.makedirs(FOLDER, exist_ok=True)
    for _ in range(rounds):
        for case, (measure, programs) in CASES.items():
            if wanted in case:
                for name in programs:
                    measure(name, PROGRAMS[name])


main()
