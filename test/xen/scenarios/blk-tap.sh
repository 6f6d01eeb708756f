# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# dom0: newer
#
# Xen 4.20 takes backendtype=tap with a script: the disk is in backend/vbd3, where the kernel's
# xen-blkback does not look, although it is loaded and serves another disk of the guest. blkbackd
# is killed and started again, and the disk is detached and attached.

. /host/disk.sh

tap() { disk "$@" | sed 's/script=/backendtype=tap,script=/'; }
three() { blkbackd list | grep -q "^vbd3-${DOMID[u1]}-51728 .* connected "; }
write="--rw=randwrite --bsrange=4k-128k --size=12m --iodepth=8 --verify=crc32c"

[[ $(xl info xen_version) = 4.20.* ]]
SERVER=blkback serve_disks
start_blkbackd
for name in kernel ours; do image $name.img 16M >/dev/null; done
guest u1 vif= disk="$(SERVER=blkback disk "$IMAGES/kernel.img" xvda) $(tap "$IMAGES/ours.img" xvdb)"
xenstore-ls "/local/domain/0/backend/vbd3/${DOMID[u1]}/51728" | grep -E 'params|script|state|type'
blkbackd list
three
fio u1 both 120 --filename=/dev/xvdb "$write"
begin_fio u1 kernel --filename=/dev/xvda "$write"
begin_fio u1 ours --filename=/dev/xvdb "$write" --rate=2m
pause 1
kill_blkbackd
start_blkbackd
end_fio u1 kernel 120
end_fio u1 ours 120
within 60000 "detach" xl block-detach u1 xvdb
eventually 60 "the guest has no xvdb" in_guest u1 "test ! -e /sys/block/xvdb"
within 60000 "attach" xl block-attach u1 "$(tap "$IMAGES/ours.img" xvdb)"
in_guest u1 "until test -b /dev/xvdb && test \"\$(cat /sys/block/xvdb/size)\" != 0; do sleep 0.1; done" 60
three
healthy u1
leave_disks
