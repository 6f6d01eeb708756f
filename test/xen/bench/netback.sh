# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The kernel's netback and netbackd serve the same vif of the same guest, one after
# the other, and do the same work.

# phase BACKEND [ARGUMENT...]: attaches the vif, measures, and detaches it.
phase() {
	local backend=$1
	shift
	PHASE+=1
	within 60000 "attach a vif of $backend" xl network-attach u1 "mac=$(mac 1)" bridge=xenbr0
	eventually 60 "the guest has eth0" in_guest u1 "test -e /sys/class/net/eth0"
	address u1 10.0.0.2/24
	eventually 60 "the guest answers" reach 10.0.0.2
	GODEBUG=asyncpreemptoff=1 bench phase -boot "$BOOT" -phase $PHASE -backend "$backend" -reps "$REPS" -scale "$SCALE" -only "$ONLY" -out /host/records "$@"
	within 60000 "detach it" xl network-detach u1 "$(mac 1)"
	eventually 60 "the guest has no eth0" not in_guest u1 "test -e /sys/class/net/eth0"
	eventually 60 "no interface is left" not test -e "/sys/class/net/$(vif u1)"
}

kernel() {
	modprobe xen-netback
	phase kernel "$@"
	modprobe -r xen-netback
}

netbackd_() {
	# shellcheck disable=SC2086 # a list
	start_netbackd $NETBACKD_ARGS
	phase netbackd -daemon "$NETBACKD" "$@"
	stop_netbackd
}

. /host/parameters
declare -i PHASE=0
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
make_bridge
guest u1 vif= file=/usr/sbin/bench
in_guest u1 "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; GODEBUG=asyncpreemptoff=1 /bench serve >/dev/console 2>&1 &"
for order in $ORDER; do
	case $order in
	K) kernel ;;
	N) netbackd_ ;;
	# With hypercalls and system calls counted.
	KT) kernel -trace ;;
	NT) netbackd_ -trace ;;
	esac
done
