# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest with a stock xen-netfront attaches XDP programs: they drop, pass, find the Ethernet
# header, answer pings themselves, and redirect them to another interface, first with the
# kernel's xen-netback. Then netbackd adopts the vif with a program attached. A program stays
# attached while netbackd is killed, and while the vif is moved to the kernel and back. Programs
# are attached and detached while streams run. Another guest is saved and restored with one.

install_scripts
load_netback
start_netbackd
make_bridge
make_bridge xenbr1 10.1.0.254/24
guest u1 vif="bridge=xenbr0 bridge=xenbr1" memory=256 file=/host/netbackd-lab
declare -A IP=([u1]=10.0.0.2 [u2]=10.0.0.3)
address u1 10.0.0.2/24
address u1 10.1.0.1/24 eth1
eventually 240 "the guest answers" reach 10.0.0.2
# A guest that drops all packets does not answer ARP either.
ip neighbour replace 10.0.0.2 lladdr "$(xenstore-read "$(backend u1)/mac")" nud permanent dev xenbr0
kernels u1
vif=$(vif u1)

# attach NAME PROGRAM [TO] attaches a program to eth0.
attach() {
	in_guest "$1" "/netbackd-lab guest xdp eth0 ${*:2} >/tmp/xdp.out 2>&1 &
		echo \$! >/tmp/xdp.pid
		until grep -q attached /tmp/xdp.out; do
			kill -0 \$! || { cat /tmp/xdp.out; exit 1; }
			sleep 0.1
		done"
}

# detach NAME
detach() {
	in_guest "$1" "kill \$(cat /tmp/xdp.pid); while kill -0 \$(cat /tmp/xdp.pid); do sleep 0.1; done 2>/dev/null"
}

# answered NAME WHAT fails unless six pings come back, each without a time limit.
answered() {
	say "-- $1, with $2"
	for _ in 1 2 3 4 5 6; do
		ping -q -c 1 -W 30 "${IP[$1]}" >/dev/null || fail "$1: a ping is lost with $2"
	done
}

# unanswered NAME WHAT: none of six pings comes back, nor does any come to the guest's
# stack.
unanswered() {
	local before got
	say "-- $1, with $2"
	taken "$1"
	before=$TAKEN
	got=$({ ping -q -c 6 -i 0.2 -W 2 "${IP[$1]}" || true; } | sed -n 's/.* \([0-9]*\) packets received.*/\1/p; s/.* \([0-9]*\) received.*/\1/p')
	same "$1: pings that came back with $2" "$got" 0
	taken "$1"
	same "$1: pings that came to the stack with $2" "$TAKEN" "$before"
}

# taken NAME sets TAKEN to the number of pings that have come to the stack of a guest.
taken() { TAKEN=$(in_guest "$1" "awk '/^Icmp: [0-9]/ { print \$10 }' /proc/net/snmp"); }

# from NAME DEVID prints the number of packets that have come from an interface.
from() { cat "/sys/class/net/$(vif "$1" "$2")/statistics/rx_packets"; }

# programs NAME checks the effect of each program on pings.
programs() {
	attach "$1" drop
	unanswered "$1" "a program that drops all"
	detach "$1"
	attach "$1" pass
	answered "$1" "one that lets all pass"
	detach "$1"
	attach "$1" echo
	taken "$1"
	before=$TAKEN
	answered "$1" "one that answers by itself"
	taken "$1"
	same "pings that came to the stack of $1 meanwhile" "$TAKEN" "$before"
	detach "$1"
	attach "$1" redirect eth1
	before=$(from "$1" 1)
	unanswered "$1" "one that sends pings out by eth1"
	redirected() { [ $(($(from "$1" 1) - before)) -ge 6 ]; }
	eventually 60 "the pings that $1 redirected come out of eth1" redirected "$1"
	detach "$1"
	answered "$1" "no program"
}

# The kernel's driver may read the key for the headroom too early, since netfront writes its
# state before the key. Then a program finds packets at the wrong offset.
say "-- beside the kernel's driver"
attach u1 drop
unanswered u1 "a program that drops all"
detach u1
attach u1 pass
answered u1 "one that lets all pass"
detach u1
attach u1 ip
same "backend" "$(xenstore-read "$(backend u1)/state")" 8

say "-- adopted with that program"
within 180000 "adopt" netbackd adopt "$vif"
not kernels u1
answered u1 "it, and netbackd"
netbackd show "$vif" | grep "xdp headroom *256 bytes"
detach u1
programs u1

say "-- streams both ways through a program, which comes and goes"
begin_streams u1 10.0.0.2
for _ in 1 2 3; do
	attach u1 ip
	eventually_moves 240 300000
	detach u1
	eventually_moves 240 300000
done
attach u1 ip
eventually_moves 240 1000000
netbackd show "$vif" | grep -E "xdp|segmented|csum_completed"

say "-- netbackd is killed and started again"
kill_netbackd
start_netbackd
eventually 240 "the guest answers" reach 10.0.0.2
answered u1 "the program, and another netbackd"
eventually_moves 240 1000000
end_streams u1

say "-- to the kernel and back"
within 180000 "release" netbackd release "$vif"
kernels u1
answered u1 "the program, and the kernel's driver"
within 180000 "adopt" netbackd adopt "$vif"
not kernels u1
answered u1 "the program, and netbackd again"
detach u1
attach u1 drop
unanswered u1 "one that drops all"
destroy u1

say "-- saved and restored with a program"
guest u2 vif=bridge=xenbr0,script=vif-netbackd memory=192 file=/host/netbackd-lab
address u2 10.0.0.3/24
eventually 240 "the guest answers" reach 10.0.0.3
attach u2 ip
answered u2 "a program"
within 240000 "xl save" xl save u2 /tmp/u2.save 2>/dev/null
within 240000 "xl restore" xl restore /tmp/u2.save 2>/dev/null
rm /tmp/u2.save
DOMID[u2]=$(xl domid u2)
connects u2
eventually 240 "the guest answers" reach 10.0.0.3
answered u2 "the program of a guest that was restored"
netbackd show "$(vif u2)" | grep "xdp headroom *256 bytes"
detach u2
answered u2 "none"
