# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest powers itself off. If a backend does not follow its frontend through Closing to
# Closed, the guest's kernel waits 5 s and reports that; netbackd does follow.

start_netbackd
make_bridge
guest u1 cmdline=loglevel=7
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
domain=/local/domain/${DOMID[u1]}
power_off() {
	post u1 "poweroff -f"
	eventually 240 "the guest is gone" not xenstore-exists "$domain"
}
within 60000 "power off" power_off
unset "DOMID[u1]"
grep -a "reboot: " /var/log/xen/console/guest-u1.log
not grep -a "timeout closing device" /var/log/xen/console/guest-u1.log
eventually 240 "netbackd has no vif" no_vifs
