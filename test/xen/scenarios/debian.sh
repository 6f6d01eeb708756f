# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# dom0: debian
#
# A dom0 of Debian: systemd, udev, oxenstored. udev does not load the kernel's driver if that
# is blacklisted; netbackd serves the vif.

no_netback
start_netbackd
make_bridge
pidof oxenstored
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
exchange dom0 "$DOM0" u1 10.0.0.2 4
not test -d /sys/module/xen_netback
netbackd list
