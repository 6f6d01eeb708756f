# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The kernel's netback and netbackd serve the same vif of the same guest, one after the other,
# and do the same work. Both also serve a guest with our own frontend, netbackd with grant
# copies and with static grants.
#
# Each word of ORDER is a phase: a letter for the back end,
#
#   K   the kernel's netback
#   N   netbackd
#   P   netbackd without io_uring
#   F   the kernel's netback, and our own frontend
#   C   netbackd, and our own frontend: grant copies
#   S   the same with static grants
#
# and letters for the rest:
#
#   T   with hypercalls and system calls traced
#   L   pings beside a process that spins in dom0
#   4   four queues, of a guest with four virtual processors; else one
#   O   the guest leaves no segmentation to its network card
#   A   netbackd finds no device for pages that it can grant to itself

# measure GUEST BACKEND [ARGUMENT...]
measure() {
	local guest=$1 backend=$2
	shift 2
	PHASE+=1
	# netbackd collects garbage once when nothing has connected for some seconds.
	pause 5
	[ -z "$NETBACKD" ] || set -- -daemon "$NETBACKD" "$@"
	GODEBUG=asyncpreemptoff=1 bench phase -boot "$BOOT" -dom0 "$KERNEL" -setup "$SETUP" -phase $PHASE -backend "$backend" \
		-vif "$(vif "$guest")" -reps "$REPS" -scale "$SCALE" -only "$ONLY" -out /host/records "$@"
}

# alone GUEST ARGUMENT... makes the guest, unless it exists. It destroys all others, since the
# machine's instructions are counted.
alone() {
	local guest=$1 other
	shift
	[ -z "${DOMID[$guest]:-}" ] || return 0
	for other in "${!DOMID[@]}"; do destroy "$other"; done
	guest "$guest" vif= file=/usr/sbin/bench kernel="${KERNEL:-bookworm}" "$@"
}

# attach GUEST BACKEND attaches a vif, which detach GUEST takes away.
attach() { within 60000 "attach a vif of $2" xl network-attach "$1" "mac=$(mac 1)" bridge=xenbr0; }
detach() {
	within 60000 "detach it" xl network-detach "$1" "$(mac 1)"
	eventually 60 "no interface is left" not test -e "/sys/class/net/$(vif "$1")"
}

# network BACKEND [ARGUMENT...] measures the guest with xen-netfront.
network() {
	local backend=$1 guest=u$VCPUS
	shift
	if [ -z "${DOMID[$guest]:-}" ]; then
		alone "$guest" vcpus="$VCPUS"
		in_guest "$guest" "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; GODEBUG=asyncpreemptoff=1 /bench serve >/dev/console 2>&1 &"
	fi
	attach "$guest" "$backend"
	eventually 60 "the guest has eth0" in_guest "$guest" "test -e /sys/class/net/eth0"
	address "$guest" 10.0.0.2/24
	[ -z "$WITHOUT" ] || in_guest "$guest" "ethtool -K eth0 $WITHOUT"
	eventually 60 "the guest answers" reach 10.0.0.2
	same "queues" "$(in_guest "$guest" "ls -d /sys/class/net/eth0/queues/tx-* | wc -l")" "$VCPUS"
	measure "$guest" "$backend" -address 10.0.0.2 "$@"
	detach "$guest"
	eventually 60 "the guest has no eth0" not in_guest "$guest" "test -e /sys/class/net/eth0"
}

# frames BACKEND FRONT [ARGUMENT...] measures our own frontend, whose arguments are FRONT.
frames() {
	local backend=$1 front=$2
	shift 2
	alone u0 memory=256 cmdline=no-netfront
	attach u0 "$backend"
	in_guest u0 "GODEBUG=asyncpreemptoff=1 /bench front $front >/dev/console 2>&1 &"
	connects u0
	# Without a bridge packets go nowhere.
	ip link set "$(vif u0)" nomaster
	measure u0 "$backend" "$@"
	in_guest u0 "killall bench"
	eventually 60 "the back end has closed" node "$(backend u0)/state" 6
	detach u0
}

# kernel starts the kernel's netback, which has to be removed.
kernel() {
	[ -z "$NETBACKD" ] || stop_netbackd
	modprobe xen-netback max_queues="$VCPUS"
}

# netbackd_ ARGUMENT... starts netbackd, unless it runs with the same arguments.
netbackd_() {
	if [ "$NETBACKD" ] && [ "$RUNS" != "$OWN $*" ]; then stop_netbackd; fi
	[ -z "$NETBACKD" ] || return 0
	RUNS="$OWN $*"
	if [ "$OWN" ]; then
		modprobe xen-gntalloc limit=16384
	elif [ -d /sys/module/xen_gntalloc ]; then
		modprobe -r xen-gntalloc
	fi
	# shellcheck disable=SC2086 # a list
	start_netbackd $ARGUMENTS "$@"
}

# phase WORD measures one phase of ORDER.
phase() {
	local word=$1 rest=${1:1} options=() queues=()
	SETUP='' VCPUS=1 WITHOUT='' OWN=yes
	while [ "$rest" ]; do
		case $rest in
		T*) options+=(-trace) ;;
		L*) options+=(-latency -reps 1) ;;
		4*) queues=(--max-queues 4) VCPUS=4 SETUP+="${SETUP:+, }4 queues" ;;
		O*) WITHOUT="tso off gso off" SETUP+="${SETUP:+, }guest without TSO" ;;
		A*) OWN='' SETUP+="${SETUP:+, }copies by address" ;;
		*) fail "order: $word" ;;
		esac
		rest=${rest:1}
	done
	case $word in
	[KF]*) kernel ;;
	P*) netbackd_ --io-uring=false "${queues[@]}" ;;
	*) netbackd_ "${queues[@]}" ;;
	esac
	case $word in
	K*) network kernel "${options[@]}" ;;
	N*) network netbackd "${options[@]}" ;;
	P*) network plain "${options[@]}" ;;
	F*) frames kernel "" "${options[@]}" ;;
	C*) frames copy "" "${options[@]}" ;;
	S*) frames static -static "${options[@]}" ;;
	*) fail "order: $word" ;;
	esac
	case $word in
	[KF]*) modprobe -r xen-netback ;;
	esac
}

# shellcheck source=/dev/null
. /host/parameters
declare -i PHASE=0
RUNS=
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
make_bridge
for word in $ORDER; do phase "$word"; done
