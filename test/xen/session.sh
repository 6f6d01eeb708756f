# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The part of ./run that runs in dom0: runs the scenarios of /host/todo, each in a
# shell of its own, until one leaves dom0 in a state that another cannot be judged
# in. Logs go to /host/logs/NAME, results to /host/results.
exec >>/host/output 2>&1
cp /host/netbackd /usr/sbin/netbackd
cd /tmp || exit

uptime_ms() {
	local up
	read -r up _ </proc/uptime
	echo $((10#${up/./} * 10))
}

# collect DIR: what one wants to see after a failure.
collect() {
	cp /tmp/netbackd.log /var/log/xen/*.log /var/log/xen/console/guest-*.log "$1/"
	dmesg >"$1/dmesg"
	xl dmesg >"$1/xl-dmesg"
	xenstore-ls -fp >"$1/xenstore"
	{
		xl list
		ip -s -d link
		bridge link
	} >"$1/state"
	timeout 5 netbackd list --json >"$1/netbackd.json"
	ls -l /run/netbackd >>"$1/state"
} 2>/dev/null

# clean removes what a scenario left; it fails where only a boot will do.
clean() {
	local domid link
	pidof netbackd >/dev/null || netbackd run >/dev/null 2>&1 &
	killall iperf3 nc
	for domid in $(xenstore-list /local/domain); do
		[ "$domid" = 0 ] || xl destroy "$domid"
	done
	killall netbackd
	sleep 0.5
	killall -9 netbackd
	for link in /sys/class/net/*/bridge; do
		[ -e "$link" ] && ip link del "$(basename "$(dirname "$link")")"
	done
	rm -rf /run/netbackd /tmp/* /var/log/xen/console/guest-* /var/log/xen/*.log
	[ "$(xl list | wc -l)" = 2 ] && ! ls -d /sys/class/net/vif* &&
		! xenstore-exists /local/domain/0/backend/vif && ! dmesg | grep -E 'BUG:|Oops|Call Trace'
} >/dev/null 2>&1

{
	read -r limit
	while read -r name; do
		echo "$name" >/host/current
		logs=/host/logs/$name
		mkdir -p "$logs"
		printf -- '-- %s: %s\n' "$name" "$(sed -n '/^#$/,/^$/s/^# *//p' "/host/scenarios/$name.sh" | tr '\n' ' ')"
		began=$(uptime_ms)
		printed=$(stat -c %s /host/output)
		timeout -k 10 "$limit" bash /host/lib.sh "$name" </dev/null
		code=$?
		took=$((($(uptime_ms) - began) / 100))
		took=${took%?}.${took: -1}
		case $code in
		0) result="ok $name $took" ;;
		143 | 137) result="FAIL $name $took: over its limit of $limit s" ;;
		*) result="FAIL $name $took" ;;
		esac
		tail -c +$((printed + 1)) /host/output >"$logs/output"
		collect "$logs"
		echo "$result" | tee -a /host/results
		clean || {
			echo "-- dom0 is booted anew"
			break
		}
	done
} </host/todo
