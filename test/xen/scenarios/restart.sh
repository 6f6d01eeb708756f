# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# processors: 2
#
# netbackd is killed under running TCP streams, both ways, and started again, three times. The
# guest only sees a pause: its frontend stays connected with the same rings, and both streams
# arrive complete and unchanged.

start_netbackd
make_bridge
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
front=/local/domain/${DOMID[u1]}/device/vif/0
rings=$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')
# The guest has one vcpu, so its queue has one event channel for both rings.
same "event channels" "$(grep -c event-channel <<<"$rings")" 1
same "offer of two" "$(xenstore-read /local/domain/0/backend/vif/"${DOMID[u1]}"/0/feature-split-event-channels)" 0

begin_streams u1 10.0.0.2
for round in 1 2 3; do
	eventually_moves 240 2000000
	kill_netbackd
	sleep 0.$round
	within 180000 "start $round" start_netbackd
	same "frontend" "$(xenstore-read "$front/state")" 4
done
end_streams u1
netbackd show | grep '^own pages  *\([0-9]*\) of \1$'
same "rings" "$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')" "$rings"
netbackd list
