"""Measures monitors side by side on the lab's KVM; run there by `cargo xtask bench vmm`.

    python3 vmm.py ROUNDS [TEXT]

Prints a line per value: {"case": "…", "program": "…", "value": N, "rss": KIB}. Programs take
turns within each round. Only modules of python3-minimal are used.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys
import time

KERNEL = "/lab/guest/vmlinux-cloud"
INITRD = "/lab/guest/initramfs.cpio.gz"
TOOLS = "/lab/guest/initramfs-tools.cpio.gz"
INIT = b"bench: init"
READY = b"guest: ready"
DONE = b"bench: done"
PATIENCE = 300
FOLDER = "/tmp/bench-vmm"


def command_line(guest):
    # The first process says that it is there, then it does what the small guests' does.
    first = f'rdinit=/bin/busybox -- sh -c "echo {INIT.decode()}; exec /init"'
    return f'console=ttyS0 quiet panic=-1 GUEST="{guest}" {first}'


def cenote(guest, memory, restore=None, initrd=INITRD, devices=""):
    control = f"{FOLDER}/control"
    description = f"{FOLDER}/machine.json"
    line = command_line(guest).replace('"', '\\"')
    with open(description, "w") as file:
        file.write(
            f'{{"version": 1, "vcpus": 1, "memory": {memory << 20},'
            f' "boot": {{"kernel": {{"image": {{"path": "{KERNEL}"}},'
            f' "initrd": {{"path": "{initrd}"}}, "command_line": "{line}"}}}},'
            f' "serial": {{"backend": "stdio"}}, "control": "{control}"{devices}}}'
        )
    words = ["cenote-vmm", "--machine", description]
    return words + (["--paused", "--restore", restore] if restore else [])


def qemu(machine, guest, memory, restore=None, initrd=INITRD, devices=()):
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-machine", f"{machine},accel=kvm", "-cpu", "host", "-smp", "1"]
    words += ["-m", str(memory), "-kernel", KERNEL, "-initrd", initrd]
    words += ["-append", command_line(guest), "-serial", "stdio"]
    words += ["-qmp", f"unix:{FOLDER}/control,server=on,wait=off", *devices]
    return words + (["-S", "-incoming", f"exec:cat {restore}"] if restore else [])


PROGRAMS = {
    "cenote-vmm": cenote,
    "QEMU q35": lambda *rest, **named: qemu("q35", *rest, **named),
    "QEMU microvm": lambda *rest, **named: qemu("microvm", *rest, **named),
}


class Running:
    """A monitor, its guest's output, and its control socket."""

    def __init__(self, words, descriptors=()):
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
            pass_fds=descriptors,
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
        now = time.monotonic()
        while text not in self.output:
            piece = os.read(pipe, 65536)
            now = time.monotonic()
            if not piece or now - self.begun > PATIENCE:
                self.fail(f"{text} did not come")
            self.output += piece
        return now - self.begun

    def since_start(self):
        """Seconds since the start, as `until` gives them."""
        return time.monotonic() - self.begun

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
    seconds = running.until(INIT)
    running.until(READY)
    time.sleep(0.5)
    rss = running.own_memory(256)
    running.end()
    tell("start to init", name, seconds, rss)
    tell("own memory", name, rss / 1024, rss)


def own_memory(name, words):
    """The monitor's own memory with a disk and a network card, both known to the guest."""
    make_disks()
    descriptor = tap()
    devices = described(name, disk=("raw", f"{FOLDER}/files/disk.raw"), tap=descriptor)
    guest = "ip link set eth0 up; head -c 9m /dev/vda >/dev/null; echo bench: done; sleep 1000"
    running = Running(words(guest, 256, devices=devices), [descriptor])
    os.close(descriptor)
    running.until(DONE)
    time.sleep(0.5)
    rss = running.own_memory(256)
    running.end()
    tell("own memory, a disk and a network card", name, rss / 1024, rss)


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


DISK_SIZE = 256 << 20
MAC = "52:54:00:12:34:56"


def described(name, disk=None, tap=None):
    """Devices as the program is told of them: a disk's format and path, a tap's descriptor."""
    if name == "cenote-vmm":
        devices = ""
        if disk:
            image = f'{{"file": {{"path": "{disk[1]}"}}, "format": "{disk[0]}"}}'
            devices += f', "disks": [{{"name": "vda", "cache": "none", "chain": [{image}]}}]'
        if tap:
            backend = f'{{"tap": [{{"fd": {tap}}}]}}'
            devices += f', "nics": [{{"name": "net0", "mac": "{MAC}", "backend": {backend}}}]'
        return devices
    devices = []
    if disk:
        drive = f"file={disk[1]},if=none,id=vda,format={disk[0]},cache=none,aio=io_uring"
        devices += ["-object", "iothread,id=io", "-drive", drive]
        devices += ["-device", "virtio-blk-pci,drive=vda,iothread=io"]
    if tap:
        devices += ["-netdev", f"tap,id=net0,fd={tap},vhost=off"]
        devices += ["-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="]
    return devices


