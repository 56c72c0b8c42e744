#!/bin/bash
# A domain that boots from its disk, and from the network as long as the disk is blank, on a
# bridge where dnsmasq answers: what comes over TFTP writes the disk's boot sector and resets.
# The domain's second start, of the same definition, does not ask the network.
set -euo pipefail

fail() {
    echo "netboot.sh: $*" >&2
    tail -n 30 "$folder"/*.log "$folder"/state/log/*/*.log >&2 2>/dev/null || true
    exit 1
}
folder=$(mktemp -d)
cenote() { command cenote --state-dir "$folder/state" "$@"; }

modprobe bridge
ip link add netboot0 type bridge
ip addr add 10.77.0.1/24 dev netboot0
ip link set netboot0 up
truncate -s 1M "$folder/disk.img"
mkdir "$folder/tftp"
python3 - "$folder/tftp/start.0" <<'PROGRAM'
import sys

def say(text):
    """To COM1; its queue takes sixteen characters."""
    code = bytes.fromhex("baf803")  # mov dx, 0x3f8
    for byte in text.encode():
        code += bytes([0xB0, byte, 0xEE])  # mov al, byte; out dx, al
    return code

# Power off: sleep enable to PM1a control, where SeaBIOS has put it.
sector = say("installed\n") + bytes.fromhex("ba0406b80020eff4")
sector = sector.ljust(510, b"\0") + b"\x55\xaa"
# Write what lies behind as sector 0 of the first disk; reset by the keyboard controller.
install = bytes.fromhex("b80103 b90100 ba8000 0e07 e80000 5b 81c3 0c00 cd13 b0fee664 f4")
open(sys.argv[1], "wb").write(say("installer\n") + install + sector)
PROGRAM
dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --port=0 --pid-file= \
    --interface=netboot0 --bind-interfaces --log-facility=- --log-dhcp --user=root \
    --dhcp-leasefile="$folder/leases" --dhcp-range=10.77.0.10,10.77.0.20 \
    --dhcp-boot=start.0 --enable-tftp --tftp-root="$folder/tftp" 2>"$folder/dnsmasq.log" &
dnsmasq=$!
trap 'kill $dnsmasq; cenote destroy netboot >/dev/null 2>&1 || true; ip link del netboot0' EXIT

cat >"$folder/domain.xml" <<XML
<domain type='kvm'>
  <name>netboot</name>
  <memory unit='MiB'>128</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/><boot dev='network'/></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='$folder/disk.img'/>
      <target dev='hda' bus='ide'/>
    </disk>
    <interface type='bridge'>
      <source bridge='netboot0'/><model type='virtio'/>
    </interface>
    <serial type='pty'/>
  </devices>
</domain>
XML
cenote define "$folder/domain.xml"
cenote dumpxml netboot >"$folder/before.xml"
# goes: starts the domain and waits until it has switched itself off.
goes() {
    cenote start netboot
    for _ in $(seq 1200); do
        [ "$(cenote domstate netboot | tr -d '\n')" != "shut off" ] || return 0
        sleep 0.1
    done
    fail "the guest goes on for ever"
}
console=$folder/state/log/netboot/console.log
goes
[ "$(grep -ac installer "$console")" = 1 ] || fail "the network was not booted once"
[ "$(grep -ac installed "$console")" = 1 ] || fail "the disk was not booted after it"
grep -q 'sent .*start.0 to 10.77.0' "$folder/dnsmasq.log" || fail "nothing came from dnsmasq"
goes
[ "$(grep -ac installer "$console")" = 1 ] || fail "the network was booted from a second time"
[ "$(grep -ac installed "$console")" = 2 ] || fail "the disk was not booted at the second start"
cenote dumpxml netboot | diff "$folder/before.xml" - || fail "the definition has changed"
echo "ok: hd, network: the network once, then the disk, by one definition"
