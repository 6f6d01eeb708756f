# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest without xen-netfront runs our own frontend over /dev/xen/gntalloc, evtchn
# and xenbus: the one that tests run in the embedded Xen works with a real one, and
# what it holds netbackd to holds here. It takes leave, and comes back with another
# shape: two queues, and an event channel for each direction.

# agent N COMMAND tells the frontend something and prints its answer, without the
# part about each queue.
agent() {
	in_guest u1 "echo '{\"id\":$1,\"cmd\":\"$2\"}' >/tmp/agent.in
		until grep '\"id\":$1,' /tmp/agent.out; do sleep 0.2; done" | sed 's/,"queues":\[.*//'
}
start_agent() {
	local vif="{\"name\":\"eth0\",\"addrs\":[\"10.0.0.2/24\"],\"front\":$1}"
	in_guest u1 "test -e /tmp/agent.in || mkfifo /tmp/agent.in
		/netbackd guest --vif='$vif' <>/tmp/agent.in >/tmp/agent.out 2>/tmp/agent.err &
		until grep '\"id\":0,' /tmp/agent.out; do kill -0 \$! || { cat /tmp/agent.err; exit 1; }; sleep 0.2; done"
}

start_netbackd
make_bridge
guest u1 memory=256 cmdline=no-netfront file=/usr/sbin/netbackd
backend=/local/domain/0/backend/vif/${DOMID[u1]}/0
shapes=([1]='{}' [2]='{"queues":2,"split_events":true}')
for round in 1 2; do
	within 60000 "connect $round" start_agent "${shapes[round]}"
	eventually 60 "the guest answers" reach 10.0.0.2
	info=$(agent 1 info)
	say "$info"
	grep -q "\"queues\":$round,\"split\":$([ $round = 2 ] && echo true || echo false)" <<<"$info"
	begin_transfer dom0 u1 10.0.0.2 "500$round" 8
	begin_transfer u1 dom0 "$DOM0" "510$round" 8
	end_transfer u1 "500$round" 8 240
	end_transfer dom0 "510$round" 8 240
	agent 2 stats | grep -o '"violations":0,' | uniq
	netbackd list
	within 60000 "take leave $round" agent 3 quit
	eventually 30 "netbackd has closed, too" node "$backend/state" 6
done
