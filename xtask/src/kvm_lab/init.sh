#!/bin/busybox sh
# First program of the lab's machine. The kernel's messages have ttyS0, the command has ttyS1 to itself.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox --install -s /bin
export PATH=/lab:/bin HOME=/root TERM=dumb
for module in $(cat /modules/order); do
    insmod "/modules/$module"
done
[ -c /dev/kvm ] || echo "lab: there is no /dev/kvm"

# Bytes leave as they are: no carriage returns, no echo.
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
cd /lab
echo "LAB-BEGIN $LAB_TOKEN"
sh /lab/.command
echo "LAB-END $LAB_TOKEN $?"
# Who reads the line above ends this machine; the pause is for it to get through.
sleep 10
poweroff -f
