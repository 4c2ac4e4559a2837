#!/bin/sh
# The first process of a guest: prepares the system, runs the steps of the plan one after another
# and tells the host about each. The kernel writes to one serial port, this to another.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
    case $word in
        xvip.port=*) port="/dev/${word#*=}" ;;
        xvip.role=*) export XVIP_GUEST_ROLE="${word#*=}" ;;
    esac
done
exec </dev/null >"$port" 2>&1
stty -F "$port" raw
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
mount -t tracefs tracing /sys/kernel/tracing 2>/dev/null
hostname guest
ip link set lo up
ulimit -n 65536

# What the host reads. The empty line ends one that a killed program left unfinished.
say() { printf '\nxvip-guest: %s\n' "$*"; }

export XVIP_GUEST=1 XVIP_SKIPPED_TESTS=/tmp/skipped

# step NAME SECONDS COMMAND...
step() {
    name=$1 seconds=$2
    shift 2
    : >/tmp/skipped
    say "begin $name"
    timeout -s KILL "$seconds" "$@"
    code=$?
    sed 's/^/xvip-guest: skipped /' /tmp/skipped
    say "end $name $code"
}

# give FILE PATH: hands a text file to the host.
give() {
    [ -f "$1" ] && sed "s|^|xvip-guest: file $2:|" "$1"
}

say "ready $(uname -r)"
. /plan
say done
# The host ends the guest, which another one may still talk to.
while :; do sleep 3600; done
