#!/bin/sh
# Builds the lab's base, as root: build.sh OUT SUITE QEMU_SUITE SOURCE...
#
#   OUT         folder to make; it gets root.img (ext4, the emulated host's disk), vmlinux
#               (the emulated host's kernel) and rootfs.list (every path in root.img)
#   SUITE       Debian's name of the release, as in the package sources
#   QEMU_SUITE  suite to take QEMU from, or "-" for SUITE itself
#   SOURCE...   package source files of this machine
set -eu
here=$(dirname "$0")
out=$1 suite=$2 qemu_suite=$3
shift 3

# What suites find inside. Kernels are unpacked below and not installed.
packages="busybox-static kmod procps iproute2 iputils-ping nftables dnsmasq-base socat curl
strace jq time e2fsprogs xfsprogs btrfs-progs dosfstools lvm2 thin-provisioning-tools parted
fio iperf3 python3-minimal cpio lz4 xorriso debootstrap scrub libnbd-bin libvirt-clients
libxml2-utils libslirp0 libglib2.0-0 qemu-utils qemu-system-x86 seabios ipxe-qemu"

rm -rf "$out"
mkdir -p "$out/scratch/kernels"
root=$out/scratch/root

if [ "$qemu_suite" != - ]; then
    cat >"$out/scratch/pin" <<PIN
Package: src:qemu
Pin: release a=$qemu_suite
Pin-Priority: 990
PIN
    set -- --setup-hook="mkdir -p \"\$1/etc/apt/preferences.d\" && cp '$out/scratch/pin' \"\$1/etc/apt/preferences.d/qemu\"" "$@"
fi

echo "lab: Debian user land and kernels" >&2
# The kernels come with the same package lists as the rest.
cat >"$out/scratch/kernels.sh" <<'HOOK'
set -eu
cd "$1"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
for name in linux-image-cloud-amd64 linux-image-amd64; do
    apt-get -qq -o APT::Sandbox::User=root download \
        "$(apt-cache depends --important "$name" | sed -n 's/^ *Depends: *//p' | head -n 1)"
done
HOOK
mmdebstrap --quiet --variant=minbase --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --include="$(echo $packages | tr ' ' ,)" \
    --customize-hook="sh '$out/scratch/kernels.sh' '$out/scratch/kernels'" \
    "$suite" "$root" "$@" </dev/null

