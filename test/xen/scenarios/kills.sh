# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# processors: 2
#
# netbackd is killed at random instants under TCP streams both ways, ten times or NETBACKD_KILLS
# times, and started again at once, without anything that keeps the TAP's queues. The frontend is
# ours: it matches each response to its request and checks every slot, flag and byte. It finds no
# fault, its rings stay, and both streams arrive complete and unchanged.

kills=$(cat /host/kills 2>/dev/null || echo 10)
start_netbackd
make_bridge
guest u1 vcpus=2 memory=256 cmdline=no-netfront file=/host/netbackd-lab
start_agent u1 '{"addrs":["10.0.0.2/24"],"front":{"queues":2,"strict":true,"control":true,"id_salt":23040,"tx_pages":128,"rx_pages":128,"features":{"rx_copy":true,"rx_notify":true,"sg":true,"gso_tcpv4":true,"gso_tcpv6":true,"ipv6_csum_offload":true}}}'
eventually 240 "the guest answers" reach 10.0.0.2
say "static: $(agent u1 static '{"queue":0,"most":100}')"
front=/local/domain/${DOMID[u1]}/device/vif/0
rings=$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')

times=()
begin_streams u1 10.0.0.2 0.2
for round in $(seq "$kills"); do
	eventually_moves 240 300000
	pause 0.$((RANDOM % 4))$((RANDOM % 10))
	kill_netbackd
	clock
	began=$NOW
	moved
	before=$MOVED
	start_netbackd
	eventually 240 "packets move after kill $round" moved_on $before
	clock
	times+=($((NOW - began)))
done
end_streams u1
say "$kills kills, until packets moved again: $(printf '%s\n' "${times[@]}" | sort -n | awk '{ t[NR] = $1 } END { printf "median %d ms, worst %d ms", t[int((NR + 1) / 2)], t[NR] }')"
same "frontend" "$(xenstore-read "$front/state")" 4
same "rings" "$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')" "$rings"
innocent_after_kill u1
say "errors: $(agent_stat u1 tx_errors) sent, $(agent_stat u1 rx_errors) received"
same "packets answered with an error" "$(agent_stat u1 tx_errors)" 0
netbackd list
agent u1 quit
