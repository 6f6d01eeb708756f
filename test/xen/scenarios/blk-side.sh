# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# With the kernel's xen-blkback loaded, blkbackd serves the disks with its script, and the kernel
# and QEMU's qdisk the others, in the same guest: also a disk that is attached later, and after
# blkbackd was killed and started again. Without blkbackd the script fails with an error. "check"
# and "list" tell which back end has which disk.

. /host/disk.sh

# of VDEV prints the state of a disk of u1 in blkbackd's list.
of() { blkbackd list | awk -v vbd="$(vbd u1 "$1")" '$1 == vbd { print $4 }'; }
of_is() { [ "$(of "$1")" = "$2" ]; }
bound() { test -e "/sys/bus/xen-backend/drivers/vbd/$(vbd u1 "$1")"; }
write="--rw=randwrite --bsrange=4k-128k --size=8m --iodepth=8 --verify=crc32c"

SERVER=blkback serve_disks
start_blkbackd
blkbackd check "$IMAGES" || true
for name in kernel ours more qemu; do image $name.img 16M >/dev/null; done
kernel=$(SERVER=blkback disk "$IMAGES/kernel.img" xvda)
SERVER=blkbackd
guest u1 vif= disk="$kernel $(disk "$IMAGES/ours.img" xvdb)"
blkbackd list
bound xvda
not bound xvdb
of_is xvda kernel || fail "xvda is $(of xvda)"
of_is xvdb connected || fail "xvdb is $(of xvdb)"
attach_disk u1 "$IMAGES/more.img" xvdc
not bound xvdc
of_is xvdc connected || fail "xvdc is $(of xvdc)"
for name in xvda xvdb xvdc; do begin_fio u1 $name --filename=/dev/$name "$write"; done
for name in xvda xvdb xvdc; do end_fio u1 $name 120; done

say "-- blkbackd is killed and started again"
begin_fio u1 kernel --filename=/dev/xvda "$write" --rate=2m
begin_fio u1 ours --filename=/dev/xvdb "$write" --rate=2m
pause 1
kill_blkbackd
start_blkbackd
end_fio u1 kernel 120
end_fio u1 ours 120
eventually 60 "xvda is still the kernel's" of_is xvda kernel
eventually 60 "xvdb is still ours" of_is xvdb connected

say "-- the module is loaded while blkbackd serves disks"
within 60000 "detach" xl block-detach u1 xvda
rmmod xen-blkback
echo 0 >/sys/bus/xen-backend/drivers_autoprobe
modprobe xen-blkback
echo 1 >/sys/bus/xen-backend/drivers_autoprobe
fio u1 again 120 --filename=/dev/xvdb "$write"
of_is xvdb connected || fail "xvdb is $(of xvdb)"

say "-- without blkbackd"
stop_blkbackd
not xl block-attach u1 "$(disk "$IMAGES/kernel.img" xvdd)" 2>/dev/null
error=$(xenstore-read "$(disk_backend u1 xvdd)/hotplug-error")
say "hotplug-error: $error"
grep -q "blkbackd is not running" <<<"$error"
xl block-detach u1 xvdd 2>/dev/null || true
start_blkbackd
eventually 60 "xvdb is served again" of_is xvdb connected
healthy u1
leave_disks
