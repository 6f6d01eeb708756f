# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest that sends as much as it can is rebooted by xl, reboots itself, and crashes. Each time
# it starts as a new domain with a new vif, and nothing of the old one is left.

start_netbackd
make_bridge
guest u1 on=restart

# comes_back HOW COMMAND...
comes_back() {
	local was=${DOMID[u1]} began
	address u1 10.0.0.2/24
	eventually 240 "the guest answers" reach 10.0.0.2
	iperf3 -s -1 -D
	in_guest u1 "iperf3 -c $DOM0 -t 600 >/dev/null 2>&1 &"
	eventually_moves 240 4000000
	began=$(now)
	"${@:2}" >/dev/null
	killall iperf3
	another() { id=$(xl domid u1) && [ "$id" != "$was" ]; }
	eventually 240 "xl creates the guest again" another
	DOMID[u1]=$id
	up u1
	say "$1: up again after $(($(now) - began)) ms as domain ${DOMID[u1]}"
	eventually 240 "the old vif is gone" not test -e "/sys/class/net/vif$was.0"
	dying() { xl list | grep null >/dev/null; }
	eventually 240 "no dying domain is left" not dying
	connects u1
	same "vifs" "$(netbackd list | grep -c '^vif')" 1
}
comes_back "xl reboot" xl reboot u1
comes_back "reboot from inside" post u1 "reboot -f"
comes_back "crash" post u1 "echo c >/proc/sysrq-trigger"
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
