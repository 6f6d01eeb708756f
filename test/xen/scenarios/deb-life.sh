# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# dom0: debian
#
# The life of the package: after its installation it serves before guests are started. It is
# upgraded, removed and installed again under TCP streams both ways, which arrive unchanged.
# A purge leaves nothing behind.

property() { systemctl show --value -p "$1" "${2:-netbackd}"; }
active() { [ "$(property ActiveState) $(property SubState)" = "active running" ]; }
version() { journalctl -q -u netbackd --no-pager | sed -n 's/.*"version": "\([^"]*\)".*/\1/p' | tail -n 1; }

[ -d /host/dist/pair ] || fail "there are no packages: make deb-pair"
dpkg -i /host/dist/pair/netbackd_1_amd64.deb
eventually 240 "the unit runs" active
same "enabled" "$(systemctl is-enabled netbackd)" enabled
for device in evtchn gntalloc gntdev xenbus; do
	same "/dev/xen/$device" "$(stat -c '%U:%G %a' /dev/xen/$device)" "root:netbackd 660"
done
same "/dev/xen/privcmd" "$(stat -c %G /dev/xen/privcmd)" root
same "/run/netbackd" "$(stat -c '%U:%G %a' /run/netbackd)" "netbackd:netbackd 755"
# The testbed has loaded the module before, with the kernel's limit of 1024.
same "limit of xen-gntalloc" "$(cat /sys/module/xen_gntalloc/parameters/limit)" 24576
say "on the way to boot: $(property Before)"

# As at boot, where one target wants both: netbackd starts before the guests.
systemctl stop xendomains.service netbackd.service
printf '[Unit]\nWants=xendomains.service netbackd.service\n' >/run/systemd/system/scenario.target
systemctl daemon-reload
systemctl start scenario.target
eventually 240 "guests would have been started" test "$(property ActiveState xendomains)" = active
[ "$(property ActiveEnterTimestampMonotonic)" -lt "$(property InactiveExitTimestampMonotonic xendomains)" ] ||
	fail "xendomains was started before netbackd was ready"
[ "$(property InactiveExitTimestampMonotonic)" -gt "$(property ActiveEnterTimestampMonotonic xen)" ] ||
	fail "netbackd was started before Xen's services"

make_bridge
guest u1
not test -d /sys/module/xen_netback
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
netbackd show | grep '^own pages  *\([0-9][0-9]*\) of \1$' || fail "own pages: $(netbackd show)"
front=/local/domain/${DOMID[u1]}/device/vif/0
xenstore-watch -n 2 "$front/state" >/dev/null &
unaware=$!

echo '# of the administrator' >>/etc/default/netbackd
begin_streams u1 10.0.0.2
eventually_moves 240 2000000
pid=$(property MainPID)
within 180000 "upgrade" dpkg -i /host/dist/pair/netbackd_2_amd64.deb
active || fail "the unit does not run after the upgrade"
same "version that runs" "$(version)" 2
not test -d "/proc/$pid"
tail -n 1 /etc/default/netbackd
eventually_moves 240 2000000

dpkg --remove netbackd 2>&1 | tee /tmp/removal
grep -q "netbackd: 1 connected vifs" /tmp/removal || fail "removal does not say what becomes of guests"
not pidof netbackd
not test -e /usr/sbin/netbackd
same "frontend without netbackd" "$(xenstore-read "$front/state")" 4
within 180000 "installation anew" dpkg -i /host/dist/pair/netbackd_2_amd64.deb
eventually 240 "the unit runs" active
end_streams u1
kill $unaware || fail "the frontend's state has changed"
destroy u1

# The vif of a guest that ends while no daemon runs is removed later.
ip tuntap add dev guestnet mode tap
ip link property add dev guestnet altname netbackd-vif99.0
ip tuntap add dev virtnet mode tap
ip link property add dev virtnet altname netbackd-vhost-virtnet
ip tuntap add dev vpn mode tap
dpkg --purge netbackd
not ip link show guestnet
not ip link show virtnet
ip link delete vpn
for path in /usr/sbin/netbackd /etc/default/netbackd /etc/default/netbackd-vhost-user /etc/xen/scripts/vif-netbackd /run/netbackd \
	/usr/lib/modprobe.d/netbackd.conf /usr/lib/modprobe.d/netbackd-gntalloc.conf /etc/systemd/system/multi-user.target.wants/netbackd.service; do
	not ls "$path"
done
