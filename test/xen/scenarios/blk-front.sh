# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# vcpus: 2
#
# A guest without xen-blkfront runs our own frontend over /dev/xen/gntalloc, evtchn and xenbus:
# with requests of 1 to 4,096 segments, of whole pages and of parts, with two queues and rings of
# one and of 16 pages, with persistent grants and without, in each ABI and without the key, and
# over a kill of blkbackd. Every byte that it reads is compared with what it wrote. Then it makes
# all bad requests that the embedded Xen knows, while a neighbour with Linux's frontend reads and
# writes without an error, and breaks the ring.

. /host/disk.sh

# load WHAT ARGUMENTS runs a load to its end and reads the whole disk.
load() {
	local said
	said=$(agent u1 run "{$2}") || fail "$1: $said"
	say "$1: $(sed 's/.*"result"://; s/,"latency":\[.*//' <<<"$said")"
	agent u1 scan >/dev/null || fail "$1: $(agent u1 scan)"
}
# again NAME FRONT connects with other settings.
again() { agent "$1" reconnect "{\"front\":{$2}}" >/dev/null || fail "reconnect $2: $(in_guest "$1" "tail -n 3 /tmp/agent.out")"; }
state_is() { blkbackd list | grep -q "^$(vbd "$1") .* $2 "; }

start_blkbackd --max-indirect-segments=4096 --max-queues=2
image big.img 32M >/dev/null
image next.img 8M >/dev/null
make_guest u1 vif= memory=320 disk="$(disk "$IMAGES/big.img" xvda)" cmdline="no-netfront no-blkfront" file=/host/blkbackd-lab
make_guest u2 vif= disk="$(disk "$IMAGES/next.img" xvda)"
up u1 u2
begin_load u2 /dev/xvda 2m
start_disk_agent u1 '{"front":{"order":4,"indirect":4096,"pages":4096}}'
agent u1 info
load "1 to 4096 segments" '"requests":12,"depth":2,"min_segments":1,"max_segments":4096,"reads":40,"flushes":10'
load "4096 segments" '"requests":3,"min_segments":4096,"reads":50'
blkbackd show "$(vbd u1)" | grep -E '^(0 |1 |QUEUE|connected)'
for abi in x86_64-abi x86_32-abi arm-abi none; do
	persistent=true order=0
	[ $abi != x86_32-abi ] || persistent=false order=4
	again u1 "\"protocol\":\"$abi\",\"queues\":2,\"order\":$order,\"indirect\":256,\"persistent\":$persistent"
	load "$abi" '"requests":100,"depth":8,"max_segments":64,"parts":true,"reads":40,"flushes":5,"barriers":5,"discards":5'
done

say "-- killed under a load"
again u1 '"queues":2,"order":2,"indirect":512'
in_guest u1 "echo '{\"id\":77,\"cmd\":\"run\",\"args\":{\"requests\":300,\"depth\":8,\"max_segments\":256,\"reads\":30,\"flushes\":10,\"barriers\":2}}' >/tmp/agent.in"
for round in 1 2; do
	pause 0.7
	kill_blkbackd
	pause 0.$round
	start_blkbackd --max-indirect-segments=4096 --max-queues=2
done
in_guest u1 "until grep '\"id\":77,' /tmp/agent.out; do sleep 0.1; done" 240 | sed 's/,"latency":\[.*//'
in_guest u1 "! grep '\"id\":77,' /tmp/agent.out | grep -q '\"error\":\"'"
agent u1 scan >/dev/null

say "-- bad requests"
expect_error "quarantine|breach|req_prod|broke"
agent u1 detach >/dev/null
destroy u1
image bad.img 512K >/dev/null
image read.img 512K >/dev/null
guest u3 vif= memory=192 disk="$(disk "$IMAGES/bad.img" xvda) $(disk "$IMAGES/read.img" xvdb ro)" cmdline="no-netfront no-blkfront" file=/host/blkbackd-lab
start_disk_agent u3 '{"front":{"order":1,"indirect":4096}}'
said=$(agent u3 cases) || fail "$said"
say "writable: $said"
! grep -q '"wrong"' <<<"$said" || fail "bad requests"
agent u3 attach '{"name":"xvdb","front":{"dir":"device/vbd/51728","indirect":4096}}' >/dev/null
said=$(agent u3 cases '{"disk":"xvdb"}') || fail "$said"
say "read-only: $said"
! grep -q '"wrong"' <<<"$said" || fail "bad requests to a read-only disk"
blkbackd show "$(vbd u3)" | sed -n '/^COUNTER/,$p'
for name in "req_prod one slot beyond the ring" "req_prod far beyond the ring"; do
	agent u3 case "{\"case\":\"$name\"}" >/dev/null
	eventually 60 "quarantine" state_is u3 quarantine
	again u3 '"order":1,"indirect":256'
	eventually 60 "connected again" state_is u3 connected
done
end_load u2
healthy u2
leave_disks
