# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Network options of a guest's configuration, each on a separate vif. With an MTU of 9000 large
# pings pass in one piece; a rate limits all queues of the vif together; a renamed interface is
# found by the next netbackd.

start_netbackd --max-queues 2
make_bridge xenbr0 10.0.0.1/24
make_bridge xenbr9 10.0.9.1/24
ip link set xenbr9 mtu 9000
guest u1 vcpus=2 "vif=bridge=xenbr9,mtu=9000 bridge=xenbr0,rate=8Mb/s bridge=xenbr0,vifname=web0"
# The script uses the interface's name as the vif's when it writes the MTU for the guest.
xenstore-rm /local/domain/web0 2>/dev/null || true
netbackd list

say "mtu"
pieces() { on "$1" "awk '/^Ip: [0-9]/ { print \$15, \$19 }' /proc/net/snmp"; }
in_guest u1 "ip link set eth0 mtu 9000"
address u1 10.0.9.2/24
eventually 240 "the guest answers" reach 10.0.9.2
before="$(pieces dom0) $(pieces u1)"
pings dom0 10.0.9.2 -s 8972
pings u1 10.0.9.1 -s 8972
same "packets in pieces" "$(pieces dom0) $(pieces u1)" "$before"
ping -q -c 1 -s 8973 10.0.9.2 | tail -n 1
[ "$(pieces dom0) $(pieces u1)" != "$before" ]
netbackd show "$(vif u1)" | grep '^mtu '
exchange dom0 10.0.9.1 u1 10.0.9.2 3

say "rate"
address u1 10.0.0.2/24 eth1
eventually 240 "the guest answers" reach 10.0.0.2
iperf3 -s -D
# from_guest and to_guest set RATE to the kbit/s of iperf3.
from_guest() { RATE=$(in_guest u1 "iperf3 -c $DOM0 -P 8 -t 5 -f k" | awk '/SUM.*receiver/ { print $6 }'); }
to_guest() { RATE=$(in_guest u1 "iperf3 -c $DOM0 -t 2 -f k -R" | awk '/receiver/ { print $7 }'); }
# above KBIT COMMAND succeeds if one of four measurements exceeds KBIT. This machine may
# stop for a while.
above() {
	local try
	for try in 1 2 3 4; do
		"$2"
		say "$2, try $try: $RATE kbit/s"
		[ "$RATE" -le "$1" ] || return 0
	done
	fail "$2: $RATE kbit/s"
}
above 4000 from_guest # 8 flows, which are faster without a limit, also on a slow machine
[ "$RATE" -lt 9200 ]
netbackd show "$(vif u1 1)"
used=$(netbackd show "$(vif u1 1)" | awk '/^QUEUE/ { on = 1; next } !NF { on = 0 } on && $3 > 50 { n++ } END { print n + 0 }')
same "queues with traffic" "$used" 2
[ "$(counter "$(vif u1 1)" rate_waits)" -gt 0 ]
above 9200 to_guest # which has no limit

say "vifname"
in_guest u1 "ip link set eth1 down"
address u1 10.0.0.3/24 eth2
eventually 240 "the guest answers" reach 10.0.0.3
same "interface" "$(netbackd show web0 | grep -E '^(vif|interface) ' | xargs)" \
	"vif $(vif u1 2) (domain ${DOMID[u1]}, device 2) interface web0, up, carrier on"
kill_netbackd
start_netbackd --max-queues 2
eventually 240 "the guest answers" reach 10.0.0.3
netbackd show web0 | grep -E '^interface +web0, up, carrier on'
same "interfaces of this vif" "$(cd /sys/class/net && echo web0* "$(vif u1 2)"*)" "web0 $(vif u1 2)*"
