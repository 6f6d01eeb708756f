# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest unloads its xen-netfront and loads it again, three times. netbackd follows it to
# Closed, offers the vif again when it is back, and traffic flows.

start_netbackd
make_bridge
guest u1
# A device that is bound keeps its driver's module.
unload="echo vif-0 >/sys/bus/xen/drivers/vif/unbind && rmmod xen-netfront"
for round in 1 2 3; do
	address u1 10.0.0.2/24
	eventually 240 "the guest answers" reach 10.0.0.2
	within 180000 "unload $round" in_guest u1 "$unload"
	becomes 240 "netbackd has closed, too" "$(backend u1)/state" 6
	within 180000 "load $round" in_guest u1 "modprobe xen-netfront"
	connects u1
done
address u1 10.0.0.2/24
exchange dom0 "$DOM0" u1 10.0.0.2 4
netbackd list
