#!/bin/sh
# What busybox's udhcpc does with a lease.
case $1 in
    deconfig) ip addr flush dev "$interface"; ip link set "$interface" up ;;
    bound | renew)
        ip addr add "$ip/${mask:-24}" dev "$interface"
        [ -z "$router" ] || ip route add default via "${router%% *}" dev "$interface"
        : >/etc/resolv.conf
        for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
        ;;
esac
