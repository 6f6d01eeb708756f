# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# processors: 2
#
# A guest with four vcpus is offered four queues and uses them. Flows spread over them in both
# directions, in packets larger than the MTU, and arrive with right checksums.

start_netbackd --max-queues 4
make_bridge
guest u1 vcpus=4
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
front=/local/domain/${DOMID[u1]}/device/vif/0
same "multi-queue-num-queues" "$(xenstore-read "$front/multi-queue-num-queues")" 4
same "rings" "$(xenstore-ls -f "$front" | grep -c 'queue-[0-3]/[rt]x-ring-ref')" 8
same "queues of the interface" "$(find "/sys/class/net/$(vif u1)/queues" -name 'tx-*' | wc -l)" 4
iperf3 -s -D
say "8 flows from the guest: $(in_guest u1 "iperf3 -c $DOM0 -P 8 -n 24M -f m | grep SUM.*receiver")"
say "8 flows to the guest:   $(in_guest u1 "iperf3 -c $DOM0 -P 8 -n 24M -f m -R | grep SUM.*receiver")"
exchange dom0 "$DOM0" u1 10.0.0.2 4
netbackd show "$(vif u1)"
# One line per queue, numbers of packets in the third and fourth column.
used=$(netbackd show "$(vif u1)" | awk '/^QUEUE/ { on = 1; next } !NF { on = 0 } on && $3 > 50 { tx++ } on && $4 > 50 { rx++ } END { print tx + 0, rx + 0 }')
say "queues with traffic from and to the guest: $used"
[ "${used% *}" -ge 2 ]
[ "${used#* }" -ge 2 ]
[ "$(counter "$(vif u1)" tx_gso)" -gt 0 ]
[ "$(counter "$(vif u1)" rx_gso)" -gt 0 ]
same "wrong checksums in dom0" "$(bad_sums dom0)" 0
same "wrong checksums in the guest" "$(bad_sums u1)" 0
