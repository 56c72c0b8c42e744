#!/bin/sh
# First process of the lab's emulated host: readies /dev/kvm and the tools, runs the command
# of the payload disk with its output on two virtio ports, leaves its status on a third.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/user/0 /run/user/1000
chown 1000:1000 /run/user/1000
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
hostname lab
ip link set lo up
modprobe -a virtio_pci virtio_console irqbypass kvm kvm_amd tun vhost_net dm_mod loop nbd
for node in /dev/kvm /dev/vhost-net /dev/vhost-vsock; do
    [ -c $node ] && chgrp kvm $node && chmod 660 $node
done
chmod 666 /dev/net/tun

mount -o noatime /dev/nvme0n2 /lab/payload
mount -o noatime /dev/nvme0n3 /lab/out
chmod 1777 /lab/out

# port NAME: the device of the virtio port with that name, once it is there.
port() {
    for _ in $(seq 600); do
        for name in /sys/class/virtio-ports/*/name; do
            if [ -f "$name" ] && [ "$(cat "$name")" = "$1" ]; then
                device=${name%/name}
                if [ -c "/dev/${device##*/}" ]; then
                    echo "/dev/${device##*/}"
                    return
                fi
            fi
        done
        sleep 0.1
    done
    echo "lab: no virtio port $1" >/dev/console
    busybox poweroff -f
}
out=$(port lab.out) err=$(port lab.err) status=$(port lab.status)

# Programs built outside know their folders by the path they have there.
workspace=$(cat /lab/payload/workspace)
mkdir -p "$(dirname "$workspace")"
[ -e "$workspace" ] || ln -s /lab/payload/src "$workspace"

sh /lab/payload/command </dev/null >"$out" 2>"$err"
code=$?
sync
umount /lab/out || mount -o remount,ro /lab/out
echo $code >"$status"
busybox poweroff -f
