# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The part of ./run that runs in dom0.
exec >>/host/output 2>&1
for program in netbackd blkbackd bench; do
	[ ! -e /host/$program ] || cp /host/$program /usr/sbin/
done
cd /tmp || exit
. /host/parameters
bash /host/lib.sh "$KIND" </dev/null
echo $? >/host/code
cp /tmp/*backd.log /var/log/xen/*.log /var/log/xen/console/guest-*.log /host/logs/
dmesg >/host/logs/dmesg
