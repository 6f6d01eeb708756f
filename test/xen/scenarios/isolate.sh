# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# processors: 2
#
# Packets move in a packet process, which is confined and has own pages. It is killed under
# running TCP streams, both ways, three times, and then the daemon is. The guest only sees
# pauses: its frontend stays connected with the same rings, and both streams arrive complete
# and unchanged.

packet_process() { netbackd show | sed -n 's/^process .* process \([0-9]*\), .*/\1/p'; }
# replaced PID reports whether another packet process than PID runs.
replaced() {
	local now
	now=$(packet_process)
	[ "$now" -gt 0 ] && [ "$now" != "$1" ]
}

start_netbackd --isolate=shared
make_bridge
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
front=/local/domain/${DOMID[u1]}/device/vif/0
rings=$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')
pid=$(packet_process)
grep '^Seccomp:[[:space:]]*2$' "/proc/$pid/status"
grep '^CapPrm:[[:space:]]*0*$' "/proc/$pid/status"

begin_streams u1 10.0.0.2
for round in 1 2 3; do
	eventually_moves 240 2000000
	pid=$(packet_process)
	kill -9 "$pid"
	eventually 60 "another packet process after kill $round" replaced "$pid"
	same "frontend" "$(xenstore-read "$front/state")" 4
done
eventually_moves 240 2000000
pid=$(packet_process)
kill_netbackd
eventually 10 "the packet process ends with its daemon" not kill -0 "$pid"
start_netbackd --isolate=shared
same "frontend" "$(xenstore-read "$front/state")" 4
end_streams u1
netbackd show
netbackd show | grep '^own pages  *\([0-9]*\) of \1$'
same "rings" "$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')" "$rings"
netbackd list
