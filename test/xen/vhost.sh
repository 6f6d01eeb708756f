# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Functions of the scenarios about vhost-user, which read this file. The device has the TAP
# vhost0. SERVER and FRONT are the process ids of netbackd vhost-user and of the front end.

# serve [ARGUMENT...] starts netbackd vhost-user.
serve() {
	rm -f /tmp/vhost.sock
	netbackd vhost-user --socket-path /tmp/vhost.sock --tap vhost0 --queues 1 --mtu 9000 --xen "$@" >>/tmp/netbackd.log 2>&1 &
	SERVER=$!
	eventually 60 "netbackd vhost-user answers" netbackd show vhost0
	ip link set vhost0 up
}

# stop_serving stops it. It must end with exit code 0 and remove its TAP.
stop_serving() {
	local code=0
	kill "$SERVER"
	wait "$SERVER" || code=$?
	same "exit code of netbackd vhost-user" $code 0
	not test -e /sys/class/net/vhost0
}

# start_driver NAME [ARGUMENT...] starts our own virtio network driver in a guest. It
# publishes where it has its rings, for front ends in dom0.
start_driver() {
	local name=$1
	shift
	in_guest "$name" "rm -f /tmp/virtio.*; mkfifo /tmp/virtio.in
		/netbackd-lab virtio guest $* <>/tmp/virtio.in >/tmp/virtio.out 2>/tmp/virtio.err &
		until test -s /tmp/virtio.out; do kill -0 \$! || { cat /tmp/virtio.err; exit 1; }; sleep 0.1; done"
}

# driver NAME COMMAND sends a command to that driver and prints its answer. Commands are in
# internal/lab/virtfront/player.go.
driver() {
	in_guest "$1" "n=\$(wc -l </tmp/virtio.out); echo '$2' >/tmp/virtio.in
		until test \$(wc -l </tmp/virtio.out) -gt \$n; do sleep 0.1; done
		tail -n 1 /tmp/virtio.out | tee /tmp/answer; ! grep -q ^error /tmp/answer"
}

# launch COMMAND [ARGUMENT...] starts a front end of netbackd-lab; its input is that of launch.
launch() {
	: >/tmp/front.log # at once: running must not read the last one's
	/host/netbackd-lab virtio "$1" --socket /tmp/vhost.sock "${@:2}" <&0 >/tmp/front.log 2>&1 &
	FRONT=$!
}

# running waits until the front end has started the rings and frames can pass.
running() {
	eventually 60 "the front end starts the rings" begun
	grep -q started: /tmp/front.log || fail "the front end: $(cat /tmp/front.log)"
	eventually 60 "the interface has a carrier" carrier
}
begun() { grep started: /tmp/front.log || not kill -0 "$FRONT"; }
carrier() { [ "$(cat /sys/class/net/vhost0/carrier)" = 1 ]; }

# front NAME ARGUMENT... starts the front end of a guest and waits until frames can pass.
front() {
	launch front --domid "${DOMID[$1]}" "${@:2}"
	running
}

# leave ends the front end, which stops the rings, and waits for the end of its session.
leave() {
	kill "$FRONT"
	wait "$FRONT" || fail "the front end: $(cat /tmp/front.log)"
	eventually 60 "netbackd waits for the next front end" waits
}
waits() { netbackd show vhost0 | grep -w waiting; }

# peer COUNT [ARGUMENT...] sends frames to the guest, and checks that it answers each.
peer() { /host/netbackd-lab virtio peer --device vhost0 --count "$1" "${@:2}"; }

# checked NAME COUNT fails unless the driver got as many frames, and nothing that is wrong.
checked() {
	local said
	said=$(driver "$1" stats)
	grep " good=$2 .* bad=0 gaps=0 broken=0 " <<<"$said" >/dev/null || fail "$1: $said"
}

# dropped REASON prints the number of packets that netbackd dropped for this reason.
dropped() { netbackd show vhost0 | awk -v name="$1" '$1 == "drop" && $2 == name { n = $3 } END { print n + 0 }'; }

# received sets RECEIVED to the frames that came out of the TAP.
received() { read -r RECEIVED </sys/class/net/vhost0/statistics/rx_packets; }

# flood NAME makes the driver send as much as it can, and waits until that has an effect.
flood() {
	received
	driver "$1" "flood on"
	eventually 120 "frames come from $1" flows $((RECEIVED + 200))
}
flows() {
	received
	[ "$RECEIVED" -gt "$1" ]
}
