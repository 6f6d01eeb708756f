# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# xl gives a running guest a vif and takes it away again, three times over, and two
# at once. xl network-list shows them. It takes the backend for broken when that needs
# 10 s for a step.

guest_has() { in_guest u1 "test -e /sys/class/net/$1"; }

# connected MAC...: does xl list these as connected?
connected() {
	local mac list
	list=$(xl network-list u1)
	for mac; do grep -qE " $mac +[0-9]+ +4 " <<<"$list" || return; done
}

start_netbackd
make_bridge
guest u1 vif=
for round in 1 2 3; do
	within 30000 "attach $round" xl network-attach u1 "mac=$(mac 90)" bridge=xenbr0
	eventually 60 "the guest has eth0" guest_has eth0
	address u1 10.0.0.2/24
	eventually 60 "the guest answers" reach 10.0.0.2
	eventually 30 "xl lists the vif as connected" connected "$(mac 90)"
	within 30000 "detach $round" xl network-detach u1 "$(mac 90)"
	eventually 60 "the guest has no eth0" not guest_has eth0
	eventually 30 "no interface is left" not test -e "/sys/class/net/$(vif u1)"
	same "vifs" "$(xl network-list u1 | grep -c 00:16 || true)" 0
done
within 30000 "attach a first one" xl network-attach u1 "mac=$(mac 91)" bridge=xenbr0
within 30000 "attach a second one" xl network-attach u1 "mac=$(mac 92)" bridge=xenbr0
eventually 60 "both are connected" connected "$(mac 91)" "$(mac 92)"
xl network-list u1
netbackd list
same "vifs in netbackd" "$(netbackd list | grep -c ' connected ')" 2
within 30000 "detach the second one" xl network-detach u1 1
same "vifs in netbackd" "$(netbackd list | grep -c ' connected ')" 1
