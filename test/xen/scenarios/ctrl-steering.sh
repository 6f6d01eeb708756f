# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest maps flows to queues over the control ring: with two queues and with four, over the
# ring of slots and over byte streams. Packets come on these queues if dom0's kernel chooses
# them, by eBPF, and if netbackd does; `netbackd show` prints which of the two. The guest
# computes every hash itself and counts packets that come on another queue. Tables outlive
# netbackd. Statuses that need other options of netbackd are tested here as well.

# key is that of Microsoft's verification suite, in base64.
key=bVpW2iVbDsJBZyU9Q6OPsNDKK8uuezC0d8sto4Aw8gxqQrc7vqwB+g==

# hash MAPPING makes the guest request hashing of all types.
hash() { agent u1 hash "{\"Types\":15,\"Key\":\"$key\",\"Mapping\":[$1]}" >/dev/null; }

# arrived prints the number of packets that came to the guest on each queue.
arrived() {
	netbackd show "$vif" | awk '/^QUEUE *WORKER/ { on = 1; next } !NF { on = 0 } on { printf "%s ", $4 }'
}

# chosen_by WHO succeeds if netbackd reports that WHO chooses queues.
chosen_by() { netbackd show "$vif" | grep "queues chosen by $1"; }

# flows N makes N flows of TCP to the guest.
flows() { iperf3 -c 10.0.0.2 -P "$1" -n 300K >/tmp/flows || fail "flows: $(tail -n 3 /tmp/flows)"; }

# only QUEUE fails unless all packets since $before came on this queue.
only() {
	local n i=0
	for n in $(arrived); do
		set -- "$1" "${before[i]}"
		[ $((n - $2 > 0)) = $((i == $1)) ] || fail "table says queue $1: before ${before[*]}, now $(arrived)"
		i=$((i + 1))
	done
}

# follows QUEUES WHO fails unless packets follow each of several tables.
follows() {
	local q
	for q in $(($1 - 1)) 0 1; do
		hash "$q,$q,$q"
		chosen_by "$2" || fail "chosen otherwise: $(netbackd show "$vif" | grep hashing)"
		read -ra before <<<"$(arrived)"
		flows 2
		only "$q"
	done
	hash ""
	read -ra before <<<"$(arrived)"
	flows 12
	say "$2, $1 queues, 12 flows: before ${before[*]}, after $(arrived)"
	local n i=0 used=0
	for n in $(arrived); do
		[ $((n - before[i])) -lt 10 ] || used=$((used + 1))
		i=$((i + 1))
	done
	[ $used -ge 2 ]
}

# connect FRONT
connect() { agent u1 reconnect "{\"front\":$1}" >/dev/null; }

start_netbackd --max-queues=4 --control-ring=both
make_bridge
guest u1 memory=256 cmdline=no-netfront file=/host/netbackd-lab
vif=$(vif u1)
slots4='{"control":true,"strict":true,"queues":4,"split_events":true}'
slots2='{"control":true,"strict":true,"queues":2}'
stream2='{"control":true,"strict":true,"queues":2,"stream":true}'
start_agent u1 "{\"addrs\":[\"10.0.0.2/24\"],\"front\":$slots4}"
eventually 240 "the guest answers" reach 10.0.0.2
in_guest u1 "iperf3 -s -D"

follows 4 "hash, in the kernel"
connect "$slots2"
follows 2 "hash, in the kernel"
[ "$(agent_stat u1 rx_hash)" -gt 100 ]
same "packets on another queue" "$(agent_stat u1 rx_astray)" 0

# A table with more entries than the ring has bytes.
connect "$stream2"
table=$(seq -s, 128 | sed 's/[0-9]*[02468]\(,\|$\)/0\1/g; s/[0-9]*[13579]\(,\|$\)/1\1/g')
hash "$table"
netbackd show "$vif" | grep '^control ring *stream, '
netbackd show "$vif" | grep '^hash mapping *128 entries'
hash "1"
read -ra before <<<"$(arrived)"
flows 3
only 1
n=$(agent_stat u1 rx_hash)

# The next netbackd has the guest's settings, and chooses queues itself.
hash "0"
kill_netbackd
start_netbackd --max-queues=4 --control-ring=both --bpf=false --static-grants=0
eventually 240 "netbackd chooses" chosen_by "hash, in netbackd"
read -ra before <<<"$(arrived)"
flows 3
only 0
hash "1"
netbackd show "$vif" | grep '^control ring *stream, '
read -ra before <<<"$(arrived)"
flows 3
only 1
same "packets that told a hash over byte streams" "$(agent_stat u1 rx_hash)" "$n"

connect "$slots4"
follows 4 "hash, in netbackd"
connect "$slots2"
follows 2 "hash, in netbackd"
same "packets on another queue" "$(agent_stat u1 rx_astray)" 0
for type in 8 9 10; do
	same "message $type without static grants" "$(agent u1 control "{\"type\":$type}" | grep -c '"status":1,"data":0')" 1
done
netbackd show "$vif"
innocent_after_kill u1
agent u1 quit
