#!/bin/busybox sh
# First process of the lab's small guests. On the kernel's command line:
#   GUEST="COMMAND"   is run by a shell with the serial port as its terminal; then the guest
#                     prints "guest: status N" and powers off
#   without it a shell is started on the console, after the line "guest: ready"
export PATH=/tools/bin:/bin HOME=/root TERM=linux
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/mounts /etc/mtab
for file in /lib/modules/"$(uname -r)"/*.ko; do
    name=${file##*/}
    modprobe "${name%.ko}" 2>/dev/null
done
ip link set lo up
echo "guest: ready"
if [ -n "$GUEST" ]; then
    sh -c "$GUEST"
    echo "guest: status $?"
    sync
    poweroff -f
fi
exec setsid cttyhack sh
