#!/bin/bash
# The lab keeps its promises: its /dev/kvm runs Debian's kernels for root and for an ordinary
# user, and its kernel has what build machines lack.
set -euo pipefail

fail() {
    echo "host.sh: $*" >&2
    exit 1
}

[ "$(cat /sys/module/kvm_amd/parameters/npt)" = 1 ] || [ "$(cat /sys/module/kvm_amd/parameters/npt)" = Y ] ||
    fail "nested paging is off"
for module in dm_mod loop nbd tun vhost_net; do
    [ -d "/sys/module/$module" ] || fail "module $module is not loaded"
done

# boot AS KERNEL ARCHIVE COMMAND TEXT: a guest under `qemu -accel kvm` prints TEXT.
boot() {
    local as=$1 kernel=$2 archive=$3 command=$4 text=$5 log
    log=/lab/out/host-$as-$kernel.log
    local run=(timeout 120 qemu-system-x86_64 -accel kvm -cpu host -smp 1 -m 512 -nodefaults
        -display none -serial stdio -no-reboot -kernel "/lab/guest/$kernel"
        -initrd "/lab/guest/$archive"
        -append "console=ttyS0 quiet panic=-1 GUEST=\"$command\"")
    if [ "$as" = lab ]; then
        run=(setpriv --reuid=lab --regid=lab --init-groups -- "${run[@]}")
    fi
    "${run[@]}" </dev/null >"$log" || fail "QEMU failed: $(tail -n 5 "$log")"
    grep -q "$text" "$log" || fail "no '$text' in the guest's output: $(tail -n 20 "$log")"
    grep -q '^guest: status 0' "$log" || fail "the command failed: $(tail -n 20 "$log")"
    echo "ok: $kernel with $archive as $as"
}
boot root vmlinuz-cloud initramfs.cpio.gz 'uname -r' cloud-amd64
boot lab vmlinuz-generic initramfs.cpio.gz 'ls /sys/bus/pci/drivers' virtio-pci
boot lab vmlinux-cloud initramfs-tools.cpio.gz 'fio --version' '^fio-'

# LVM on a loop device, as the pools use it.
truncate -s 64M /tmp/pv.img
device=$(losetup --find --show /tmp/pv.img)
vgcreate -q labtest "$device" >/dev/null
lvcreate -q -y -n one -L 8M labtest >/dev/null
[ -b /dev/labtest/one ] || fail "no /dev/labtest/one"
vgremove -q -f labtest >/dev/null
losetup -d "$device"
echo "ok: LVM on a loop device"
