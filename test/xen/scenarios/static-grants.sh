# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Static grants: a guest makes all its buffers static grants and recycles them. Its packets take
# no grant operation: netbackd counts none, and in Xen's own grant table exactly the same pages
# are in use before, between and after packets of all sizes both ways. The same holds when
# netbackd is restarted and killed under traffic; the guest is not affected. Packets also arrive
# if only some buffers are static. Buffers that the guest removes, and all buffers after a
# disconnect, are not mapped any more.

# One queue and not many pages, since Xen's console has little room for their list.
tx=40 rx=60
all=$((tx + rx))

# buffers prints the references of all buffers of the queue.
buffers() { agent u1 buffers '{"queue":0}' | sed 's/.*"tx"//' | grep -o '[0-9]\+' | sort -n; }

# pinned counts the buffers that are in use, others the other pages.
pinned() { grep -cxFf /tmp/buffers <<<"$1" || true; }
others() { grep -cvxFf /tmp/buffers <<<"$1" || true; }

# held prints netbackd's number of static grants.
held() { netbackd show "$vif" | awk 'on { print $2; on = 0 } /^QUEUE *STATIC/ { on = 1 }'; }
holds_all() { [ "$(held)" = $all ]; }

# pings sends packets of one slot and of several fragments both ways, and checks the answers.
pings() {
	local size
	for size in 22 1472 8000; do
		agent u1 ping "{\"addr\":\"$DOM0\",\"count\":20,\"size\":$size,\"interval_ns\":2000000,\"timeout_ns\":120000000000}" |
			grep '"received":20,.*"corrupt":0' >/dev/null || fail "pings of $size bytes"
	done
}

# from_guest PORT and to_guest PORT move a stream, in packets of up to 64 KiB.
from_guest() {
	begin_transfer u1 dom0 "$DOM0" "$1" 2
	end_transfer dom0 "$1" 2 240
}
to_guest() {
	begin_transfer dom0 u1 10.0.0.2 "$1" 2
	end_transfer u1 "$1" 2 240
}

# packets prints the number of packets so far, both ways.
packets() { echo $(($(counter "$vif" tx_packets) + $(counter "$vif" rx_packets))); }

start_netbackd
make_bridge
guest u1 memory=256 cmdline=no-netfront file=/host/netbackd-lab
vif=$(vif u1)
front="{\"control\":true,\"strict\":true,\"tx_pages\":$tx,\"rx_pages\":$rx}"
start_agent u1 "{\"addrs\":[\"10.0.0.2/24\"],\"front\":$front}"
eventually 240 "the guest answers" reach 10.0.0.2
buffers >/tmp/buffers
same "buffers" "$(wc -l </tmp/buffers)" $all

before=$(in_use u1)
same "buffers in use without static grants" "$(pinned "$before")" 0
rings=$(others "$before")
pings
copied=$(counter "$vif" grant_ops)
say "without static grants: $copied grant operations for $(packets) packets"
[ "$copied" -gt 50 ]

say "static: $(agent u1 static '{"queue":0}')"
same "static grants" "$(held)" $all
table=$(in_use u1)
same "buffers in use once they are static" "$(pinned "$table")" $all
same "other pages in use" "$(others "$table")" "$rings"
copied=$(counter "$vif" grant_ops)
n=$(packets)
pings
from_guest 5003
to_guest 5004
say "with static grants: $(($(counter "$vif" grant_ops) - copied)) grant operations for $(($(packets) - n)) packets"
same "grant operations" "$(counter "$vif" grant_ops)" "$copied"
same "misses" "$(counter "$vif" static_misses)" 0
[ "$(counter "$vif" tx_gso)" -gt 0 ]
[ "$(counter "$vif" rx_gso)" -gt 0 ]
same "Xen's grant table after it" "$(in_use u1)" "$table"

# The daemon is restarted under running streams. The guest is not told.
begin_streams u1 10.0.0.2 3
for how in TERM KILL; do
	eventually_moves 240 1000000
	if [ $how = TERM ]; then stop_netbackd; else kill_netbackd; fi
	[ $how = TERM ] || same "buffers in use without netbackd" "$(pinned "$(in_use u1)")" 0
	start_netbackd
	eventually 240 "the successor has all static grants" holds_all
	same "Xen's grant table with the successor" "$(in_use u1)" "$table"
done
end_streams u1
same "the frontend" "$(xenstore-read "/local/domain/${DOMID[u1]}/device/vif/0/state")" 4
# Counters continue after a restart.
same "grant operations, over two restarts" "$(counter "$vif" grant_ops)" "$copied"
say "the successor answers: $(agent u1 control '{"type":8,"data":[0]}')"
netbackd show "$vif"

# The guest removes all static grants, and makes some again.
say "taken back: $(agent u1 static '{"queue":0,"off":true}')"
same "buffers in use when they were taken back" "$(pinned "$(in_use u1)")" 0
agent u1 static "{\"queue\":0,\"most\":$((tx / 2))}"
from_guest 5005
same "buffers in use, half of those to send from" "$(pinned "$(in_use u1)")" $((tx / 2))
hits=$(counter "$vif" static_hits) misses=$(counter "$vif" static_misses)
say "half of the tx buffers static: $hits slots were, $misses were not"
[ "$misses" -gt 0 ]
agent u1 static '{"queue":0,"off":true}'
agent u1 static "{\"queue\":0,\"most\":$((tx + rx / 2))}"
to_guest 5006
[ "$(counter "$vif" static_hits)" -gt "$hits" ]
[ "$(counter "$vif" static_misses)" -gt "$misses" ]
pings

innocent_after_kill u1
agent u1 disconnect
eventually 240 "netbackd has closed" node "$(backend u1)/state" 6
same "buffers in use after the connection" "$(pinned "$(in_use u1)")" 0
say "pages in use with the connection and after it: $rings, $(others "$(in_use u1)")"
agent u1 quit
