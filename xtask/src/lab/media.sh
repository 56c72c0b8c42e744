#!/bin/sh
# Builds boot media with the boot loaders that Debian ships, as root:
#
#   media.sh OUT ROOT_IMAGE SUITE SOURCE...
#
#   OUT         folder to make; it gets isolinux.iso, grub.iso, tftp/ (PXELINUX, a script
#               of iPXE, and what they load) and debian.qcow2 (a disk with GRUB and a Debian that asks for a login)
#   ROOT_IMAGE  the lab's disk, whose small guest the loaders start
#   SUITE       Debian's name of the release, as in the package sources
#   SOURCE...   package source files of this machine
set -eu
out=$1 lab=$2 suite=$3
shift 3

rm -rf "$out"
scratch=$out/scratch
mkdir -p "$scratch"
export PATH="$PATH:/usr/sbin:/sbin" SOURCE_DATE_EPOCH=0
for name in vmlinuz-cloud initramfs.cpio.gz; do
    debugfs -R "dump /lab/guest/$name $scratch/$name" "$lab" 2>/dev/null
    [ -s "$scratch/$name" ]
done

# The loaders read it sector by sector: only what the cloud kernel drives these machines with.
mkdir -p "$scratch/small"
(cd "$scratch/small" && gzip -dc <"$scratch/initramfs.cpio.gz" | cpio -id --quiet)
for modules in "$scratch"/small/lib/modules/*; do
    case $modules in
        *-cloud-*) ;;
        *) rm -rf "$modules" ;;
    esac
done

# What the small guest is asked to do, the same wherever it came from; LOADER tells them apart.
line() {
    echo "console=ttyS0 panic=-1 quiet LOADER=$1 GUEST=/lib/facts"
}
# Facts about the machine that a guest of any loader prints, one per line.
cat >"$scratch/small/lib/facts" <<'GUEST'
#!/bin/sh
echo "loaded by $LOADER"
for device in /sys/bus/pci/devices/*; do
    read -r vendor <"$device/vendor"
    read -r id <"$device/device"
    read -r class <"$device/class"
    driver=$(readlink "$device/driver")
    echo "pci ${device##*/} $vendor $id $class ${driver##*/}"
done
for disk in /sys/block/sd* /sys/block/sr* /sys/block/vd*; do
    [ -e "$disk" ] || continue
    read -r size <"$disk/size"
    echo "disk ${disk##*/} $size"
done
for card in /sys/class/net/e*; do
    [ -e "$card" ] || continue
    read -r mac <"$card/address"
    echo "card ${card##*/} $mac"
done
echo "cpus $(nproc)"
if mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null; then
    echo "sum $(cat /mnt/vmlinuz | md5sum)"
fi
GUEST
chmod 755 "$scratch/small/lib/facts"
(cd "$scratch/small" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) |
    gzip -9n >"$scratch/initrd.gz"

# syslinux FOLDER LOADER: configuration for SYSLINUX's family, with its text on COM1.
syslinux() {
    cat >"$1" <<CONFIG
SERIAL 0 115200
DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL /vmlinuz
  APPEND initrd=/initrd.gz $(line "$2")
CONFIG
}

echo "media: ISOLINUX" >&2
tree=$scratch/isolinux
mkdir -p "$tree/isolinux"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$tree/isolinux/"
cp "$scratch/vmlinuz-cloud" "$tree/vmlinuz"
cp "$scratch/initrd.gz" "$tree/"
syslinux "$tree/isolinux/isolinux.cfg" isolinux
xorriso -as mkisofs -quiet -V ISOLINUX -R -J -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table -o "$out/isolinux.iso" "$tree"

echo "media: GRUB on a disc" >&2
tree=$scratch/grub
mkdir -p "$tree/boot/grub"
cp "$scratch/vmlinuz-cloud" "$tree/vmlinuz"
cp "$scratch/initrd.gz" "$tree/"
cat >"$tree/boot/grub/grub.cfg" <<CONFIG
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry linux {
    echo "GRUB starts Linux"
    linux /vmlinuz $(line grub)
    initrd /initrd.gz
}
CONFIG
grub-mkrescue -d /usr/lib/grub/i386-pc --locales= --fonts= --themes= -o "$out/grub.iso" "$tree" -- \
    -volid GRUB >"$scratch/grub-mkrescue.log" 2>&1 || {
    cat "$scratch/grub-mkrescue.log" >&2
    exit 1
}

echo "media: PXELINUX" >&2
tree=$out/tftp
mkdir -p "$tree/pxelinux.cfg"
cp /usr/lib/PXELINUX/pxelinux.0 /usr/lib/syslinux/modules/bios/ldlinux.c32 "$tree/"
cp "$scratch/vmlinuz-cloud" "$tree/vmlinuz"
cp "$scratch/initrd.gz" "$tree/"
syslinux "$tree/pxelinux.cfg/default" pxelinux
cat >"$tree/boot.ipxe" <<SCRIPT
#!ipxe
kernel tftp://\${next-server}/vmlinuz initrd=initrd $(line ipxe)
initrd --name initrd tftp://\${next-server}/initrd.gz
boot
SCRIPT

echo "media: a Debian disk with GRUB" >&2
root=$scratch/root
mmdebstrap --quiet --variant=minbase --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
    --essential-hook='printf "MODULES=list\nCOMPRESS=lz4\n" >"$1/etc/initramfs-tools/conf.d/lab"' \
    --essential-hook='printf "virtio_pci\nvirtio_blk\nata_piix\nsd_mod\next4\n" >"$1/etc/initramfs-tools/modules"' \
    --include=linux-image-cloud-amd64,lz4,zstd,systemd-sysv,udev,kmod,grub-pc-bin \
    "$suite" "$root" "$@" </dev/null
# They take long where processors are emulated, and there is nothing for them to do.
for unit in e2scrub_reap.service e2scrub_all.timer getty-static.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo debian >"$root/etc/hostname"
echo 'LABEL=root / ext4 defaults,noatime 0 0' >"$root/etc/fstab"
# Its root may log in without a password: this guest has no network.
sed -i 's/^root:[^:]*:/root::/' "$root/etc/shadow"
mkdir -p "$root/boot/grub"
cp -r "$root/usr/lib/grub/i386-pc" "$root/boot/grub/"
kernel=$(basename "$root"/boot/vmlinuz-*)
cat >"$root/boot/grub/grub.cfg" <<CONFIG
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry debian {
    echo "GRUB starts Debian"
    linux /boot/$kernel root=LABEL=root ro console=ttyS0 panic=-1 quiet systemd.show_status=1
    initrd /boot/initrd.img-${kernel#vmlinuz-}
}
CONFIG
disk=$scratch/debian.raw
truncate -s 1G "$disk"
echo '2048,,L,*' | sfdisk --quiet "$disk"
mke2fs -q -F -t ext4 -L root -m 0 -E offset=1048576,lazy_itable_init=1 \
    -d "$root" "$disk" $(((1024 - 1) * 1024))k
# As grub-install does it: boot code before the partition table, the core behind it.
grub=$root/usr/lib/grub/i386-pc
grub-mkimage -d "$grub" -O i386-pc -p '(hd0,msdos1)/boot/grub' -o "$scratch/core.img" \
    biosdisk part_msdos ext2 normal
[ "$(stat -c %s "$scratch/core.img")" -lt $((2047 * 512)) ]
dd if="$grub/boot.img" of="$disk" bs=440 count=1 conv=notrunc status=none
dd if="$scratch/core.img" of="$disk" bs=512 seek=1 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 "$disk" "$out/debian.qcow2"

rm -rf "$scratch"
chmod -R a+rX "$out"
