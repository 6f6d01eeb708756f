# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest powers itself off. It waits 5 s for a backend that does not follow it
# through Closing to Closed; netbackd does, so it is gone sooner.

gone() { ! xenstore-exists "/local/domain/$id"; }

start_netbackd
make_bridge
guest u1
address u1 10.0.0.2/24
eventually 20 "the guest answers" reach 10.0.0.2
id=${DOMID[u1]}
power_off() {
	post u1 "poweroff -f" >/dev/null
	eventually 30 "the guest is gone" gone
}
within 4500 "power off" power_off
unset "DOMID[u1]"
eventually 5 "netbackd has no vif" no_vifs
