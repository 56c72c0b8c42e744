#!/bin/bash
# A domain with <bootloader> starts the kernel that GRUB would start from its disk, without
# firmware; when the guest has changed its GRUB's configuration, the next start follows.
set -euo pipefail

folder=$(mktemp -d)
cenote() { command cenote --state-dir "$folder/state" "$@"; }
fail() {
    echo "bootloader.sh: $*" >&2
    tail -n 30 "$folder"/state/log/*/*.log >&2 2>/dev/null || true
    exit 1
}
trap 'cenote destroy loaded >/dev/null 2>&1 || true' EXIT

# What the guest finds: an ext4 partition with GRUB's configuration, kernel and initrd. At its first
# boot it makes the second entry the default.
mkdir -p "$folder/tree/boot/grub"
cp /lab/guest/vmlinuz-cloud "$folder/tree/boot/"
cp /lab/guest/initramfs.cpio.gz "$folder/tree/boot/initrd.gz"
change='mkdir -p /m; mount -t ext4 /dev/vda1 /m; sed -i s/default=0/default=second/ /m/boot/grub/grub.cfg'
cat >"$folder/tree/boot/grub/grub.cfg" <<GRUB
set default=0
entry='console=ttyS0 quiet panic=-1'
function load { insmod gzio; search --set=root --label nothing; }
menuentry 'first' { load
    linux (\$root)/boot/vmlinuz-cloud \$entry "GUEST=echo the first; $change; umount /m"
    initrd /boot/initrd.gz
}
submenu 'more' --id more {
    menuentry 'third' --id third { linux /boot/none }
}
menuentry 'other' --id second {
    linux /boot/vmlinuz-cloud \$entry "GUEST=echo the second"
    initrd /boot/initrd.gz
}
GRUB
disk=$folder/disk.raw
truncate -s 100M "$disk"
parted -s "$disk" mklabel msdos mkpart primary ext4 1MiB 100%
mke2fs -q -F -t ext4 -E offset=1048576 -d "$folder/tree" "$disk" 100352k
qemu-img convert -f raw -O qcow2 "$disk" "$folder/disk.qcow2"

# define DISK: the domain with that disk.
define() {
    cat >"$folder/domain.xml" <<XML
<domain type='kvm'>
  <name>loaded</name>
  <memory unit='MiB'>256</memory>
  <bootloader>/usr/bin/pygrub</bootloader>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='$1'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='pty'/>
  </devices>
</domain>
XML
    cenote define --replace "$folder/domain.xml"
}
# goes TEXT: starts the domain, waits until it has switched itself off, and looks for TEXT.
console=$folder/state/log/loaded/console.log
goes() {
    cenote start loaded
    for _ in $(seq 1200); do
        [ "$(cenote domstate loaded | tr -d '\n')" != "shut off" ] || break
        sleep 0.1
    done
    grep -q "$1" "$console" || fail "the guest did not say '$1'"
}
define "$folder/disk.qcow2"
goes "^the first"
goes "^the second"

# A disk without a boot loader, and why nothing is started from it.
qemu-img create -q -f qcow2 "$folder/blank.qcow2" 8M
define "$folder/blank.qcow2"
! cenote start loaded 2>"$folder/refused" || fail "a blank disk was started"
grep -q 'no grub.cfg and no extlinux.conf was found' "$folder/refused" ||
    fail "refused for another reason: $(cat "$folder/refused")"
echo "ok: the kernels that the disk's GRUB names"
