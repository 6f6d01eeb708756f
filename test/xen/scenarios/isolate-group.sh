# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# With --isolate=group the toolstack names groups of vifs: two guests share a packet process and
# the third has another. The process of one group is killed twice, which separates no guests yet,
# under TCP streams of the third guest, whose process stays, and whose streams go on and arrive
# unchanged. Both guests of the group that was hit are served again.

# process_of GROUP prints the packet process of a group; nothing if none runs.
process_of() { netbackd show | sed -n "s/^process .*group $1: process \([0-9]*\), .*/\1/p"; }
# replaced PID reports whether group a has another packet process than PID.
replaced() {
	local now
	now=$(process_of a)
	[ -n "$now" ] && [ "$now" -gt 0 ] && [ "$now" != "$1" ]
}
# in_group NAME GROUP makes a guest whose vif is of a group. The key is read when the vif connects.
in_group() {
	guest "$1" memory=160 cmdline=no-netfront
	xenstore-write "/local/domain/0/backend/vif/${DOMID[$1]}/0/isolate" "$2"
	in_guest "$1" "modprobe xen-netfront"
}

start_netbackd --isolate=group
make_bridge
in_group u1 a
in_group u2 a
in_group u3 b
for n in 1 2 3; do
	address "u$n" "10.0.0.$((n + 1))/24"
	eventually 240 "guest u$n answers" reach "10.0.0.$((n + 1))"
done
netbackd show
same "packet processes" "$(netbackd show | grep -c '^process ')" 2
same "vifs of group a" "$(netbackd show | sed -n 's/.*group a: process [0-9]*, \([0-9]*\) vifs.*/\1/p')" 2
other=$(process_of b)

begin_streams u3 10.0.0.4
for round in 1 2; do
	eventually_moves 240 2000000
	pid=$(process_of a)
	kill -9 "$pid"
	eventually 60 "another packet process of the group after kill $round" replaced "$pid"
	same "packet process of the other group" "$(process_of b)" "$other"
done
eventually_moves 240 2000000
end_streams u3
for n in 1 2; do eventually 240 "guest u$n answers" reach "10.0.0.$((n + 1))"; done
netbackd show
netbackd list
