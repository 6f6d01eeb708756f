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
#   C   netbackd, and our own frontend: grant copies
#   S   the same with static grants
#
# and letters for the rest:
#
#   T   with hypercalls and system calls traced
#   L   pings beside a process that spins in dom0


# measure GUEST BACKEND [ARGUMENT...]
measure() {
	local guest=$1 backend=$2
	shift 2
	PHASE+=1
	GODEBUG=asyncpreemptoff=1 bench phase -boot "$BOOT" -phase $PHASE -backend "$backend" -vif "$(vif "$guest")" \
		-reps "$REPS" -scale "$SCALE" -only "$ONLY" -out /host/records "$@"
}

# alone GUEST ARGUMENT... makes the guest, unless it exists. It destroys all others, since the
# machine's instructions are counted.
alone() {
	local guest=$1 other
	shift
	[ -z "${DOMID[$guest]:-}" ] || return 0
	for other in "${!DOMID[@]}"; do destroy "$other"; done
	guest "$guest" file=/usr/sbin/bench "$@"
}

# network BACKEND [ARGUMENT...]: attaches the vif, measures, and detaches it.
network() {
	local backend=$1
	shift
	within 60000 "attach a vif of $backend" xl network-attach u1 "mac=$(mac 1)" bridge=xenbr0
	eventually 60 "the guest has eth0" in_guest u1 "test -e /sys/class/net/eth0"
	address u1 10.0.0.2/24
	eventually 60 "the guest answers" reach 10.0.0.2
	measure u1 "$backend" -address 10.0.0.2 "$@"
	within 60000 "detach it" xl network-detach u1 "$(mac 1)"
	eventually 60 "the guest has no eth0" not in_guest u1 "test -e /sys/class/net/eth0"
	eventually 60 "no interface is left" not test -e "/sys/class/net/$(vif u1)"
}

# stock makes the guest with xen-netfront.
stock() {
	if [ -z "${DOMID[u1]:-}" ]; then
		alone u1 vif=
		in_guest u1 "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; GODEBUG=asyncpreemptoff=1 /bench serve >/dev/console 2>&1 &"
	fi
	stop_backend
}

kernel() {
	stock
	modprobe xen-netback
	network kernel "$@"
	modprobe -r xen-netback
}

netbackd_() {
	stock
	start_backend
	network netbackd -daemon "$NETBACKD" "$@"
}

start_backend() {
	# For pages that netbackd grants to itself. Older ones do not use it.
	modprobe xen-gntalloc limit=16384
	# shellcheck disable=SC2086 # a list
	[ "$NETBACKD" ] || start_netbackd $ARGUMENTS
}
stop_backend() { [ -z "$NETBACKD" ] || stop_netbackd; }

# frames BACKEND FRONT [ARGUMENT...] measures our own frontend, whose arguments are FRONT.
frames() {
	local backend=$1 front=$2
	shift 2
	start_backend
	alone u2 memory=256 cmdline=no-netfront
	in_guest u2 "GODEBUG=asyncpreemptoff=1 /bench front $front >/dev/console 2>&1 &"
	connects u2
	# Without a bridge packets go nowhere.
	ip link set "$(vif u2)" nomaster
	measure u2 "$backend" -daemon "$NETBACKD" "$@"
	in_guest u2 "killall bench"
	eventually 60 "netbackd has closed" node "$(backend u2)/state" 6
}

# phase WORD measures one phase of ORDER.
phase() {
	local word=$1 rest=${1:1} options=()
	while [ "$rest" ]; do
		case $rest in
		T*) options+=(-trace) ;;
		L*) options+=(-latency -reps 1) ;;
		*) fail "order: $word" ;;
		esac
		rest=${rest:1}
	done
	case $word in
	K*) kernel "${options[@]}" ;;
	N*) netbackd_ "${options[@]}" ;;
	C*) frames copy "" "${options[@]}" ;;
	S*) frames static -static "${options[@]}" ;;
	*) fail "order: $word" ;;
	esac
}

. /host/parameters
declare -i PHASE=0
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
make_bridge
for word in $ORDER; do phase "$word"; done
