# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# xl makes a guest with a stock kernel; the stock vif-bridge puts its vif on a
# bridge. Pings of all sizes pass both ways, and netbackd lists the vif.

start_netbackd
make_bridge
guest u1
address u1 10.0.0.2/24
eventually 60 "the guest answers" reach 10.0.0.2
for size in 0 56 1472 1473 4000 30000; do
	say "pings with $size octets, from dom0 and from the guest"
	ping -q -c 5 -i 0.2 -W 5 -s $size 10.0.0.2 | tail -n 1
	in_guest u1 "ping -q -c 5 -i 0.2 -W 5 -s $size $DOM0" | tail -n 1
done
netbackd list | grep -E "^vif${DOMID[u1]}\.0 +${DOMID[u1]} +connected "
same "hotplug-status" "$(xenstore-read "backend/vif/${DOMID[u1]}/0/hotplug-status")" connected