echo "lab: kernels and guests" >&2
guest=$root/lab/guest
mkdir -p "$guest" "$root/lab/payload" "$root/lab/out" "$out/scratch/initramfs"
# unpack IMAGE: the ELF kernel that a bzImage carries (boot protocol 2.08: payload_offset and
# payload_length at 0x248, from the end of set-up; the last four bytes are the unpacked size).
unpack() {
    image=$1
    number() { od -An -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
    skip=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
    case $(od -An -t x1 -j $skip -N 4 "$image" | tr -d ' ') in
        02214c18) unpacker=lz4 ;;
        fd377a58) unpacker=xz ;;
        28b52ffd) unpacker=zstd ;;
        1f8b*) unpacker=gzip ;;
        *) echo "lab: $image: unknown compression" >&2 && return 1 ;;
    esac
    tail -c +$((skip + 1)) "$image" | head -c $(($(number 588 4) - 4)) | $unpacker -dc
}
for kind in cloud generic; do
    case $kind in
        cloud) deb=$(ls "$out"/scratch/kernels/linux-image-*-cloud-amd64_*.deb) ;;
        *) deb=$(ls "$out"/scratch/kernels/linux-image-*.deb | grep -v -e -cloud-) ;;
    esac
    dpkg -x "$deb" "$out/scratch/$kind"
    version=$(basename "$out/scratch/$kind"/boot/vmlinuz-*)
    version=${version#vmlinuz-}
    cp "$out/scratch/$kind/boot/vmlinuz-$version" "$guest/vmlinuz-$kind"
    unpack "$guest/vmlinuz-$kind" >"$guest/vmlinux-$kind"
    modules=$out/scratch/$kind/lib/modules/$version
    depmod -b "$out/scratch/$kind" "$version"
    # Into the guests' initramfs: what they drive, and what that depends on.
    to=$out/scratch/initramfs/lib/modules/$version
    mkdir -p "$to"
    for module in virtio_pci virtio_mmio virtio_blk virtio_net virtio_console virtio_rng \
        virtio_scsi virtio_balloon sd_mod sr_mod ata_piix ata_generic isofs ext4 xfs nvme \
        e1000 8139cp i8042 atkbd pvpanic pvpanic_mmio pvpanic_pci button rtc_cmos loop \
        af_packet failover vmw_vsock_virtio_transport; do
        modprobe -d "$out/scratch/$kind" -S "$version" --show-depends "$module" 2>/dev/null || true
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        cp "$file" "$to/"
    done
    cp "$modules/modules.builtin" "$modules/modules.builtin.modinfo" "$modules/modules.order" "$to/"
    depmod -b "$out/scratch/initramfs" "$version"
    if [ $kind = cloud ]; then
        mkdir -p "$root/lib/modules"
        cp -a "$modules" "$root/lib/modules/"
        cp "$guest/vmlinux-cloud" "$out/vmlinux"
    fi
done

initramfs=$out/scratch/initramfs
mkdir -p "$initramfs/bin" "$initramfs/dev" "$initramfs/proc" "$initramfs/sys" \
    "$initramfs/tmp" "$initramfs/root" "$initramfs/mnt" "$initramfs/etc" "$initramfs/usr/share/udhcpc"
cp "$root/bin/busybox" "$initramfs/bin/busybox"
for name in $("$root/bin/busybox" --list); do
    [ "$name" = busybox ] || ln -sf busybox "$initramfs/bin/$name"
done
ln -s bin "$initramfs/sbin"
cp "$here/guest-init.sh" "$initramfs/init"
cp "$here/udhcpc.sh" "$initramfs/usr/share/udhcpc/default.script"
chmod 755 "$initramfs/init" "$initramfs/usr/share/udhcpc/default.script"
# pack FOLDER FILE: a root-owned newc archive with stable times.
pack() {
    (cd "$1" && find . -exec touch -h -d @0 {} + && find . | LC_ALL=C sort |
        cpio --quiet -o -H newc -R 0:0 --reproducible) | gzip -9n >"$2"
}
pack "$initramfs" "$guest/initramfs.cpio.gz"

# Programs of the user land for guests that test disks and networks; a kernel reads archives
# that stand one after the other as one.
tools=$out/scratch/tools
mkdir -p "$tools"
for file in /usr/bin/fio /sbin/mke2fs /sbin/e2fsck /sbin/mkfs.xfs /usr/bin/iperf3 \
    /bin/dd /usr/bin/cmp; do
    chroot "$root" ldd "$file" | sed -n 's/.*[ \t]\(\/[^ ]*\) (.*/\1/p' |
        while read -r library; do echo "$library"; done
    echo "$file"
done | sort -u | while read -r file; do
    mkdir -p "$tools$(dirname "$file")"
    cp -L "$root$file" "$tools$file"
done
# The base archive has /bin; programs go beside it so that none hides an applet.
mkdir -p "$tools/tools/bin"
for folder in usr/bin sbin bin; do
    [ -d "$tools/$folder" ] || continue
    find "$tools/$folder" -type f -exec mv {} "$tools/tools/bin/" \;
    rm -rf "${tools:?}/$folder"
done
ln -s mke2fs "$tools/tools/bin/mkfs.ext4"
ln -s e2fsck "$tools/tools/bin/fsck.ext4"
pack "$tools" "$out/scratch/tools.cpio.gz"
cat "$guest/initramfs.cpio.gz" "$out/scratch/tools.cpio.gz" >"$guest/initramfs-tools.cpio.gz"

echo "lab: disk image" >&2
cp "$here/init.sh" "$root/lab/init"
chmod 755 "$root/lab/init"
for name in bin src tests; do ln -s "payload/$name" "$root/lab/$name"; done
echo lab >"$root/etc/hostname"
printf '127.0.0.1 localhost lab\n::1 localhost\n' >"$root/etc/hosts"
rm -f "$root/etc/resolv.conf"
grep -q '^kvm:' "$root/etc/group" || echo 'kvm:x:991:' >>"$root/etc/group"
sed -i 's/^kvm:\(.*\)$/kvm:\1lab/' "$root/etc/group"
echo 'lab:x:1000:' >>"$root/etc/group"
echo 'lab:x:1000:1000::/home/lab:/bin/bash' >>"$root/etc/passwd"
echo 'lab:*:19000:0:99999:7:::' >>"$root/etc/shadow"
mkdir -p "$root/home/lab"
chown 1000:1000 "$root/home/lab"
# No udev daemon runs inside, so LVM makes its nodes itself.
cat >"$root/etc/lvm/lvmlocal.conf" <<'LVM'
activation { udev_sync = 0
udev_rules = 0 }
devices { obtain_device_list_from_udev = 0 }
LVM
chmod 755 "$root"
(cd "$root" && find . -printf '/%P\n') >"$out/rootfs.list"
truncate -s 12G "$out/root.img"
mke2fs -q -F -t ext4 -L lab -m 0 -E lazy_itable_init=1,lazy_journal_init=1 \
    -d "$root" "$out/root.img"
rm -rf "$out/scratch"
chmod 755 "$out"
chmod 644 "$out/root.img" "$out/vmlinux" "$out/rootfs.list"
