# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# netbackd vhost-user serves guests whose memory Xen shares: granted pages that are mapped
# in advance, granted pages that are copied, foreign pages, and plain shared memory. Every
# byte of frames of all sizes is checked, both ways. Meanwhile an ordinary vif has streams.
# After each kind of memory no page of the guest is in use.
. /host/vhost.sh

# kind NAME DRIVER FRONT...: frames in one kind of memory. DRIVER and FRONT are arguments.
kind() {
	local before
	before=$(in_use "$1")
	start_driver "$1" "$2"
	front "$1" "${@:3}"
	say "$1 $2 ${*:3}: $(peer 1000)"
	checked "$1" 1000
	leave
	driver "$1" quit >/dev/null
	same "pages of $1 in use after ${*:3}" "$(in_use "$1")" "$before"
}

start_netbackd
make_bridge
make_guest u0
make_guest pv vif= memory=160 cmdline=no-netfront file=/host/netbackd-lab
make_guest pvh vif= memory=160 type=pvh cmdline=no-netfront file=/host/netbackd-lab
up u0 pv pvh
address u0 10.0.0.2/24
eventually 240 "the guest with a vif answers" reach 10.0.0.2
begin_streams u0 10.0.0.2 3
serve

kind pv "" --flags 2
kind pv --event-idx --flags 2
kind pv --event-idx --flags 0x102
kind pv "" --flags 0xa --parts
kind pv "--packed --event-idx" --flags 0x102
kind pvh --event-idx --flags 2
kind pvh --foreign --flags 1
kind pvh "--foreign --packed" --flags 1 --restrict "${DOMID[pvh]}"

rm -f /tmp/plain
mkfifo /tmp/plain
exec {plain}<>/tmp/plain
launch plain --event-idx <&"$plain"
running
say "plain: $(peer 1000)"
netbackd show vhost0
echo quit >&"$plain"
wait "$FRONT" || fail "the front end: $(cat /tmp/front.log)"
grep ' good=1000 .* bad=0 gaps=0 broken=0 ' /tmp/front.log

stop_serving
end_streams u0
