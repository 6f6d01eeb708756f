# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest has its root file system on blkbackd and boots from there, with Linux's xen-blkfront,
# indirect requests of 256 segments and a ring of 16 pages. It makes another file system on a
# second disk and checks that, and then powers off. The file systems are without an error in
# dom0, too, and the guest boots from the same disk again.

. /host/disk.sh

serve_disks
cp /host/root.ext4 "$IMAGES/root.img"
image data.img 96M >/dev/null
make() {
	guest u1 vif= disk="$(disk "$IMAGES/root.img" xvda) $(disk "$IMAGES/data.img" xvdb)" cmdline="disk=/dev/xvda $LARGE"
	same "root file system" "$(in_guest u1 "sed -n 's/^\(.dev.xvd[^ ]*\) . \([^ ]*\) .*/\1 \2/p' /proc/mounts")" "/dev/xvda ext4"
	in_guest u1 "dmesg | grep -E 'blkfront: |EXT4-fs|xvd[a-z]:'"
}
make
in_guest u1 "mkfs.ext4 -q /dev/xvdb && mkdir -p /data && mount /dev/xvdb /data && cp -a /usr/lib /usr/bin /data/
	$CHUNK
	(for n in \$(seq 8); do cat /tmp/chunk; done) >/chunks
	(cat /chunks /usr/bin/busybox | md5sum) >/chunks.md5
	sync && echo 3 >/proc/sys/vm/drop_caches
	cat /chunks /data/bin/busybox | md5sum -c /chunks.md5
	umount /data && e2fsck -fn /dev/xvdb 2>&1 | tail -n 3"
healthy u1
if ours; then
	blkbackd list
	blkbackd show "$(vbd u1)"
fi
in_guest u1 "(sleep 0.5; mount -o remount,ro /; poweroff -f) >/dev/null 2>&1 &"
eventually 120 "the guest has powered off" not xl domid u1
unset "DOMID[u1]"
for name in root data; do e2fsck -fn "$IMAGES/$name.img"; done
make
in_guest u1 "cat /chunks /usr/bin/busybox | md5sum -c /chunks.md5"
leave_disks
