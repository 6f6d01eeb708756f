# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# netbackd check reports problems, each with the command that repairs it, and the commands
# work: a driver that would be loaded, a loaded driver that serves a guest, a missing device,
# a daemon that does not run.

# verdict WANT [ARGUMENT...] runs check, prints its notes and problems, and compares its result,
# ready or not.
verdict() {
	local got=ready
	netbackd check "${@:2}" >/tmp/check || got=not-ready
	grep -v '^ok' /tmp/check || true
	same "host" "$got" "$1"
}
# finds TEXT fails if the text is not in the last report.
finds() { grep -qF -- "$1" /tmp/check || fail "netbackd check does not say: $1"; }
# mend NAME runs the command that check prints for the item NAME.
mend() {
	local fix
	fix=$(grep -F -A 1 "  $1 " /tmp/check | sed -n 's/^ *-> //p')
	say "mend $1: $fix"
	sh -c "$fix"
}

install_scripts
make_bridge
mkdir -p /etc/modprobe.d
rm -f /etc/modprobe.d/netbackd.conf

say "-- nothing keeps the driver away"
verdict not-ready
finds "is not loaded, but will be when a vif appears"
mend xen-netback
verdict ready
finds "is not loaded and will not be"
cp /host/etc/modprobe.d/netbackd.conf /etc/modprobe.d/ # the installed file has the same effect
verdict ready

say "-- a device is missing"
mv /dev/xen/gntdev /dev/gntdev.away
verdict not-ready
finds "modprobe xen-gntdev"
mv /dev/gntdev.away /dev/xen/gntdev

say "-- pages that netbackd grants to dom0 itself"
grep "^ok */dev/xen/gntalloc .*grants enough pages" /tmp/check
echo 100 >/sys/module/xen_gntalloc/parameters/limit
verdict ready
finds "grants at most 100 pages, of which netbackd takes 75"
fix=$(grep -F -A 1 "  /dev/xen/gntalloc " /tmp/check | sed -n 's/^ *-> //p')
say "mend /dev/xen/gntalloc: $fix"
sh -c "${fix%% &&*}"
verdict ready
finds "grants enough pages"
modprobe -r xen-gntalloc
verdict ready
finds "modprobe xen-gntalloc"
modprobe xen-gntalloc limit=24576

say "-- the daemon"
finds "is not running"
start_netbackd
verdict ready
finds "runs, version"

say "-- the driver is loaded, and serves a guest"
rm /etc/modprobe.d/netbackd.conf
load_netback
verdict not-ready
finds "is loaded and takes every new vif"
verdict ready --per-vif
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
verdict not-ready
finds "is loaded and serves $(vif u1)"
mend xen-netback
not test -e /sys/module/xen_netback
verdict ready
eventually 240 "the guest answers" reach 10.0.0.2
netbackd list

say "-- for programs"
netbackd check --json | grep -c '"level": "ok"'
netbackd check --json | grep '"ready": true'
rm /etc/modprobe.d/netbackd.conf
