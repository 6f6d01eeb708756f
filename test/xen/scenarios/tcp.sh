# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# TCP both ways between dom0 and a guest, with segmentation and checksum offload:
# iperf3 for the rate, and streams whose checksums are compared.

start_netbackd
make_bridge
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
iperf3 -s -D
say "from the guest: $(in_guest u1 "iperf3 -c $DOM0 -t 3 -f m | grep receiver")"
say "to the guest:   $(in_guest u1 "iperf3 -c $DOM0 -t 3 -f m -R | grep receiver")"
exchange dom0 "$DOM0" u1 10.0.0.2 4
netbackd list
