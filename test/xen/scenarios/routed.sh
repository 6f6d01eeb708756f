# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Vifs without a bridge: the stock vif-route and vif-nat add a route to the guest in dom0 and
# answer ARP for it.

start_netbackd
make_bridge
guest u1 "vif=script=vif-route,ip=192.168.7.2,gatewaydev=xenbr0 script=vif-nat"
for devid in 0 1; do
	same "hotplug-status" "$(xenstore-read "$(backend u1 $devid)/hotplug-status")" connected
	connects u1 $devid
done
ip route | grep vif
address u1 192.168.7.2/32
in_guest u1 "ip route add $DOM0 dev eth0"
eventually 240 "the guest answers by vif-route" reach 192.168.7.2
pings u1 "$DOM0"

# vif-nat computes addresses from the numbers of domain and device.
ip=10.$((DOMID[u1] / 256)).$((DOMID[u1] % 256)).2
address u1 $ip/16 eth1
eventually 240 "the guest answers by vif-nat" reach $ip
pings u1 "${ip%.*}.129"
exchange dom0 "${ip%.*}.129" u1 192.168.7.2 4
netbackd list
