# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# dom0: debian
# vcpus: 2
#
# Debian's systemd runs netbackd and keeps the queues of its TAP. Under TCP streams both ways and
# pings netbackd is killed at random instants, ten times or NETBACKD_KILLS times, and systemd starts
# it again. The guest's stock frontend stays connected with the same rings, both streams arrive
# complete and unchanged, and at most one ping per kill is lost.

property() { systemctl show --value -p "$1" netbackd; }
active() { [ "$(property ActiveState) $(property SubState)" = "active running" ]; }
another() { active && [ "$(property MainPID)" != "$1" ]; }

kills=$(cat /host/kills 2>/dev/null || echo 10)
[ -d /host/dist/pair ] || fail "there are no packages: make deb-pair"
dpkg -i /host/dist/pair/netbackd_1_amd64.deb
eventually 240 "the unit runs" active
make_bridge
guest u1 vcpus=2
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
vif=$(vif u1)
front=/local/domain/${DOMID[u1]}/device/vif/0
rings=$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')
index=$(cat "/sys/class/net/$vif/ifindex")

times=()
ping -i 0.2 10.0.0.2 >/tmp/pings &
pinger=$!
begin_streams u1 10.0.0.2 0.2
for round in $(seq "$kills"); do
	eventually_moves 240 300000
	pause 0.$((RANDOM % 4))$((RANDOM % 10))
	pid=$(property MainPID)
	clock
	began=$NOW
	kill -KILL "$pid"
	moved
	before=$MOVED
	eventually 240 "packets move after kill $round" moved_on $((before + 20000))
	clock
	times+=($((NOW - began)))
	eventually 240 "systemd has started another" another "$pid"
done
end_streams u1
eventually 240 "the guest answers" reach 10.0.0.2
kill -INT $pinger
wait $pinger || true
lost=$(awk -F 'icmp_seq=' 'NF > 1 { n++; if ($2 + 0 > last) last = $2 + 0 } END { print last - n }' /tmp/pings)
say "$kills kills, until 20 kB had moved: $(printf '%s\n' "${times[@]}" | sort -n | awk '{ t[NR] = $1 } END { printf "median %d ms, worst %d ms", t[int((NR + 1) / 2)], t[NR] }')"
say "pings: $lost lost, $(sed -n '/transmitted/p' /tmp/pings)"
[ "$lost" -le "$kills" ] || fail "$lost pings lost in $kills kills"
same "frontend" "$(xenstore-read "$front/state")" 4
same "rings" "$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')" "$rings"
same "interface" "$(cat "/sys/class/net/$vif/ifindex")" "$index"
not journalctl -q -u netbackd --no-pager -g "panic:"
