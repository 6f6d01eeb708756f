# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# TCP over IPv4 and IPv6, both ways. In the first case segmentation and checksums are offloaded,
# and packets larger than the MTU arrive. In the second case the sender does both (except that
# xen-netfront always offloads IPv4 checksums): no such packet arrives in the guest, and netbackd
# merges those from the guest. In both cases the receiver finds no wrong checksum, and every byte
# is right.

# arrived WHERE INTERFACE prints the number of packets and of bytes that have arrived there.
arrived() { on "$1" "cat /sys/class/net/$2/statistics/rx_packets /sys/class/net/$2/statistics/rx_bytes" | xargs; }

# moves FROM TO ADDRESS PORT prints the mean size of the packets of a transfer at the receiver,
# and the number of unsegmented packets that netbackd has moved.
moves() {
	local interface=eth0 gso=rx_gso packets bytes more rest whole
	[ "$2" != dom0 ] || { interface=xenbr0 && gso=tx_gso; }
	whole=$(counter "$(vif u1)" $gso)
	read -r packets bytes <<<"$(arrived "$2" $interface)"
	begin_transfer "$1" "$2" "$3" "$4" 1
	end_transfer "$2" "$4" 1 240 >/dev/null
	read -r more rest <<<"$(arrived "$2" $interface)"
	echo $(((rest - bytes) / (more - packets))) $(($(counter "$(vif u1)" $gso) - whole))
}

start_netbackd
make_bridge
ip address add fd00::1/64 dev xenbr0 nodad
guest u1
address u1 10.0.0.2/24
in_guest u1 "ip address add fd00::2/64 dev eth0"
eventually 240 "the guest answers" reach 10.0.0.2
eventually 240 "the guest answers over IPv6" reach fd00::2
netbackd show "$(vif u1)" | grep -E '^features '
sum_of 1 # once, and not in each subshell
port=5000
tries=0
for work in left made; do
	if [ $work = made ]; then
		in_guest u1 "ethtool -K eth0 tx off sg off tso off"
		ethtool -K "$(vif u1)" tx off
	fi
	for way in "u1 dom0 $DOM0" "dom0 u1 10.0.0.2" "u1 dom0 fd00::1" "dom0 u1 fd00::2"; do
		until
			port=$((port + 1))
			# shellcheck disable=SC2086 # three words
			moved=$(moves $way $port)
			say "segments $work, $way: mean size ${moved% *}, ${moved#* } packets to segment"
			# TCP sends little at a time where the machine has stood still for long.
			[ $work = made ] || [[ $way = *:* ]] || [ "${moved% *}" -gt 1514 ]
		do
			tries=$((tries + 1))
			[ $tries -le 5 ] || fail "no large packets arrive"
		done
		if [ $work = left ]; then
			[ "${moved#* }" -gt 0 ]
		else
			[[ $way = u1* ]] || [ "${moved% *}" -le 1514 ]
			same "packets to segment" "${moved#* }" 0
		fi
	done
done
[ "$(counter "$(vif u1)" tx_merged)" -gt 0 ]
same "wrong checksums in dom0" "$(bad_sums dom0)" 0
same "wrong checksums in the guest" "$(bad_sums u1)" 0
netbackd show "$(vif u1)"
