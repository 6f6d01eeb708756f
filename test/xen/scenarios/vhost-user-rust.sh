# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# program: rust-front
#
# A front end of vhost-user on the crates of rust-vmm, which encode all messages and map
# memory themselves, hands a guest's memory over to netbackd: all of it in advance, only the
# rings in advance, none of it, and foreign pages. Every byte of frames is checked, both ways.
# A table that is not valid is refused.
. /host/vhost.sh

# rust FLAGS DOMID starts the front end. A line to descriptor IN ends it.
rust() {
	exec {IN}<>/tmp/rust.in
	/host/rust-front /tmp/vhost.sock "$1" "$2" /tmp/layout <&"$IN" >/tmp/front.log 2>&1 &
	FRONT=$!
}

# ends waits until it has stopped the rings.
ends() {
	echo quit >&"$IN"
	wait "$FRONT" || fail "the front end: $(cat /tmp/front.log)"
	eventually 60 "netbackd waits for the next front end" waits
	exec {IN}<&-
	cat /tmp/front.log
}

# kind NAME DRIVER FLAGS: frames in one kind of memory.
kind() {
	start_driver "$1" "$2"
	/host/netbackd-lab virtio layout --domid "${DOMID[$1]}" >/tmp/layout
	rust "$3" "${DOMID[$1]}"
	running
	say "$1 $2 $3: $(peer 500)"
	checked "$1" 500
	ends
	driver "$1" quit
}

mkfifo /tmp/rust.in
make_guest pv vif= memory=160 cmdline=no-netfront file=/host/netbackd-lab
make_guest pvh vif= memory=160 type=pvh cmdline=no-netfront file=/host/netbackd-lab
up pv pvh
make_bridge
serve

kind pv "" 2
kind pv --event-idx 0xa
kind pv "" 0x102
kind pvh "--foreign --event-idx" 1
rust 0 0
running
ends

start_driver pv
/host/netbackd-lab virtio layout --domid "${DOMID[pv]}" >/tmp/layout
rust 3 "${DOMID[pv]}"
not wait "$FRONT" || fail "flags 3 are not refused"
grep refused: /tmp/front.log
grep 'flags of a region are not valid: 0x3' /tmp/netbackd.log
driver pv quit
stop_serving
