# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# dom0: debian
# vcpus: 2
#
# Debian's systemd runs netbackd as a separate user, in a sandbox, with io_uring. Under TCP
# streams both ways it is restarted, killed, stopped by a signal until the watchdog kills it,
# and stopped and started. The frontend is not affected: its state never changes, its rings
# stay, and both streams arrive unchanged. All pings over a restart come back, because systemd
# keeps the queues of the TAP.

property() { systemctl show --value -p "$1" netbackd; }
active() { [ "$(property ActiveState) $(property SubState)" = "active running" ]; }
said() { journalctl -q -u netbackd --no-pager | grep -F -e "$1"; }

[ -d /host/dist/pair ] || fail "there are no packages: make deb-pair"
dpkg -i /host/dist/pair/netbackd_1_amd64.deb
eventually 240 "the unit runs" active
systemd-analyze verify --man=no netbackd.service netbackd-vhost-user@tap1.service netbackd-vhost-user@tap1.socket
systemd-analyze security --no-pager --threshold=13 netbackd.service | tail -n 1
systemd-analyze security --no-pager --threshold=13 --offline=true /usr/lib/systemd/system/netbackd-vhost-user@.service | tail -n 1
same "user of the daemon" "$(stat -c %U "/proc/$(property MainPID)")" netbackd
same "capabilities of the daemon" "$(sed -n 's/^CapEff:\t//p' "/proc/$(property MainPID)/status")" 0000008000001000

# A device of vhost-user has the same user and fewer capabilities.
systemctl start netbackd-vhost-user@tap9.socket netbackd-vhost-user@tap9.service
device=$(systemctl show --value -p MainPID netbackd-vhost-user@tap9.service)
same "user of the device" "$(stat -c %U "/proc/$device")" netbackd
same "capabilities of the device" "$(sed -n 's/^CapEff:\t//p' "/proc/$device/status")" 0000000000001000
netbackd show tap9 | grep -F 'socket       /run/netbackd/vhost-user/tap9.sock (fd)' || fail "the device: $(netbackd show tap9)"
systemctl stop netbackd-vhost-user@tap9.socket netbackd-vhost-user@tap9.service
not ip link show tap9

make_bridge
guest u1 vcpus=2
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
vif=$(vif u1)
netbackd show "$vif" --json | grep '"io_uring": *true' || fail "io_uring is not used: $(said io_uring)"
same "queues kept" "$(property NFileDescriptorStore)" 2
front=/local/domain/${DOMID[u1]}/device/vif/0
back=/local/domain/0/backend/vif/${DOMID[u1]}/0
rings=$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')
index=$(cat "/sys/class/net/$vif/ifindex")
# This ends with the first change.
xenstore-watch -n 2 "$front/state" >/dev/null &
unaware=$!
xenstore-watch -n 2 "$back/state" >/dev/null &
steady=$!

# pings_over WHAT COMMAND... pings the guest ten times a second until the command has ended and
# the guest answers again, and prints the number of lost pings.
pings_over() {
	local what=$1 pinger
	shift
	ping -i 0.1 10.0.0.2 >/tmp/pings &
	pinger=$!
	sleep 1
	"$@"
	# This ping is behind the others in the queues of the TAP.
	eventually 240 "the guest answers" reach 10.0.0.2
	sleep 0.5
	kill -INT $pinger
	wait $pinger || true
	say "pings over a $what: $(lost) lost, $(sed -n '/transmitted/p; /^rtt/p' /tmp/pings | tr '\n' ' ')"
}
# lost prints the number of the last pings that were lost, not counting those at the end that
# may still come back.
lost() {
	awk -F 'icmp_seq=' 'NF > 1 { n++; if ($2 + 0 > last) last = $2 + 0 } END { print last - n }' /tmp/pings
}
new_daemon() { active && [ "$(property MainPID)" != "$1" ]; }
die() {
	local pid
	pid=$(property MainPID)
	kill -"$1" "$pid"
	eventually "$2" "systemd has started another" new_daemon "$pid"
}

pings_over restart within 180000 "systemctl restart" systemctl restart netbackd
same "pings lost" "$(lost)" 0
same "queues kept" "$(property NFileDescriptorStore)" 2
said "TAP adopted" | tail -n 1
pings_over kill die KILL 120
pings_over "stop and start" eval 'systemctl stop netbackd; sleep 1; systemctl start netbackd'

begin_streams u1 10.0.0.2
eventually_moves 240 2000000
within 180000 "systemctl restart" systemctl restart netbackd
eventually_moves 240 2000000
die KILL 120
eventually_moves 240 2000000
say "SIGSTOP; the watchdog has 10 s"
die STOP 120
said "Watchdog timeout" | tail -n 1
eventually_moves 240 2000000
systemctl stop netbackd
same "frontend while no daemon runs" "$(xenstore-read "$front/state")" 4
same "bridge of the TAP while no daemon runs" "$(basename "$(readlink "/sys/class/net/$vif/master")")" xenbr0
ls /run/netbackd/ring-*
systemctl start netbackd
end_streams u1

kill $unaware || fail "the frontend's state has changed"
kill $steady || fail "the backend's state has changed"
same "rings" "$(xenstore-ls "$front" | grep -E 'ring-ref|event-channel')" "$rings"
same "interface" "$(cat "/sys/class/net/$vif/ifindex")" "$index"
systemctl status netbackd --no-pager -n 0 | grep -E 'Active|Status|FD Store|Memory' || true
not said "panic:"
