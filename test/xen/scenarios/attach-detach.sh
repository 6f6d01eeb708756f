# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# xl attaches a vif to a running guest and detaches it again, three times, and then two vifs
# at once. xl network-list shows them. xl reports the backend as broken when InitWait takes
# 10 s, the script 40 s, or Closed 10 s. The scenario prints the times of these, measured with
# watches.

# listed MAC... succeeds if xl lists these as connected.
listed() {
	local mac list
	list=$(xl network-list u1)
	for mac; do grep -qE " $mac +[0-9]+ +4 " <<<"$list" || return; done
}

# follow records the changes of a backend's nodes, with times, in /tmp/life.
follow() {
	local path
	{ xenstore-watch /local/domain/0/backend/vif || true; } | while read -r path; do
		echo "$(now) ${path##*/}=$(xenstore-read "$path" 2>/dev/null || true)"
	done >>/tmp/life
}

# waited WHAT FROM TO LIMIT prints the time from one change to another, if follow was in time
# to read the values before xl removed them. The exit code of xl shows that xl itself did not
# wait too long.
waited() {
	local from to end
	moment() { grep -m 1 -E "$1" /tmp/life | cut -d' ' -f1; }
	clock
	end=$((NOW + 3000))
	until to=$(moment "$3") || [ $NOW -gt $end ]; do
		pause 0.2
		clock
	done
	from=$(moment "$2") || true
	say "  $1 after ${to:+${from:+$((to - from))}} ms; libxl waits $4 ms"
}

start_netbackd
make_bridge
guest u1 vif=
: >/tmp/life
follow &
for round in 1 2 3; do
	within 180000 "attach $round" xl network-attach u1 "mac=$(mac 90)" bridge=xenbr0
	waited InitWait frontend= "state=[24]" 10000
	waited "the script's end" "state=[24]" hotplug-status=connected 40000
	address u1 10.0.0.2/24
	eventually 240 "the guest answers" reach 10.0.0.2
	eventually 240 "xl lists the vif as connected" listed "$(mac 90)"
	: >/tmp/life
	within 180000 "detach $round" xl network-detach u1 "$(mac 90)"
	waited Closed "(online|state)=" state=6 10000
	in_guest u1 "while test -e /sys/class/net/eth0; do sleep 0.1; done" 240
	eventually 240 "no interface is left" not test -e "/sys/class/net/$(vif u1)"
	same "vifs" "$(xl network-list u1 | grep -c 00:16 || true)" 0
	sleep 0.5
	: >/tmp/life
done
killall xenstore-watch
within 180000 "attach a first one" xl network-attach u1 "mac=$(mac 91)" bridge=xenbr0
within 180000 "attach a second one" xl network-attach u1 "mac=$(mac 92)" bridge=xenbr0
eventually 240 "both are connected" listed "$(mac 91)" "$(mac 92)"
xl network-list u1
netbackd list
same "vifs in netbackd" "$(netbackd list | grep -c ' connected ')" 2
within 180000 "detach the second one" xl network-detach u1 1
same "vifs in netbackd" "$(netbackd list | grep -c ' connected ')" 1
