# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Two guests on one bridge: what one sends, netbackd takes from its ring and puts
# into the other's, large TCP packets as they are, without dom0 as an end of the
# connection.

start_netbackd
make_bridge
guest u1
guest u2
address u1 10.0.0.2/24
address u2 10.0.0.3/24
eventually 60 "the first guest answers" reach 10.0.0.2
eventually 60 "the second guest answers" reach 10.0.0.3
in_guest u1 "ping -q -c 5 -i 0.2 -W 5 10.0.0.3" | tail -n 1
in_guest u1 "iperf3 -s -D"
say "from one to the other: $(in_guest u2 "iperf3 -c 10.0.0.2 -t 3 -f m | grep receiver")"
say "and back:              $(in_guest u2 "iperf3 -c 10.0.0.2 -t 3 -f m -R | grep receiver")"
begin_transfer u1 u2 10.0.0.3 5001 8
begin_transfer u2 u1 10.0.0.2 5002 8
end_transfer u2 5001 8 240
end_transfer u1 5002 8 240
netbackd list
