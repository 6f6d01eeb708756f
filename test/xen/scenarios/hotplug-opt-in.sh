# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# With the kernel's xen-netback loaded, netbackd serves a vif with script=vif-netbackd, and
# the kernel a vif without. Both pass traffic, also after netbackd was killed and started
# again. The same script works without the driver, and fails with an error without netbackd.

state_of() { netbackd list | awk -v vif="$(vif "$@")" '$1 == vif { print $3 }'; }
state_is() { [ "$(state_of "${@:2}")" = "$1" ]; }

install_scripts
load_netback
start_netbackd
make_bridge
make_guest k1
make_guest n1 vif=bridge=xenbr0,script=vif-netbackd
up k1 n1
address k1 10.0.0.2/24
address n1 10.0.0.3/24
eventually 240 "the kernel's guest answers" reach 10.0.0.2
eventually 240 "netbackd's guest answers" reach 10.0.0.3
netbackd list
kernels k1
not kernels n1
same "state of k1" "$(state_of k1)" kernel
same "state of n1" "$(state_of n1)" connected
same "hotplug-status of n1" "$(xenstore-read "backend/vif/${DOMID[n1]}/0/hotplug-status")" connected
exchange k1 10.0.0.2 n1 10.0.0.3 3

say "-- netbackd is killed and started again"
kill_netbackd
start_netbackd
eventually 240 "netbackd's guest answers" reach 10.0.0.3
pings dom0 10.0.0.2
eventually 240 "the kernel's is still the kernel's" state_is kernel k1
eventually 240 "netbackd's is still netbackd's" state_is connected n1

say "-- a second vif for the kernel's guest, by netbackd"
within 180000 "attach" xl network-attach k1 "mac=$(mac 90)" bridge=xenbr0 script=vif-netbackd
eventually 240 "it is connected" state_is connected k1 1
kernels k1
not kernels k1 1
within 180000 "detach" xl network-detach k1 "$(mac 90)"
eventually 240 "no interface is left" not test -e "/sys/class/net/$(vif k1 1)"

say "-- without netbackd"
stop_netbackd
not xl network-attach k1 "mac=$(mac 91)" bridge=xenbr0 script=vif-netbackd
error=$(xenstore-read "backend/vif/${DOMID[k1]}/1/hotplug-error")
say "hotplug-error: $error"
grep -q "netbackd is not running" <<<"$error"
kernels k1 1
within 180000 "detach" xl network-detach k1 "$(mac 91)"
start_netbackd
eventually 240 "netbackd's guest answers" reach 10.0.0.3

say "-- without the kernel's driver"
destroy k1
destroy n1
rmmod xen-netback
guest n2 vif=bridge=xenbr0,script=vif-netbackd
address n2 10.0.0.4/24
eventually 240 "the guest answers" reach 10.0.0.4
netbackd list
same "state of n2" "$(state_of n2)" connected
