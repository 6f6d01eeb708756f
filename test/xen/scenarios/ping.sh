# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# xl creates a guest with a stock kernel; the stock vif-bridge adds its vif to a bridge. Pings
# of all sizes pass both ways, and netbackd lists the vif.

start_netbackd
make_bridge
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
for size in 0 56 1472 1473 4000 30000; do
	pings dom0 10.0.0.2 -s $size
	pings u1 "$DOM0" -s $size
done
netbackd list | grep -E "^vif${DOMID[u1]}\.0 +${DOMID[u1]} +connected "
same "hotplug-status" "$(xenstore-read "backend/vif/${DOMID[u1]}/0/hotplug-status")" connected
