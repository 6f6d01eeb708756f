# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest without xen-netfront runs our own frontend over /dev/xen/gntalloc, evtchn and xenbus.
# The frontend of the tests on the embedded Xen also works on a real Xen, and its checks of
# netbackd pass there. It disconnects, and connects again with two queues and an event channel
# for each direction.

start_netbackd --max-queues=2
make_bridge
guest u1 vcpus=2 memory=256 cmdline=no-netfront file=/host/netbackd-lab # one event channel is offered to one vcpu
shapes=([1]='{}' [2]='{"queues":2,"split_events":true}')
for round in 1 2; do
	within 180000 "connect $round" start_agent u1 "{\"name\":\"eth0\",\"addrs\":[\"10.0.0.2/24\"],\"front\":${shapes[round]}}"
	eventually 240 "the guest answers" reach 10.0.0.2
	info=$(agent u1 info)
	say "$info"
	grep -q "\"queues\":$round,\"split\":$([ $round = 2 ] && echo true || echo false)" <<<"$info"
	exchange dom0 "$DOM0" u1 10.0.0.2 3
	innocent u1
	netbackd list
	within 180000 "take leave $round" agent u1 quit
	becomes 240 "netbackd has closed, too" "$(backend u1)/state" 6
done