def make_disks():
    """Images on a file system in memory: the build machine's own disk is not to be measured."""
    files = f"{FOLDER}/files"
    raw, qcow2 = f"{files}/disk.raw", f"{files}/disk.qcow2"
    if os.path.exists(qcow2):
        return
    os.makedirs(files, exist_ok=True)
    os.makedirs(f"{FOLDER}/memory", exist_ok=True)
    device = f"{FOLDER}/memory/device"
    for words in (
        f"mount -t tmpfs -o size=1g memory {FOLDER}/memory",
        f"truncate -s 900M {device}",
        f"mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 {device}",
        f"mount -o loop {device} {files}",
    ):
        subprocess.run(words.split(), check=True)
    with open(raw, "wb") as file:
        for _ in range(DISK_SIZE >> 20):
            file.write(os.urandom(1 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    # Writing them back must not fall into a measurement.
    os.sync()


def disk(kind, name, words):
    """fio in the guest, on a disk whose image has all its clusters; the page cache is left out."""
    make_disks()
    path = f"{FOLDER}/files/disk.{kind}"
    devices = described(name, disk=(kind, path))
    fio = "fio --name=x --filename=/dev/vda --direct=1 --ioengine=libaio --runtime=3 --time_based"
    runs = "randread:4k:1 randwrite:4k:1 randread:4k:32 randwrite:4k:32 read:1m:4 write:1m:4"
    guest = f"for r in {runs}; do set -- $(echo $r | tr : ' '); echo value $r $({fio} --rw=$1"
    guest += " --bs=$2 --iodepth=$3 --output-format=terse | cut -d';' -f7,8,48,49 | tr ';' ' ');"
    guest += " done; echo bench: done; sleep 1000"
    running = Running(words(guest, 512, initrd=TOOLS, devices=devices))
    running.until(DONE)
    rss = running.own_memory(512)
    for run, *figures in values(running, runs.split()):
        # KiB/s and requests per second, of reading and of writing; one of the two is nothing.
        bandwidth, requests, written, writes = map(int, figures)
        how, size, depth = run.split(":")
        way = "read" if "read" in how else "write"
        if size == "1m":
            tell(f"disk {kind}, 1 MiB {way}", name, (bandwidth + written) / 1024, rss)
        else:
            case = f"disk {kind}, 4 KiB random {way}, depth {depth}"
            tell(case, name, requests + writes, rss)
    running.end()


def values(running, names):
    """The words of the lines `value NAME …` that the guest has printed; there is one for each."""
    lines = running.output.decode(errors="replace").splitlines()
    found = [line.split()[1:] for line in lines if line.startswith("value ")]
    if [words[0] for words in found if len(words) > 1] != names:
        running.fail("a figure is missing")
    return found


HOST, GUEST, ECHO = "10.9.0.1", "10.9.0.2", 7


def tap():
    """A tap with virtio headers, up; it goes with its last descriptor."""
    TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"bench0", flags))
    for words in (f"addr add {HOST}/24 dev bench0", "link set bench0 up"):
        subprocess.run(["ip", *words.split()], check=True)
    return descriptor


def network(name, words):
    """TCP between guest and host over a tap, without vhost: streams, and one byte to and fro."""
    descriptor = tap()
    devices = described(name, tap=descriptor)
    server = subprocess.Popen(
        ["iperf3", "-s", "-B", HOST], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    guest = f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up; nc -ll -p {ECHO} -e cat &"
    guest += f" for r in -4 -R; do echo value $r $(iperf3 -c {HOST} -t 4 -f k $r"
    guest += " | grep receiver); done; echo bench: done; sleep 1000"
    running = Running(words(guest, 512, initrd=TOOLS, devices=devices), [descriptor])
    os.close(descriptor)
    try:
        running.until(DONE)
        rss = running.own_memory(512)
        for way, *line in values(running, ["-4", "-R"]):
            rate = float(line[line.index("Kbits/sec") - 1]) * 1000 / 8 / (1 << 20)
            case = "guest to host" if way == "-4" else "host to guest"
            tell(f"network, TCP {case}", name, rate, rss)
        tell("network, TCP request and response", name, round_trips(), rss)
    finally:
        running.end()
        server.kill()
        server.wait()


def round_trips():
    """How many bytes per second come back from the guest, one at a time."""
    with socket.create_connection((GUEST, ECHO), PATIENCE) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count, seconds = -100, 0
        while seconds < 3:
            # The first hundred are not counted.
            if count == 0:
                begun = time.monotonic()
            stream.sendall(b"x")
            if stream.recv(1) != b"x":
                sys.exit("the guest does not answer")
            count += 1
            if count > 0:
                seconds = time.monotonic() - begun
    return count / seconds


# What is measured, and for which programs.
BOTH = ["cenote-vmm", "QEMU q35"]
CASES = {
    "start": (start, PROGRAMS),
    "memory": (own_memory, BOTH),
    "save": (save_and_restore, BOTH),
    "disk raw": (lambda *program: disk("raw", *program), BOTH),
    "disk qcow2": (lambda *program: disk("qcow2", *program), BOTH),
    "network": (network, BOTH),
}


def main():
    rounds = int(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    os.makedirs(FOLDER, exist_ok=True)
    for turn in range(rounds):
        for case, (measure, programs) in CASES.items():
            if wanted in case or case in wanted:
                # Each program comes first as often as last.
                for name in list(programs)[:: -1 if turn % 2 else 1]:
                    measure(name, PROGRAMS[name])


if __name__ == "__main__":
    main()
