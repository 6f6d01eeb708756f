# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# vcpus: 2
#
# fio writes patterns to disks and verifies them, in two guests at the same time: with indirect
# requests of 256 segments, a ring of 16 pages and two queues, and with the defaults of
# xen-blkfront. The images are a file on ext4 and a block device. Then fio writes with an fsync
# after every few writes, and blkbackd is killed and started again three times, with each cache
# mode; nothing that was written is lost, and neither guest sees an error.

. /host/disk.sh

# cache NAME prints the cache mode of a guest's disk, once that is open.
cache() { blkbackd show "$(vbd "$1")" | grep '^cache'; }

verify="--verify=crc32c --verify_fatal=1 --do_verify=1"
serve_disks --max-queues=2
modprobe -a crc32c_generic ext4
modprobe brd rd_nr=2 rd_size=131072
mkfs.ext4 -q /dev/ram1
mkdir /tmp/mnt
mount -t ext4 /dev/ram1 /tmp/mnt
image /tmp/mnt/file.img 96M >/dev/null
make_guest u1 vif= vcpus=2 disk="$(disk /tmp/mnt/file.img xvda)" cmdline="$LARGE"
make_guest u2 vif= disk="$(disk /dev/ram0 xvda)"
up u1 u2
in_guest u1 "dmesg | grep blkfront:"
in_guest u2 "dmesg | grep blkfront:"
begin_fio u1 large --filename=/dev/xvda --rw=write --bs=1m --size=32m --iodepth=8 $verify
begin_fio u2 small --filename=/dev/xvda --rw=randwrite --bsrange=512-64k --blockalign=512 --size=12m --iodepth=16 $verify
end_fio u1 large 240
end_fio u2 small 240
fio u1 mixed 240 --filename=/dev/xvda --rw=randrw --bsrange=4k-512k --size=16m --iodepth=32 --numjobs=2 --offset_increment=40m --group_reporting $verify
if ours; then
	blkbackd list
	blkbackd show "$(vbd u1)"
	begin_load u1 /dev/xvda 12m --bsrange=4k-256k --rate=2m,8m
	begin_load u2 /dev/xvda 4m
	round=0
	for cache in writeback direct auto; do
		round=$((round + 1))
		pause 1
		load_runs u1
		load_runs u2
		kill_blkbackd
		pause 0.$round
		within 60000 "start $round, --cache=$cache" start_blkbackd --max-queues=2 --cache=$cache
		eventually 60 "the disk is served again" cache u1
		cache u1
	done
	pause 1
	end_load u1
	end_load u2
	for name in u1 u2; do same "front end of $name" "$(xenstore-read "$(disk_frontend $name)/state")" 4; done
	blkbackd list
fi
healthy u1
healthy u2
leave_disks
