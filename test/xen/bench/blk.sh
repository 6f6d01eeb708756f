# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Block back ends serve the same file to the same guest, one after the other, and fio does the
# same work in the guest. ORDER has the phases:
#
#   K, KC   xen-blkback on a loop device, with persistent grants and without
#   P, C    blkbackd, with persistent grants and with copies only
#   D       the same as C, with the 11 segments of a direct request
#   Q       QEMU's qdisk
#
# A record is a line: boot, phase, back end, item, bytes, requests, ms, mean latency in us,
# interrupts of the guest.

. /host/parameters
. /host/disk.sh

SEGMENTS=256 # of the guest's requests
declare -i PHASE=0

# item NAME MIB ARGUMENT... runs fio in the guest.
item() {
	local name=$1 said
	local -i size
	case $name in *"$ONLY"*) ;; *) return 0 ;; esac
	size=$(awk -v n="$2" -v scale="$SCALE" 'BEGIN { print n * scale * 1024 }')
	for _ in $(seq "$REPS"); do
		said=$(in_guest u1 "irqs() { awk '/blkif/ { for (i = 2; i <= NF && \$i ~ /^[0-9]+\$/; i++) n += \$i } END { print n + 0 }' /proc/interrupts; }
			stat() { awk '{ print \$1 + \$5 }' /sys/block/xvda/stat; }
			irqs=\$(irqs) stat=\$(stat)
			fio --name=x --thread --ioengine=libaio --direct=1 --filename=/dev/xvda --minimal --size=${size}k --io_size=${size}k --randseed=7 ${*:3} >/tmp/said 2>/dev/console || exit
			echo \$((\$(stat) - stat)) \$((\$(irqs) - irqs)) \$(awk -F ';' 'NF > 50 { print \$6 + \$47, \$9 + \$50, \$16 + \$57 }' /tmp/said)")
		# requests, interrupts, KiB, ms, us
		# shellcheck disable=SC2086 # words
		set_record $said
		echo "$BOOT,$PHASE,$BACKEND,$name,$RECORD" >>/host/records
		say "$PHASE $BACKEND $name: $((KIB * 1000 / 1024 / MS)) MiB/s, $US us, $said"
	done
}
set_record() {
	KIB=$3 MS=$4 US=${5%.*}
	[ "$MS" -gt 0 ] || MS=1
	RECORD="$((KIB * 1024)),$1,$MS,$5,$2"
}

items() {
	item "read 1m QD4" 48 --rw=read --bs=1m --iodepth=4
	item "write 1m QD4" 48 --rw=write --bs=1m --iodepth=4
	item "read 128k QD8" 48 --rw=read --bs=128k --iodepth=8
	item "write 128k QD8" 48 --rw=write --bs=128k --iodepth=8
	item "randread 4k QD32" 8 --rw=randread --bs=4k --iodepth=32
	item "randwrite 4k QD32" 8 --rw=randwrite --bs=4k --iodepth=32
	item "randread 4k QD1" 2 --rw=randread --bs=4k --iodepth=1
	item "randwrite 4k QD1" 2 --rw=randwrite --bs=4k --iodepth=1
}

# phase LABEL SERVER [ARGUMENT...] measures one back end.
phase() {
	BACKEND=$1 SERVER=$2
	PHASE+=1
	# shellcheck disable=SC2086 # a list
	serve_disks "${@:3}" $ARGUMENTS
	attach_disk u1 "$IMAGES/disk.img" xvda
	in_guest u1 "dmesg | grep 'blkfront: ' | tail -n 1"
	# The first use maps persistent grants, and translates code in QEMU.
	in_guest u1 "fio --name=x --thread --ioengine=libaio --direct=1 --filename=/dev/xvda --rw=write --bs=1m --iodepth=8 --size=32m >/dev/null 2>&1"
	items
	if [ "$SERVER" = blkbackd ]; then blkbackd stats "$(vbd u1)" | grep -vE ' 0 ' || true; fi
	within 60000 "detach" xl block-detach u1 xvda
	eventually 60 "the disk is gone" not xenstore-exists "$(disk_backend u1)"
	if [ "$BLKBACKD" ]; then stop_blkbackd; fi
	if [ -d /sys/module/xen_blkback ]; then rmmod xen-blkback; fi
}

# fresh [QEMU] makes the guest. xl starts QEMU only with a guest that has a disk of qdisk.
fresh() {
	local disk='' config=''
	[ -z "${DOMID[u1]:-}" ] || destroy u1
	if [ $# = 1 ]; then
		SERVER=qdisk
		serve_disks
		image dummy.img 1M >/dev/null
		disk=$(disk "$IMAGES/dummy.img" xvdp) config=$1
	fi
	guest u1 vif= disk="$disk" config="$config" cmdline="xen_blkfront.max_indirect_segments=$SEGMENTS"
}

# A file without holes.
dd if=/dev/zero of="$IMAGES/disk.img" bs=1M count=64 2>/dev/null
for order in $ORDER; do
	[ "$order" = Q ] || [ "${DOMID[u1]:-}" ] || fresh
	case $order in
	K) phase blkback blkback ;;
	KC)
		modprobe xen-blkback feature_persistent=0
		phase blkback-copy blkback
		;;
	P) phase blkbackd blkbackd ;;
	C) phase blkbackd-copy blkbackd --persistent=false ;;
	D) phase blkbackd-direct blkbackd --persistent=false --max-indirect-segments=0 ;;
	Q)
		fresh "$QEMU"
		phase qdisk qdisk
		destroy u1
		;;
	*) fail "order: $order" ;;
	esac
done
leave_disks
