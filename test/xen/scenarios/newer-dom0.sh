# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# kernel: trixie
# xenstored: oxenstored
#
# A dom0 with Linux 6.12 and the other xenstored: io_uring, ping, TCP both ways,
# attach and detach.

start_netbackd
make_bridge
[[ $(uname -r) = 6.12.* ]]
pidof oxenstored
grep '"io_uring": "in use"' /tmp/netbackd.log
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
pings dom0 10.0.0.2 -s 4000
exchange dom0 "$DOM0" u1 10.0.0.2 4
within 180000 "attach" xl network-attach u1 "mac=$(mac 90)" bridge=xenbr0
in_guest u1 "until test -e /sys/class/net/eth1; do sleep 0.1; done" 240
connected() { [ "$(netbackd list | grep -c " connected ")" = "$1" ]; }
eventually 240 "both are connected" connected 2
within 180000 "detach" xl network-detach u1 "$(mac 90)"
eventually 240 "no interface is left" not test -e "/sys/class/net/$(vif u1 1)"
netbackd list
