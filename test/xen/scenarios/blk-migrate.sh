# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest with a disk is migrated live to its own host while it writes with fsync and verifies
# that. Both domains have the same image for a while, which has one writer: the new one waits
# until the old one has ended. No byte is lost. (Only PVH guests can migrate live here.)

. /host/disk.sh

serve_disks
image file.img 32M >/dev/null
guest u1 vif= type=pvh memory=96 disk="$(disk "$IMAGES/file.img" xvda)"
rm -f /tmp/*.initramfs /tmp/disk-*.cpio
begin_load u1 /dev/xvda 2m
pause 2
load_runs u1
was=${DOMID[u1]}
xl migrate -s "" u1 "xl migrate-receive" >/tmp/migrate.log 2>&1 || fail "xl migrate: $(tail -n 8 /tmp/migrate.log)"
DOMID[u1]=$(xl domid u1)
say "domain $was has become domain ${DOMID[u1]}"
[ "${DOMID[u1]}" != "$was" ]
becomes 60 "the disk is connected" "$(disk_backend u1)/state" 4
blkbackd list
load_runs u1
pause 2
end_load u1
healthy u1
leave_disks
