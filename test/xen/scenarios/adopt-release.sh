# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# vcpus: 2
#
# The vif of a guest with two queues is adopted from the kernel's xen-netback under TCP streams
# both ways and pings, released to the kernel, and adopted again. Its frontend stays connected
# with the same rings, both streams arrive complete and unchanged, and lost packets are
# counted.

load_netback
start_netbackd
make_bridge
make_guest u1 vcpus=2
make_guest u2 # its vif stays with the kernel
up u1 u2
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
kernels u1
vif=$(vif u1)
front=/local/domain/${DOMID[u1]}/device/vif/0
back=backend/vif/${DOMID[u1]}/0
same "queues" "$(xenstore-read "$front/multi-queue-num-queues")" 2
rings=$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')

# moves NAME...: adopts or releases under load and prints the number of lost pings.
moves() {
	eventually_moves 240 2000000
	ping -q -i 0.02 -c 150 -W 2 10.0.0.2 >/tmp/ping &
	local pinger=$!
	sleep 1
	within 180000 "$1" netbackd "$1" "$vif"
	same "frontend" "$(xenstore-read "$front/state")" 4
	same "backend" "$(xenstore-read "$back/state")" 4
	same "hotplug-status" "$(xenstore-read "$back/hotplug-status")" connected
	same "bridge" "$(basename "$(readlink "/sys/class/net/$vif/master")")" xenbr0
	same "address" "$(cat "/sys/class/net/$vif/address")" fe:ff:ff:ff:ff:ff
	wait $pinger || true
	grep "packets transmitted" /tmp/ping
	eventually_moves 240 2000000
}

begin_streams u1 10.0.0.2
moves adopt
not kernels u1
netbackd list
moves release
kernels u1
netbackd list
same "state" "$(netbackd list | awk -v vif="$vif" '$1 == vif { print $3 }')" kernel
moves adopt
not kernels u1
kernels u2
not netbackd adopt "$vif"
end_streams u1
same "rings" "$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')" "$rings"

say "-- an adopted vif is netbackd's when it is killed and started again"
kill_netbackd
start_netbackd
eventually 240 "the guest answers" reach 10.0.0.2
not kernels u1
