# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# vcpus: 2
# processors: 2
#
# A disk process serves two guests without rights. Each writes with an fsync after every few
# writes, and verifies that. The process is killed three times, after which each guest has a process of its own,
# and then the daemon is. Nothing that was written is lost, and the guests see no error and no
# change of the back end.

. /host/disk.sh

# disk_process prints the number of each disk process that runs.
disk_process() { blkbackd show | sed -n 's/^disk process .*process \([1-9][0-9]*\), .*/\1/p'; }
# replaced PID COUNT succeeds if so many other disk processes than PID run.
replaced() {
	local now
	now=$(disk_process)
	[ "$(wc -w <<<"$now")" = "$2" ] && ! grep -qx "$1" <<<"$now"
}
moves() {
	local before
	before=$(disk_counter "$1" xvda writes)
	eventually 60 "$1 writes" eval "[ \$(disk_counter $1 xvda writes) -gt $before ]"
	load_runs "$1"
}

start_blkbackd --max-queues=2 --isolate=shared
modprobe brd rd_nr=1 rd_size=65536
image file.img 64M >/dev/null
make_guest u1 vif= vcpus=2 disk="$(disk "$IMAGES/file.img" xvda)" cmdline="$LARGE"
make_guest u2 vif= disk="$(disk /dev/ram0 xvda)"
up u1 u2
pid=$(disk_process)
grep '^Seccomp:[[:space:]]*2$' "/proc/$pid/status"
grep '^CapPrm:[[:space:]]*0*$' "/proc/$pid/status"
for file in "/proc/$pid/fd/"*; do readlink "$file"; done >/tmp/files
same "files that were not handed to it" \
	"$(grep -vE '^(/tmp/images/file.img|/dev/ram0|/dev/xen/(gntdev|evtchn)|/run/blkbackd/ring-.*|/dev/null|anon_inode:.*|socket:.*|pipe:.*|/memfd:.*)$' /tmp/files || true)" ""
begin_load u1 /dev/xvda 12m --bsrange=4k-256k --rate=2m,8m
begin_load u2 /dev/xvda 4m
expect_error 'a disk process of several guests died again and again'
for count in 1 1 2; do # processes after each kill
	moves u1
	moves u2
	pid=$(disk_process)
	kill -9 "$pid"
	eventually 60 "$count disk processes instead of $pid" replaced "$pid" "$count"
done
moves u1
moves u2
pids=$(disk_process)
kill_blkbackd
for pid in $pids; do eventually 10 "disk process $pid ends with its daemon" not kill -0 "$pid"; done
start_blkbackd --max-queues=2 --isolate=shared
moves u1
moves u2
end_load u1
end_load u2
for name in u1 u2; do same "front end of $name" "$(xenstore-read "$(disk_frontend $name)/state")" 4; done
blkbackd show
grep VmRSS "/proc/$(disk_process)/status" "/proc/$BLKBACKD/status"
healthy u1
healthy u2
leave_disks
