#!/bin/busybox sh
# First program of the guest. What is printed before the applets are installed costs one fork, for /proc.
bb=/bin/busybox
$bb mount -t proc proc /proc
read -r up idle </proc/uptime
echo "INIT-REACHED uptime: $up"

$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
$bb --install -s /bin
export PATH=/bin HOME=/root TERM="${TERM:-vt100}"
cd /root
# Drivers of what is there: of the PCI functions, then of the virtio devices behind them. A fork a bus, if any.
if [ -d /lib/modules ]; then
    for bus in pci virtio; do
        set --
        for file in /sys/bus/$bus/devices/*/modalias; do
            [ -e "$file" ] && read -r alias <"$file" && set -- "$@" "$alias"
        done
        [ $# -eq 0 ] || modprobe -qa "$@"
    done
    set --
fi
echo "CPUS $(nproc)"

# The value of gearshift.script=, in double quotes or up to the next space.
read -r cmdline </proc/cmdline
script=
case " $cmdline" in
    *' gearshift.script="'*) script=${cmdline#*gearshift.script=\"}; script=${script%%\"*} ;;
    # The kernel keeps quotes as they were written: "gearshift.script=..." is another way to write it.
    *' "gearshift.script='*) script=${cmdline#*\"gearshift.script=}; script=${script%%\"*} ;;
    *' gearshift.script='*) script=${cmdline#*gearshift.script=}; script=${script%% *} ;;
esac

if [ -n "$script" ]; then
    sh -c "$script"
    echo "GUEST-DONE status: $?"
elif [ -e /script ]; then
    sh /script
    echo "GUEST-DONE status: $?"
else
    hostname guest
    mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
    echo
    echo "A shell inside the guest: Debian's kernel $(uname -r), busybox in /bin."
    echo "\"exit\" or \"poweroff -f\" powers it off."
    export PS1='guest:\w# '
    # A controlling terminal for job control; the console alone cannot be one.
    setsid cttyhack sh
fi
poweroff -f
