# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Two guests on two bridges cannot reach each other. xl attaches another vif on the other's
# bridge to one of them, and they exchange packets there, while the first vif still works. xl
# detaches it, and they cannot reach each other again.

start_netbackd
make_bridge xenbr0 10.0.0.1/24
make_bridge xenbr1 10.0.1.1/24
make_guest u1 vif=bridge=xenbr0
make_guest u2 vif=bridge=xenbr1
up u1 u2
address u1 10.0.0.2/24
address u2 10.0.1.3/24
eventually 240 "the first guest answers" reach 10.0.0.2
eventually 240 "the second guest answers" reach 10.0.1.3

# The address of the other is set by hand, so that no ARP request is needed.
# A bridge learns the source of every frame.
heard_of() { bridge fdb show br xenbr1 | grep "$1" >/dev/null; }
in_guest u1 "ip address add 10.0.1.2/24 dev eth0 && arp -i eth0 -s 10.0.1.3 $(mac 2)"
on u1 "ping -c 3 -i 0.2 -W 1 10.0.1.3 && exit 1; true" | grep transmitted
on u1 "ping -c 3 -i 0.2 -W 1 -b 10.0.1.255; arping -c 2 -I eth0 10.0.1.9; true" >/dev/null
heard_of "$(mac 2)"
not heard_of "$(mac 1)"
in_guest u1 "arp -d 10.0.1.3; ip address del 10.0.1.2/24 dev eth0"

within 180000 "attach" xl network-attach u1 "mac=$(mac 99)" bridge=xenbr1
connects u1 1
xl network-list u1
not heard_of "$(mac 1)"
address u1 10.0.1.2/24 eth1
pings u1 10.0.1.3
pings u2 10.0.1.2
begin_transfer u1 u2 10.0.1.3 5001 4
begin_transfer dom0 u1 10.0.0.2 5002 4
end_transfer u2 5001 4 240
end_transfer u1 5002 4 240
heard_of "$(mac 99)"
netbackd list
within 180000 "detach" xl network-detach u1 1
on u2 "ping -c 2 -i 0.2 -W 1 10.0.1.2 && exit 1; true" | grep transmitted
reach 10.0.0.2 >/dev/null
reach 10.0.1.3 >/dev/null
