# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What can go wrong with memory that Xen shares: front ends of vhost-user pass wrong tables
# and are killed, guests end grants that are in use and are destroyed under traffic, netbackd
# is killed. Each costs that session, with one line in the log, and no page stays in use. An
# ordinary vif keeps its streams.
. /host/vhost.sh

# refused WORDS ARGUMENT... connects a front end whose table is refused. The reason must have
# these words; there may be others between them.
refused() {
	local error=${1// /.+} before
	shift
	expect_error "$error"
	before=$(grep -cE "$error" /tmp/netbackd.log || true)
	launch front "$@"
	not wait "$FRONT" || fail "not refused: $*"
	grep -q 'back end refuses' /tmp/front.log || fail "$*: $(cat /tmp/front.log)"
	eventually 60 "netbackd waits for the next front end" waits
	same "lines in the log for '$error'" $(($(grep -cE "$error" /tmp/netbackd.log) - before)) 1
}

# destroyed NAME destroys a guest under traffic. Its front end leaves then.
destroyed() {
	destroy "$1"
	wait "$FRONT" || fail "the front end: $(cat /tmp/front.log)"
	grep 'the domain is gone' /tmp/front.log
	eventually 240 "the domain is gone" gone "$1"
}
gone() { not grep -qwE "null|$1" <<<"$(xl list)"; }

start_netbackd
make_bridge
make_guest u0
make_guest pv vif= memory=160 cmdline=no-netfront file=/host/netbackd-lab
make_guest pv2 vif= memory=160 cmdline=no-netfront file=/host/netbackd-lab
make_guest pvh vif= memory=160 type=pvh cmdline=no-netfront file=/host/netbackd-lab
up u0 pv pv2 pvh
address u0 10.0.0.2/24
eventually 240 "the guest with a vif answers" reach 10.0.0.2
begin_streams u0 10.0.0.2 3
serve
pv=${DOMID[pv]} pvh=${DOMID[pvh]}
before=$(in_use pv)

start_driver pv --event-idx
start_driver pvh --foreign
for flags in 3 9 8 0x10a 0x80000002; do
	refused "flags of a region are not valid: $(printf '%#x' $flags)" --domid "$pv" --flags $flags
done
refused "region 2 map" --domid "$pv" --flags 2 --beyond 4096000
refused "region 0 map" --domid "$pv" --flags 2 --region-domid "$pvh"
refused "region 2 page .* invalid argument" --domid "$pvh" --flags 1 --beyond 0x40000000
refused "region 0 operation not permitted" --domid "$pvh" --flags 1 --restrict "$pv"
refused "domain of a region is not valid" --domid "$pv" --flags 2 --region-domid 0x7ff4
same "pages in use after refusals" "$(in_use pv)" "$before"

# The guest ends grants of buffers. Those that are copied cannot be any more, and only the
# packets in them are lost.
front pv --flags 0x102
peer 200
driver pv revoke
peer 400 --loss 4
driver pv stats
same "packets in the page that was revoked" "$(dropped tx_grant)" 1
[ "$(dropped rx_grant)" -ge 1 ]
leave
driver pv quit
# Those that are mapped stay so.
start_driver pv
front pv --flags 2
driver pv "revoke tx"
peer 200
same "packets in the page that was revoked" "$(dropped tx_grant)" 1
leave
driver pv quit

# The front end is killed, and then netbackd.
start_driver pv --event-idx
front pv --flags 0x102
flood pv
kill -KILL "$FRONT"
eventually 60 "netbackd waits for the next front end" waits
driver pv quit
same "pages in use after the front end" "$(in_use pv)" "$before"
start_driver pv
front pv --flags 2
flood pv
kill -KILL "$SERVER"
wait "$SERVER" 2>/dev/null || true
not wait "$FRONT" || fail "the front end has not noticed"
driver pv quit
same "pages in use after netbackd" "$(in_use pv)" "$before"
serve

start_driver pv --event-idx
front pv --flags 2
flood pv
destroyed pv
start_driver pv2 --event-idx
front pv2 --flags 0xa --parts
flood pv2
destroyed pv2
front pvh --flags 1
flood pvh
destroyed pvh

pings dom0 10.0.0.2
stop_serving
end_streams u0
