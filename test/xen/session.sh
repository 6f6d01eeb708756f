# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The part of ./run that runs in dom0. It runs the scenarios of its machine's list that no
# other machine has taken, each in a separate shell, until one leaves dom0 in a state that
# would affect the next. Logs go to /host/logs/NAME.
machine=/host/machine-$(sed 's/.*machine=\([0-9]*\).*/\1/' /proc/cmdline)
exec >>"$machine/output" 2>&1
cd /tmp || exit
systemd() { [ -d /run/systemd/system ]; }

uptime_ms() {
	local up
	read -r up _ </proc/uptime
	echo $((10#${up/./} * 10))
}

# collect DIR copies logs and states that help to understand a failure.
collect() {
	cp /tmp/netbackd.log /tmp/blkbackd.log /var/log/xen/*.log /var/log/xen/console/guest-*.log "$1/"
	dmesg >"$1/dmesg"
	xl dmesg >"$1/xl-dmesg"
	xenstore-ls -fp >"$1/xenstore"
	{
		xl list
		ip -s -d link
		bridge link
	} >"$1/state"
	timeout 5 netbackd list --json >"$1/netbackd.json"
	[ -x /usr/sbin/blkbackd ] && timeout 5 blkbackd list --json >"$1/blkbackd.json"
	systemd && journalctl -b --no-pager >"$1/journal"
	ls -l /run/netbackd /run/blkbackd >>"$1/state"
} 2>/dev/null

# clean removes everything that a scenario left. It fails if dom0 must be booted again.
clean() {
	local guests domid link program
	killall iperf3 nc
	guests=$(xenstore-list /local/domain | grep -vx 0)
	if [ "$guests" ]; then
		# Their frontends need a backend to close.
		pidof netbackd || [ -d /sys/module/xen_netback ] || netbackd run &
		pidof blkbackd || [ -d /sys/module/xen_blkback ] || [ ! -x /usr/sbin/blkbackd ] || blkbackd run &
		for domid in $guests; do xl destroy "$domid"; done
	fi
	if systemd && dpkg -s blkbackd; then
		systemctl stop blkbackd.service
		dpkg --purge blkbackd
		systemctl reset-failed
	fi
	if systemd && dpkg -s netbackd; then
		systemctl stop netbackd.service netbackd.socket
		dpkg --purge netbackd
		systemctl reset-failed
	fi
	for program in netbackd blkbackd; do
		if killall $program; then
			sleep 0.5
			killall -9 $program
		fi
	done
	[ ! -d /sys/module/xen_netback ] || modprobe -r xen-netback
	[ ! -d /sys/module/xen_blkback ] || modprobe -r xen-blkback
	umount /tmp/mnt
	losetup -D
	[ ! -d /sys/module/brd ] || modprobe -r brd
	for link in /sys/class/net/*/bridge; do
		[ -e "$link" ] && ip link del "$(basename "$(dirname "$link")")"
	done
	rm -rf /run/netbackd /run/blkbackd /etc/modprobe.d/{scenario,netbackd,blkbackd}.conf /var/log/xen/console/guest-* /var/log/xen/*.log
	find /tmp -mindepth 1 -maxdepth 1 ! -name 'systemd-private-*' -exec rm -rf {} +
	[ "$(xl list | wc -l)" = 2 ] && ! ls -d /sys/class/net/vif* && [ ! -d /sys/module/xen_netback ] &&
		! xenstore-exists /local/domain/0/backend/vif && ! dmesg | grep -E 'BUG:|Oops|Call Trace'
} >/dev/null 2>&1

{
	read -r limit keep
	while read -r name; do
		mkdir "/host/claims/$name" 2>/dev/null || continue
		echo "$name" >"$machine/current"
		logs=/host/logs/$name
		mkdir -p "$logs"
		# It is copied for each scenario: a package may have replaced and removed it.
		rm -f /usr/sbin/netbackd
		cp /host/netbackd /usr/sbin/
		if [ -e /host/blkbackd ]; then
			rm -f /usr/sbin/blkbackd
			cp /host/blkbackd /usr/sbin/
		fi
		printf -- '-- %s: %s\n' "$name" "$(sed -n '/^#$/,/^$/s/^# *//p' "/host/scenarios/$name.sh" | tr '\n' ' ')"
		began=$(uptime_ms)
		printed=$(stat -c %s "$machine/output")
		timeout -k 10 "$limit" bash /host/lib.sh "$name" </dev/null
		code=$?
		took=$((($(uptime_ms) - began) / 100))
		took=${took%?}.${took: -1}
		case $code in
		0) result="ok $name $took" ;;
		124 | 137 | 143) result="FAIL $name $took over its limit of $limit s" ;;
		*) result="FAIL $name $took" ;;
		esac
		tail -c +$((printed + 1)) "$machine/output" >"$logs/output"
		[ $code = 0 ] && [ -z "$keep" ] || collect "$logs"
		echo "$result" | tee -a "$machine/results"
		clean || {
			echo "-- dom0 is booted again"
			break
		}
	done
} <"$machine/todo"
