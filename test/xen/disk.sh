# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Functions of the scenarios about disks, which read this file. SERVER is the back end of the
# disks that are attached from then on: blkbackd, or blkback for the kernel's on a loop device,
# or qdisk for QEMU's. ($NETBACKD_XEN_DISKS of run is its first value, so that a scenario can be
# tried with another back end.)

BLKBACKD= # the process id of blkbackd
SERVER=blkbackd
[ ! -e /host/server ] || SERVER=$(cat /host/server)
IMAGES=/tmp/images
# The parameters of xen-blkfront for large requests, and many of them. With persistent grants it
# would allocate the pages of all of them in advance, 513 MB a queue.
LARGE="xen_blkfront.max_indirect_segments=256 xen_blkfront.max_ring_page_order=4 xen_blkfront.feature_persistent=0"
mkdir -p $IMAGES
install_scripts

# ours succeeds if blkbackd serves the disks.
ours() { [ $SERVER = blkbackd ]; }

# start_blkbackd [ARGUMENT...] starts blkbackd and returns when it answers.
start_blkbackd() {
	blkbackd run "$@" >>/tmp/blkbackd.log 2>&1 &
	BLKBACKD=$!
	eventually 60 "blkbackd answers" blkbackd list
}

# stop_blkbackd stops blkbackd, which must end in time and with exit code 0.
stop_blkbackd() {
	local code=0
	kill -TERM "$BLKBACKD" || fail "blkbackd is not running"
	eventually 60 "blkbackd ends" not kill -0 "$BLKBACKD"
	wait "$BLKBACKD" || code=$?
	BLKBACKD=
	same "exit code of blkbackd" $code 0
}

# kill_blkbackd kills blkbackd with SIGKILL.
kill_blkbackd() {
	kill -KILL "$BLKBACKD"
	wait "$BLKBACKD" 2>/dev/null || true
	BLKBACKD=
}

# A guest with a disk of qdisk needs this as its key config: where xl finds QEMU.
QEMU='device_model_version = "qemu-xen"
device_model_override = "/tmp/hvm/qemu"'

# serve_disks [ARGUMENT...] makes SERVER ready.
serve_disks() {
	case $SERVER in
	blkbackd) [ "$BLKBACKD" ] || start_blkbackd "$@" ;;
	blkback) modprobe -a xen-blkback loop ;;
	qdisk) [ -e /tmp/hvm ] || cp -r /host/hvm /tmp/ ;; # the share is slow
	esac
}

