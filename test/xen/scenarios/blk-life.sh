# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The life of disks: a guest sees the new size of a file that has grown under its mounted file
# system, and grows that; what it discards is gone from the file's blocks; a disk is detached
# and attached under load; the guest is saved and restored under load; its front end disconnects and
# connects again; and the guest is destroyed under load. xl reports a missing file and a second writer.
# Meanwhile a neighbour reads and writes without an error.

. /host/disk.sh

# refused WHAT PATTERN TARGET VDEV expects that xl cannot attach a disk, for that reason.
refused() {
	local path error
	not xl block-attach u1 "$(disk "$3" "$4")" 2>/dev/null
	path=$(disk_backend u1 "$4")
	error=$(xenstore-read "$path/hotplug-error")
	say "$1: $error"
	grep -qiE -- "$2" <<<"$error" || fail "$1: hotplug-error is '$error'"
	xl block-detach u1 "$(number "$4")" 2>/dev/null || true
	eventually 60 "the disk is gone" not xenstore-exists "$path"
}
grown() { in_guest u1 "test \"\$(cat /sys/block/xvda/size)\" = $1"; }
gone() { in_guest u1 "test ! -e /sys/block/$1"; }

serve_disks
image file.img 64M >/dev/null
image more.img 32M >/dev/null
image next.img 32M >/dev/null
guest u2 vif= disk="$(disk "$IMAGES/next.img" xvda)"
begin_load u2 /dev/xvda 4m
guest u1 vif= memory=96 disk="$(disk "$IMAGES/file.img" xvda)" cmdline="$LARGE"
in_guest u1 "mkfs.ext4 -q /dev/xvda && mkdir -p /data && mount -o discard /dev/xvda /data && cp /usr/bin/fio /data/ && sync"

say "-- resize"
truncate -s 128M "$IMAGES/file.img"
if ! ours; then xenstore-write "$(disk_backend u1)/state" 4; losetup -c /dev/loop1; fi
if ours; then eventually 60 "the guest sees the new size" grown 262144; fi
in_guest u1 "resize2fs /dev/xvda >/dev/null 2>&1; df /data | tail -n 1; cmp /usr/bin/fio /data/fio"

say "-- discard"
in_guest u1 "(for n in 1 2 3 4 5 6; do cat /usr/bin/fio /usr/bin/fio; done) >/data/big && sync"
full=$(blocks "$IMAGES/file.img")
in_guest u1 "rm /data/big && sync && fstrim /data && sync"
empty=$(blocks "$IMAGES/file.img")
say "blocks of the file: $full, after the discard $empty"
[ $((full - empty)) -gt 30000 ] || fail "the discard did not reach the file"
in_guest u1 "cmp /usr/bin/fio /data/fio && umount /data && e2fsck -fn /dev/xvda >/dev/null 2>&1"
in_guest u1 "blkdiscard /dev/xvda"
say "blocks of the file after blkdiscard: $(blocks "$IMAGES/file.img")"

say "-- errors of xl"
if ours; then
	expect_error "hotplug script failed"
	refused "missing file" "no such file|does not exist|not exist" "$IMAGES/none.img" xvdc
	refused "second writer" "lock|in use|busy" "$IMAGES/file.img" xvdc
	refused "directory" "director|not a file" "$IMAGES" xvdc
fi

say "-- detach and attach under load"
attach_disk u1 "$IMAGES/more.img" xvdb
begin_fio u1 load --filename=/dev/xvdb --rw=randwrite --bs=64k --size=24m --iodepth=8 --time_based --runtime=600
pause 1
fio_runs u1 load
# While it is in use Linux does not give it up before its user ends.
within 60000 "detach" eval 'xl block-detach u1 xvdb --force || xl block-detach u1 xvdb'
eventually 120 "fio has ended" in_guest u1 "test -e /tmp/load.code"
eventually 60 "the guest has no xvdb" gone xvdb
attach_disk u1 "$IMAGES/more.img" xvdb
fio u1 again 120 --filename=/dev/xvdb --rw=randwrite --bsrange=4k-256k --size=16m --iodepth=8 --verify=crc32c

say "-- save and restore under load"
begin_fio u1 moved --filename=/dev/xvda --rw=randwrite --bsrange=4k-256k --size=64m --iodepth=16 --fsync=16 --rate=4m --verify=crc32c
pause 1
fio_runs u1 moved
# dom0's root may have half of its memory, which is too little.
rm /tmp/*.initramfs /tmp/disk-*.cpio
mkdir /tmp/mnt
mount -t tmpfs -o size=600M tmpfs /tmp/mnt
within 120000 "xl save" xl save u1 /tmp/mnt/u1.save 2>/dev/null
within 120000 "xl restore" xl restore /tmp/mnt/u1.save 2>/dev/null
rm /tmp/mnt/u1.save
DOMID[u1]=$(xl domid u1)
end_fio u1 moved 240

say "-- the front end disconnects and connects again"
in_guest u1 "cd /sys/bus/xen/drivers/vbd && echo vbd-51712 >unbind && echo vbd-51712 >bind &&
	until test -b /dev/xvda && test \"\$(cat /sys/block/xvda/size)\" != 0; do sleep 0.1; done" 60
fio u1 reload 120 --filename=/dev/xvda --rw=randread --bs=128k --size=16m --iodepth=8
in_guest u1 "dmesg | grep blkfront: | tail -n 2"
healthy u2

say "-- destroyed under load"
begin_fio u1 last --filename=/dev/xvda --rw=randwrite --bs=256k --size=64m --iodepth=16 --time_based --runtime=600
pause 1
fio_runs u1 last
destroy u1
end_load u2
healthy u2
leave_disks
