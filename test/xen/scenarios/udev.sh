# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# dom0: debian
#
# udev loads the kernel's xen-netback for the first vif of a host. When the package is installed
# neither udev nor modprobe does. A link to /dev/null allows the driver again, for all vifs
# except those with the script of netbackd.

loaded() { test -d /sys/module/xen_netback; }

make_bridge
guest k1
loaded
kernels k1
address k1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
destroy k1
modprobe -r xen-netback

say "-- the package is installed"
dpkg -i /host/dist/pair/netbackd_1_amd64.deb
eventually 240 "netbackd answers" netbackd list
not modprobe xen-netback
guest n1
address n1 10.0.0.3/24
eventually 240 "the guest answers" reach 10.0.0.3
udevadm trigger --action=add --subsystem-match=xen-backend
udevadm settle
not loaded
netbackd list
destroy n1

say "-- the driver is allowed"
mkdir -p /etc/modprobe.d
ln -s /dev/null /etc/modprobe.d/netbackd.conf
modprobe xen-netback
make_guest k2
make_guest n2 vif=bridge=xenbr0,script=vif-netbackd
up k2 n2
address k2 10.0.0.4/24
address n2 10.0.0.5/24
eventually 240 "the guest answers" reach 10.0.0.4
eventually 240 "the guest answers" reach 10.0.0.5
kernels k2
not kernels n2
netbackd list
