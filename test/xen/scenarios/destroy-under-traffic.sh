# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# processors: 2
#
# xl destroys a guest while TCP runs both ways. netbackd unmaps every page, so that no dying
# domain stays. Meanwhile it serves another guest, and afterwards the next one.

start_netbackd
make_bridge
make_guest u1
make_guest u2
up u1 u2
address u1 10.0.0.2/24
address u2 10.0.0.3/24
eventually 240 "the first guest answers" reach 10.0.0.2
eventually 240 "the second guest answers" reach 10.0.0.3
iperf3 -s -D
iperf3 -s -D -p 5202
in_guest u1 "
	iperf3 -c $DOM0 -t 600 >/dev/null 2>&1 &
	iperf3 -c $DOM0 -p 5202 -t 600 -R >/dev/null 2>&1 &"
eventually_moves 240 10000000
netbackd list
destroy u1
gone() { ! xl list | grep -E 'null|u1'; }
eventually 240 "the domain is gone" gone
pings dom0 10.0.0.3
guest u3
address u3 10.0.0.4/24
eventually 240 "the next guest answers" reach 10.0.0.4