# image NAME SIZE makes a sparse file, and prints its path. A name with a slash is a path.
image() {
	local path=$IMAGES/$1
	case $1 in /*) path=$1 ;; esac
	truncate -s "$2" "$path"
	echo "$path"
}

# disk TARGET VDEV [OPTION] prints a disk as in xl.cfg.
disk() {
	local how="script=block-blkbackd,"
	case $SERVER in
	blkback) how="" ;;
	qdisk) how="backendtype=qdisk," ;;
	esac
	echo "format=raw,vdev=$2,access=${3:-rw},${how}target=$1"
}

# attach_disk NAME TARGET VDEV [ACCESS] attaches a disk and waits until the guest has it.
attach_disk() {
	within 180000 "attach $3" xl block-attach "$1" "$(disk "${@:2}")"
	in_guest "$1" "until test -b /dev/$3 && test \"\$(cat /sys/block/$3/size)\" != 0; do sleep 0.1; done" 60
}

# number VDEV prints the number of a virtual device: 51712 for xvda.
number() { echo $((51712 + 16 * ($(printf %d "'${1:3:1}") - 97))); }

# vbd NAME [VDEV] prints the name of a guest's disk in blkbackd.
vbd() { echo "vbd-${DOMID[$1]}-$(number "${2:-xvda}")"; }

# disk_backend NAME [VDEV] prints the back end's directory of a disk.
disk_backend() {
	local class=vbd
	[ $SERVER != qdisk ] || class=qdisk
	echo "/local/domain/0/backend/$class/${DOMID[$1]}/$(number "${2:-xvda}")"
}

# disk_frontend NAME [VDEV] prints the front end's directory of a disk.
disk_frontend() { echo "/local/domain/${DOMID[$1]}/device/vbd/$(number "${2:-xvda}")"; }

# disk_counter NAME VDEV COUNTER prints one of blkbackd's counters.
disk_counter() { blkbackd show "$(vbd "$1" "$2")" | awk -v name="$3" '$1 == name { n = $2 } END { print n + 0 }'; }

# fio GUEST NAME SECONDS ARGUMENT... runs fio in a guest.
fio() {
	in_guest "$1" "fio --name=$2 --thread --ioengine=libaio --direct=1 --randrepeat=1 ${*:4} --output=/tmp/$2.out >/dev/console 2>&1
		code=\$?; grep -hE 'err=|verify:|bad |crc' /tmp/$2.out | head -n 5; test \$code = 0" "$3"
}

# begin_fio GUEST NAME ARGUMENT... starts fio in a guest, end_fio GUEST NAME SECONDS waits for
# its end and fails if it found a wrong byte or an error.
begin_fio() {
	in_guest "$1" "(fio --name=$2 --thread --ioengine=libaio --direct=1 --randrepeat=1 ${*:3} --output=/tmp/$2.out >/dev/console 2>&1; echo \$? >/tmp/$2.new; mv /tmp/$2.new /tmp/$2.code) &"
}
end_fio() {
	local code
	code=$(in_guest "$1" "$(wait_for "/tmp/$2.code")" "$3") || fail "fio $2 in $1 has not ended within $3 s"
	in_guest "$1" "grep -hE 'err=|verify:|bad |WRITE:|READ:' /tmp/$2.out | head -n 6"
	same "exit code of fio $2 in $1" "$code" 0
}
fio_runs() { in_guest "$1" "test ! -e /tmp/$2.code" || fail "fio $2 in $1 has ended before its time: $(in_guest "$1" "tail -n 20 /tmp/$2.out")"; }

# begin_load GUEST DEVICE SIZE [ARGUMENT...] writes to a disk with an fsync after every few writes, verifies that,
# and begins again until end_load GUEST, which fails if a byte was wrong or there was an error.
begin_load() {
	in_guest "$1" "(while test ! -e /tmp/load.enough; do
			fio --name=load --thread --ioengine=libaio --direct=1 --filename=$2 --rw=randwrite --bsrange=4k-64k --size=$3 --iodepth=8 \
				--fsync=8 --rate=600k,600k --verify=crc32c --verify_fatal=1 --randseed=\$((n += 1)) ${*:4} --output=/tmp/load.out >/dev/null 2>&1 || break
			echo \$n >/tmp/load.rounds
		done; touch /tmp/load.end) &"
}
load_runs() { in_guest "$1" "test ! -e /tmp/load.end" || fail "the load in $1 has ended: $(in_guest "$1" "tail -n 20 /tmp/load.out")"; }
end_load() {
	load_runs "$1"
	in_guest "$1" "touch /tmp/load.enough; $(wait_for /tmp/load.end); echo rounds of load: \$(cat /tmp/load.rounds); grep -q 'err= 0' /tmp/load.out" 240 ||
		fail "the load in $1: $(in_guest "$1" "tail -n 20 /tmp/load.out")"
}

# start_disk_agent NAME DISK runs our own frontend in a guest without xen-blkfront, and waits until
# it is connected. DISK is a JSON object, see internal/lab/blkguest/config.go. The function agent
# sends commands to it; they are in internal/lab/blkguest/protocol.go.
start_disk_agent() {
	in_guest "$1" "test -e /tmp/agent.in || mkfifo /tmp/agent.in
		/blkbackd-lab guest --disk='$2' <>/tmp/agent.in >/tmp/agent.out 2>/tmp/agent.err &
		until grep -q '\"id\":0,' /tmp/agent.out; do kill -0 \$! || { cat /tmp/agent.err; exit 1; }; sleep 0.1; done"
}

# healthy NAME fails if the guest's kernel has seen an error of a disk.
healthy() {
	same "errors of disks in $1" "$(in_guest "$1" "dmesg | grep -E 'I/O error|blkfront.*(wrong|further use|cannot)|EXT4-fs (error|warning)|Buffer I/O|hung_task|blocked for more' | head -n 5")" ""
}

# blocks FILE prints the 512-byte blocks that a file occupies.
blocks() { stat -c %b "$1"; }

# no_disks succeeds if no node, journal or loop device of a disk is left.
no_disks() {
	! compgen -G '/run/blkbackd/ring-*' && [ -z "$(losetup -a)" ] &&
		! xenstore-list /local/domain/0/backend/vbd 2>/dev/null | grep -q . && ! xenstore-list /local/domain/0/backend/vbd3 2>/dev/null | grep -q .
}
# leave_disks ends what serve_disks began. Each scenario about disks ends with it.
leave_disks() {
	local name said
	for name in "${!DOMID[@]}"; do destroy "$name"; done
	eventually 60 "no disk is left" no_disks
	[ ! -d /tmp/mnt ] || umount /tmp/mnt
	[ ! -d /sys/module/brd ] || rmmod brd
	[ -z "$BLKBACKD" ] || stop_blkbackd
	[ ! -d /sys/module/xen_blkback ] || rmmod xen-blkback
	said=$(grep -sE 'panic|ERROR' /tmp/blkbackd.log | grep -vEf /tmp/expected) || true
	[ -z "$said" ] || fail "blkbackd has complained: $said"
}
