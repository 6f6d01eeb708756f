# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# dom0: debian
#
# The life of the package of blkbackd, with Debian's systemd: a guest has its disk under a load
# with fsync that is verified. Meanwhile the unit, in its sandbox, is restarted, killed, stopped
# by a signal until the watchdog ends it, served by a disk process, and upgraded; the package is
# removed and installed again. The guest sees no error. A purge leaves nothing behind.

. /host/disk.sh

property() { systemctl show --value -p "$1" blkbackd; }
active() { [ "$(property ActiveState) $(property SubState)" = "active running" ]; }
version() { journalctl -q -u blkbackd --no-pager | sed -n 's/.*"version": "\([^"]*\)".*/\1/p' | tail -n 1; }
new_daemon() { active && [ "$(property MainPID)" != "$1" ]; }
die() {
	local pid
	pid=$(property MainPID)
	kill -"$1" "$pid"
	eventually "$2" "systemd has started another" new_daemon "$pid"
}
connected() { blkbackd list | grep -q "^$(vbd u1) .* connected "; }
disk_process() { blkbackd show | sed -n 's/^disk process .*process \([0-9]*\), .*/\1/p'; }
replaced() {
	local now
	now=$(disk_process)
	[ "$now" -gt 0 ] && [ "$now" != "$1" ]
}
# moves waits until the guest has written more.
moves() {
	local before
	eventually 60 "the disk is connected" connected
	before=$(disk_counter u1 xvda writes)
	eventually 60 "the guest writes" eval "[ \$(disk_counter u1 xvda writes) -gt $before ]"
	load_runs u1
}

[ -d /host/dist/pair ] || fail "there are no packages: make deb-pair"
dpkg -i /host/dist/pair/blkbackd_1_amd64.deb
eventually 240 "the unit runs" active
same "enabled" "$(systemctl is-enabled blkbackd)" enabled
systemd-analyze verify --man=no blkbackd.service
systemd-analyze security --no-pager --threshold=13 blkbackd.service | tail -n 1
same "capabilities of the daemon" "$(sed -n 's/^CapEff:\t//p' "/proc/$(property MainPID)/status")" 0000000000000002
blkbackd check "$IMAGES"

# An image of another owner, in a home.
useradd -m images 2>/dev/null || adduser --disabled-password --gecos '' images >/dev/null
home=$(getent passwd images | cut -d: -f6)
image "$home/disk.img" 64M
chown images: "$home/disk.img"
chmod 600 "$home/disk.img"
guest u1 vif= disk="$(disk "$home/disk.img" xvda)" cmdline="$LARGE"
connected
front=$(disk_frontend u1)
xenstore-watch -n 2 "$front/state" >/dev/null &
unaware=$!
blkbackd show "$(vbd u1)" | grep -E '^(0 |QUEUE|cache)'
begin_load u1 /dev/xvda 4m
moves
within 60000 "systemctl restart" systemctl restart blkbackd
moves
die KILL 60
moves
say "SIGSTOP; the watchdog has 10 s"
die STOP 120
moves
say "a disk process, which is killed, and its daemon"
echo 'BLKBACKD_ARGS=--isolate=shared' >>/etc/default/blkbackd
mkdir -p /run/systemd/system/blkbackd.service.d
printf '[Service]\nSystemCallFilter=capset\n' >/run/systemd/system/blkbackd.service.d/isolate.conf
systemctl daemon-reload
within 60000 "systemctl restart" systemctl restart blkbackd
moves
pid=$(disk_process)
grep '^Seccomp:[[:space:]]*2$' "/proc/$pid/status"
grep '^CapPrm:[[:space:]]*0*$' "/proc/$pid/status"
kill -9 "$pid"
eventually 60 "another disk process" replaced "$pid"
moves
die KILL 60
moves
sed -i /isolate/d /etc/default/blkbackd
rm -r /run/systemd/system/blkbackd.service.d
systemctl daemon-reload
echo '# of the administrator' >>/etc/default/blkbackd
within 180000 "upgrade" dpkg -i /host/dist/pair/blkbackd_2_amd64.deb
eventually 60 "the unit runs" active
same "version that runs" "$(version)" 2
tail -n 1 /etc/default/blkbackd
moves
dpkg --remove blkbackd 2>&1 | tee /tmp/removal
grep -q "blkbackd: 1 connected disks" /tmp/removal || fail "removal does not say what becomes of guests"
not pidof blkbackd
same "frontend without blkbackd" "$(xenstore-read "$front/state")" 4
within 180000 "installation anew" dpkg -i /host/dist/pair/blkbackd_2_amd64.deb
eventually 60 "the unit runs" active
moves
end_load u1
kill $unaware || fail "the frontend's state has changed"
healthy u1
destroy u1
dpkg --purge blkbackd
for path in /usr/sbin/blkbackd /etc/default/blkbackd /etc/xen/scripts/block-blkbackd /run/blkbackd \
	/etc/systemd/system/multi-user.target.wants/blkbackd.service; do
	not ls "$path"
done
leave_disks
