# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Two guests on one bridge: netbackd moves packets from the ring of one guest into that of the
# other, and large TCP packets unsegmented. dom0 is not an end of the connection.

start_netbackd
make_bridge
make_guest u1
make_guest u2
up u1 u2
address u1 10.0.0.2/24
address u2 10.0.0.3/24
eventually 240 "the first guest answers" reach 10.0.0.2
eventually 240 "the second guest answers" reach 10.0.0.3
pings u1 10.0.0.3
in_guest u1 "iperf3 -s -D"
say "from one to the other: $(in_guest u2 "iperf3 -c 10.0.0.2 -t 3 -f m | grep receiver")"
say "and back:              $(in_guest u2 "iperf3 -c 10.0.0.2 -t 3 -f m -R | grep receiver")"
exchange u1 10.0.0.2 u2 10.0.0.3 3
netbackd list
