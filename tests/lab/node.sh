#!/bin/sh
# PID 1 of a laboratory node: makes the container fit for an inner dockerd, then keeps that dockerd running.
# Arguments go to dockerd. /lab is shared with the host: docker.sock, dockerd.pid, and `hold` (while it exists, dockerd stays down).
set -eu

mount -o remount,rw /proc/sys
# Each power-on is a boot of its own, as a machine's is. Pressure is measured for the whole machine and says nothing of one node:
# as on a kernel without it, whoever wants to know derives it from the node's own /proc/meminfo.
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
[ ! -d /proc/pressure ] || mount -t tmpfs -o ro none /proc/pressure
ln -sfn /lab/docker.sock /var/run/docker.sock # where programs look for it that are given the node's own Docker
# The way out is closed anyhow; without a route an attempt fails at once, whatever firewall the machine has.
ip route del default 2>/dev/null || true

# Inner containers must lie under the node's own cgroup: then a pause freezes them and the node's CPU set binds them.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    # cgroup v2: the container has a cgroup namespace of its own; a group that gives controllers to children may hold no processes.
    mount -o remount,rw /sys/fs/cgroup
    mkdir -p /sys/fs/cgroup/node
    for process in $(cat /sys/fs/cgroup/cgroup.procs); do
        echo "$process" >/sys/fs/cgroup/node/cgroup.procs 2>/dev/null || true # it has ended since
    done
    sed -e 's/ / +/g' -e 's/^/+/' </sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
    parent=/
else
    parent=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
fi

if ! iptables -t nat -L -n >/dev/null 2>&1; then
    update-alternatives --set iptables /usr/sbin/iptables-legacy >/dev/null
    update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy >/dev/null
fi

stopping=
daemon=
trap 'stopping=1; [ -z "$daemon" ] || kill -TERM "$daemon" 2>/dev/null || true' TERM INT

while [ -z "$stopping" ]; do
    if [ -e /lab/hold ]; then
        sleep 0.1
        continue
    fi
    rm -f /run/docker.pid /lab/docker.sock
    dockerd -H unix:///lab/docker.sock --cgroup-parent="$parent" --dns 127.0.0.1 "$@" &
    daemon=$!
    echo "$daemon" >/lab/dockerd.pid
    # `wait` also reaps what inner shims leave behind, and returns early when a signal arrives.
    while kill -0 "$daemon" 2>/dev/null; do
        wait "$daemon" || true
    done
    rm -f /lab/dockerd.pid
    echo "node.sh: dockerd has ended"
done
