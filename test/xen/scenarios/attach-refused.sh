# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Errors of the host when a vif is attached: a bridge that does not exist, a hotplug script
# that fails silently, and no back end. xl and netbackd list report them, detaching removes
# the vif, and the next attach works.

# refused WHY COMMAND... succeeds if xl ends with an error.
refused() {
	local began code=0
	began=$(now)
	"${@:2}" >/tmp/refused 2>&1 || code=$?
	say "$1: exit code $code after $(($(now) - began)) ms"
	sed 's/^/  /' /tmp/refused
	[ $code != 0 ]
}
attach() { xl network-attach u1 "mac=$(mac 90)" "$@"; }
detach() {
	within 180000 "detach" xl network-detach u1 "$(mac 90)"
	eventually 240 "nothing is left" no_vifs
}
next_works() {
	detach
	within 180000 "attach" attach bridge=xenbr0
	address u1 10.0.0.2/24
	eventually 240 "the guest answers" reach 10.0.0.2
	detach
}
noted() { netbackd list | grep -E "^$(vif u1) .* $1\$"; }

start_netbackd
make_bridge
guest u1 vif=

expect_error "hotplug script.*Could not find bridge device none"
refused "no such bridge" attach bridge=none
eventually 240 "netbackd tells" noted "the hotplug script failed: Could not find bridge device none.*"
netbackd list
node "/local/domain/0/error/backend/vif/${DOMID[u1]}/0/error" "22 the hotplug script failed: Could not find bridge device none"
same "lines in the log" "$(errors "Could not find bridge" | wc -l)" 1
next_works

printf '#!/bin/sh\nexit 1\n' >/tmp/vif-fails
chmod +x /tmp/vif-fails
refused "the script fails without a word" attach bridge=xenbr0 script=/tmp/vif-fails
eventually 240 "netbackd tells" noted "waits for the hotplug script"
netbackd list
next_works

stop_netbackd
refused "no back end" attach bridge=xenbr0
same "state" "$(xenstore-read "$(backend u1)/state")" 1
start_netbackd
eventually 240 "netbackd tells" noted "waits for the hotplug script"
netbackd list
next_works
