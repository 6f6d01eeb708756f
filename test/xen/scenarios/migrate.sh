# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# TCP streams run both ways while the guest is paused, saved to a file and restored. It comes
# back as another domain with other rings, and the streams continue and arrive unchanged. Then
# another guest is migrated live to its own host while it is pinged; for a while there are two
# vifs with its address. (Only PVH guests can migrate live here: Debian's Xen has no shadow
# paging.)

# moved_from DOMID succeeds if the guest is another domain now, and only that one has a vif.
moved_from() {
	DOMID[u1]=$(xl domid u1)
	say "domain $1 has become domain ${DOMID[u1]}"
	[ "${DOMID[u1]}" != "$1" ]
	connects u1
	eventually 240 "the vif before is gone" not test -e "/sys/class/net/vif$1.0"
	same "vifs" "$(netbackd list | grep -c '^vif')" 1
}

start_netbackd
make_bridge
guest u1 memory=128
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
begin_streams u1 10.0.0.2
eventually_moves 240 1000000

xl pause u1
sleep 1
before=$(cat "/sys/class/net/$(vif u1)/statistics/rx_packets")
sleep 1
same "packets of a paused guest" "$(cat "/sys/class/net/$(vif u1)/statistics/rx_packets")" "$before"
xl unpause u1
eventually_moves 240 1000000
was=${DOMID[u1]}
within 240000 "xl save" xl save u1 /tmp/u1.save 2>/dev/null
eventually 240 "no vif is left" no_vifs
within 240000 "xl restore" xl restore /tmp/u1.save 2>/dev/null
rm /tmp/u1.save
moved_from "$was"
end_streams u1
netbackd list
destroy u1

guest u1 memory=128 type=pvh
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
ping -i 0.2 10.0.0.2 >/tmp/pings &
pings=$!
was=${DOMID[u1]}
within 240000 "xl migrate" xl migrate -s "" u1 "xl migrate-receive" 2>/dev/null
moved_from "$was"
eventually 240 "the guest answers" reach 10.0.0.2
sleep 1
kill -INT $pings
wait $pings || true
tail -n 2 /tmp/pings
netbackd list
