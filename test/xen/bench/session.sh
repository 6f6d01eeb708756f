# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The part of ./run that runs in dom0.
exec >>/host/output 2>&1
cp /host/netbackd /host/bench /usr/sbin/
cd /tmp || exit
bash /host/lib.sh netback </dev/null
echo $? >/host/code
cp /tmp/netbackd.log /var/log/xen/*.log /var/log/xen/console/guest-*.log /host/logs/
dmesg >/host/logs/dmesg
