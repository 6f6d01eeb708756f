# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The functions that scenarios use, and the program that runs one: bash lib.sh NAME.
#
# A scenario is a bash script in dom0, with errexit: the first command that fails ends it and
# is reported. At the end of every scenario its guests are destroyed and netbackd is stopped,
# and nothing may be left behind.
set -eEuo pipefail
shopt -s inherit_errexit

DOM0=10.0.0.1      # dom0's address on the bridge
declare -A DOMID   # of each guest, by name
declare -i GUESTS=0
declare -i NOW     # set by clock
BACK=0             # the domain that serves vifs
NETBACKD=          # the process id of netbackd
LOST=              # reason why dom0 must be booted again

say() { printf '%s\n' "$*"; }
fail() {
	printf 'FAILED: %s\n' "$*" >&2
	trap - ERR
	exit 1
}
trap 'fail "${BASH_SOURCE[0]##*/}:$LINENO: exit code $?: $BASH_COMMAND"' ERR

# On an emulated machine the start of a process takes longer than most events that scenarios
# wait for, and delays these events. So the functions that wait start no processes.

# clock sets NOW to the time in milliseconds, now prints it.
clock() { NOW=$((${EPOCHREALTIME/[.,]/} / 1000)); }
now() {
	clock
	echo $NOW
}

# A pipe that never has anything to read.
exec {NEVER}<> <(:)
pause() { read -rt "$1" -u "$NEVER" || true; }

# eventually SECONDS WHAT COMMAND...: waits until the command succeeds.
eventually() {
	local limit=$1 what=$2 end
	shift 2
	clock
	end=$((NOW + limit * 1000))
	until "$@" >/dev/null 2>&1; do
		clock
		[ "$NOW" -lt $end ] || fail "not within $limit s: $what"
		pause 0.1
	done
}

# becomes SECONDS WHAT NODE PATTERN: waits until the value of a node in xenstore matches,
# and sets VALUE to it. It uses a watch.
becomes() {
	local end changes
	VALUE=
	clock
	end=$((NOW + $1 * 1000))
	exec {changes}< <(exec xenstore-watch "$3")
	# The first line comes at once, without a change.
	while [ $NOW -lt $end ] && read -rt $(((end - NOW) / 1000 + 1)) -u "$changes"; do
		VALUE=$(xenstore-read -R "$3" 2>/dev/null) || VALUE=
		# shellcheck disable=SC2053 # a pattern
		[[ $VALUE != $4 ]] || break
		clock
	done
	kill "$!" || true
	exec {changes}<&-
	# shellcheck disable=SC2053
	[[ $VALUE = $4 ]] || fail "not within $1 s: $2"
}

# within MS WHAT COMMAND...: runs the command and prints the time that it took. It fails if
# that was more than MS milliseconds.
within() {
	local limit=$1 what=$2 began took
	shift 2
	clock
	began=$NOW
	"$@" || fail "$what: exit code $?"
	clock
	took=$((NOW - began))
	say "$what: $took ms"
	[ $took -le "$limit" ] || fail "$what took $took ms, more than $limit ms"
}

# quiet COMMAND... runs a command that must not print to stderr.
quiet() {
	"$@" 2>/tmp/complaint || return
	[ ! -s /tmp/complaint ] || fail "$*: $(cat /tmp/complaint)"
}

# same WHAT GOT WANT fails if both are not equal.
same() { [ "$2" = "$3" ] || fail "$1: got '$2', want '$3'"; }

# node PATH VALUE succeeds if the node has this value.
node() { [ "$(xenstore-read "$1" 2>/dev/null)" = "$2" ]; }
not() { ! "$@"; }

# no_netback keeps the kernel's driver from being loaded. In the dom0 with systemd udev loads
# it for the first vif, unless the package of netbackd is installed.
no_netback() {
	# udev does not notice a new folder of configuration.
	mkdir -p /etc/modprobe.d
	echo "blacklist xen-netback" >/etc/modprobe.d/scenario.conf
	[ ! -d /sys/module/xen_netback ] || modprobe -r xen-netback
}

# start_netbackd [ARGUMENT...] starts netbackd and returns when it answers.
start_netbackd() {
	netbackd run "$@" >>/tmp/netbackd.log 2>&1 &
	NETBACKD=$!
	eventually 240 "netbackd answers" netbackd list
}

# stop_netbackd stops netbackd, which must end in time and with exit code 0.
stop_netbackd() {
	local code=0
	kill -TERM "$NETBACKD" || fail "netbackd is not running"
	eventually 240 "netbackd ends" not kill -0 "$NETBACKD"
	wait "$NETBACKD" || code=$?
	NETBACKD=
	same "exit code of netbackd" $code 0
}

# load_netback loads the kernel's own back end. It is unloaded after the scenario.
load_netback() { modprobe xen-netback; }

# install_scripts puts our hotplug scripts beside the stock ones.
install_scripts() {
	rm -f /etc/xen/scripts/{vif-netbackd*,block-blkbackd}
	cp -a /host/etc/xen/scripts /etc/xen/
}

# kernels NAME [DEVID] succeeds if the kernel's driver has the vif of that guest.
kernels() { test -e "/sys/bus/xen-backend/drivers/vif/vif-${DOMID[$1]}-${2:-0}"; }

# kill_netbackd kills netbackd with SIGKILL.
kill_netbackd() {
	kill -KILL "$NETBACKD"
	wait "$NETBACKD" 2>/dev/null || true
	NETBACKD=
}

# make_bridge [NAME [ADDRESS/LENGTH]] makes a bridge and sets it up.
make_bridge() {
	local name=${1:-xenbr0}
	ip link add name "$name" type bridge stp_state 0 forward_delay 0
	ip address add "${2:-$DOM0/24}" dev "$name"
	ip link set "$name" up
}

# guest NAME [KEY=VALUE...] makes a guest and waits until it takes scripts. To make several,
# call make_guest for each and then up for all: they boot at the same time.
guest() {
	make_guest "$@"
	up "$1"
}

# make_guest NAME [KEY=VALUE...] makes a guest. Keys:
#   vif      as in xl.cfg, without a mac; several with spaces between them; one on
#            xenbr0 by default, none with "vif="
#   vcpus, memory
#   kernel   name of a Debian release, bookworm by default
#   type     pv by default, or pvh
#   on       action of xl when the guest crashes or reboots; destroy by default
#   cmdline  more for the kernel's command line; no-netfront: without xen-netfront;
#            no-blkfront: without xen-blkfront and its programs
#   file     a file to put into the guest's root
#   archive  an initramfs, to be unpacked over the guest's own
#   config   another line of xl.cfg
#   disk     as in xl.cfg; several with spaces between them. With this key the guest has
#            xen-blkfront, fio and the programs of ext4. It is also for a guest without a disk
#            that gets one later: "disk="
make_guest() {
	local name=$1 vif=bridge=xenbr0 vcpus=1 memory=192 kernel=bookworm type=pv on=destroy cmdline=''
	local files=() archives=() config='' argument from=/guest vifs='' disk=none disks=''
	local -i devid=0
	shift
	for argument; do
		case $argument in
		disk=* | vif=* | vcpus=* | memory=* | kernel=* | type=* | on=* | cmdline=* | config=*) local "$argument" ;;
		archive=*) archives+=("${argument#*=}") ;;
		file=*) files+=("${argument#*=}") ;;
		*) fail "guest: $argument" ;;
		esac
	done
	GUESTS+=1
	for vif in $vif; do
		vifs+="'mac=$(mac $((GUESTS + 16 * devid))),$vif', "
		devid+=1
	done
	if [ "$kernel" != bookworm ]; then
		from=/tmp/guest/$kernel
		if [ ! -e "$from" ]; then # the share is slow, and the time of xl is measured
			mkdir -p /tmp/guest
			cp -r "/host/guest/$kernel" /tmp/guest/
		fi
	fi
	if [ "$disk" != none ]; then
		for disk in $disk; do disks+="'$disk', "; done
	fi
	if [ "$disk" != none ] && [[ $cmdline != *no-blkfront* ]]; then
		[ -e "/tmp/disk-$kernel.cpio" ] || cp "/host/disk-$kernel.cpio" /tmp/
		archives+=("/tmp/disk-$kernel.cpio")
		memory=$((memory + 256))
	fi
	cat $from/initramfs "${archives[@]}" >"/tmp/$name.initramfs"
	[ ${#files[@]} = 0 ] || (
		rm -rf "/tmp/$name.files" # of a guest of that name before
		mkdir "/tmp/$name.files"
		cp "${files[@]}" "/tmp/$name.files/"
		cd "/tmp/$name.files"
		find . | cpio -o -H newc 2>/dev/null >>"/tmp/$name.initramfs"
	)
	cat >"/tmp/$name.cfg" <<-END
		name = "$name"
		type = "$type"
		kernel = "$from/vmlinux"
		ramdisk = "/tmp/$name.initramfs"
		extra = "console=hvc0 loglevel=4 mitigations=off nokaslr audit=0 panic=1 $cmdline"
		memory = $memory
		vcpus = $vcpus
		vif = [ $vifs ]
		disk = [ $disks ]
		on_crash = "$on"
		on_reboot = "$on"
		on_poweroff = "destroy"
		$config
	END
	within 240000 "xl create $name" xl create -q "/tmp/$name.cfg"
	DOMID[$name]=$(xl domid "$name")
}

# up NAME... waits until guests take scripts.
up() {
	local name
	for name; do becomes 600 "guest $name is up" "/local/domain/${DOMID[$name]}/data/up" 1; done
}

# mac N prints an address from Xen's range.
mac() { printf '00:16:3e:00:00:%02x' "$1"; }

# post NAME SCRIPT sends a script to a guest, and sets POSTED to its id.
post() {
	POSTED=$EPOCHREALTIME
	xenstore-write -- "/local/domain/${DOMID[$1]}/data/script" "$POSTED ${2//\\/\\\\}"
}

# in_guest NAME SCRIPT [SECONDS] runs a script in a guest, prints the end of its output (1500
# bytes, ASCII), and returns its exit code.
in_guest() {
	local status
	post "$1" "$2"
	becomes "${3:-300}" "guest $1: $2" "/local/domain/${DOMID[$1]}/data/reply" "$POSTED *"
	status=$VALUE
	[ "$status" = "${status#*$'\n'}" ] || printf '%s\n' "${status#*$'\n'}"
	status=${status%%$'\n'*}
	return "${status#* }"
}

# address NAME ADDRESS/LENGTH [INTERFACE] waits for the interface, adds the address, and sets
# the interface up.
address() {
	in_guest "$1" "until test -e /sys/class/net/${3:-eth0}; do sleep 0.1; done
		ip address add $2 dev ${3:-eth0} && ip link set ${3:-eth0} up" 60
}

# reach ADDRESS succeeds if the address answers a ping of dom0.
reach() { ping -c 1 -W 1 "$1"; }

# pings WHERE ADDRESS [OPTION...] sends five pings, one after the other, and fails unless each
# is answered. Each ping is a process: after its first answer, ping waits for the next answers
# only twice as long as the first one took, or a second, and ignores -W. On a machine that
# stands still for a second that would look like a loss.
pings() {
	local began said
	clock
	began=$NOW
	said=$(on "$1" "for n in 1 2 3 4 5; do ping -q -c 1 -W 30 ${*:3} $2 || exit 1; done" 160) ||
		fail "a ping from $1 to $2 ${*:3} is lost: $said; $(ping_counters "$1")"
	clock
	say "pings from $1 to $2 ${*:3}: 5 of 5 in $((NOW - began)) ms"
}

# ping_counters WHERE prints a kernel's counters of dropped packets.
ping_counters() { on "$1" "grep -E '^(Ip|Icmp):' /proc/net/snmp; ip -s link"; }

# vif NAME [DEVID] prints the name of a guest's vif.
vif() { echo "vif${DOMID[$1]}.${2:-0}"; }

# backend NAME [DEVID] prints the backend's directory of a guest's vif.
backend() { echo "/local/domain/$BACK/backend/vif/${DOMID[$1]}/${2:-0}"; }

# connects NAME [DEVID] waits until the backend goes Connected.
connects() { becomes 240 "the vif of $* is connected" "$(backend "$@")/state" 4; }

# counter VIF NAME prints one of netbackd's counters.
counter() { netbackd show "$1" | awk -v name="$2" '$1 == name { n = $2 } END { print n + 0 }'; }

# expect_error REGEX allows errors in netbackd's log that match.
expect_error() { printf '%s\n' "$1" >>/tmp/expected; }

# errors [REGEX] prints the errors in netbackd's log that match.
errors() { grep -sE 'panic|ERROR' /tmp/netbackd.log | grep -E -- "${1:-}" || true; }

# no_vifs succeeds if netbackd has no vifs.
no_vifs() { [ "$(netbackd list)" = "no vifs" ]; }

# on WHERE SCRIPT [SECONDS] runs a script in dom0 or in the guest of that name.
on() { if [ "$1" = dom0 ]; then timeout "${3:-300}" sh -c "$2"; else in_guest "$@"; fi; }

# The checksum of a TCP stream is compared at its end, so that no byte is lost, repeated or
# changed unnoticed. A stream consists of chunks of 1.2 MB.
CHUNK="test -e /tmp/chunk || { seq 1000000 1150000 >/tmp/chunk.\$\$ && mv /tmp/chunk.\$\$ /tmp/chunk; }" # another process may be reading it
declare -A SUMS # checksums, by number of chunks

# listener PORT prints a script for the receiving end.
listener() {
	# The fifo is an input without an end. At the end of its input nc would close.
	echo "mkfifo /tmp/$1.in
		(nc -l -p $1 <>/tmp/$1.in | md5sum >/tmp/$1.new; mv /tmp/$1.new /tmp/$1.sum) >/dev/null 2>&1 &
		until netstat -ltn | grep -q ':$1 '; do sleep 0.1; done"
}

# sender ADDRESS PORT CHUNKS [PAUSE] prints a script for the sending end. It sleeps for PAUSE
# seconds after each chunk. If CHUNKS is empty it sends until /tmp/PORT.enough exists.
sender() {
	echo "$CHUNK
		({
			n=0
			until test \$n = '$3' || test -e /tmp/$2.enough; do
				cat /tmp/chunk || exit
				n=\$((n + 1))
				${4:+sleep $4}
			done
			echo \$n >/tmp/$2.sent
		} | nc $1 $2) >/dev/null 2>&1 &"
}

# sum_of CHUNKS sets SUM to the checksum of this many chunks.
sum_of() {
	SUM=${SUMS[$1]:-$(sh -c "$CHUNK; for i in \$(seq $1); do cat /tmp/chunk; done" | md5sum)}
	SUMS[$1]=$SUM
}

# wait_for FILE prints a script that waits for a file and prints it.
wait_for() { echo "until test -e $1; do sleep 0.1; done; cat $1"; }

# end_transfer TO PORT CHUNKS SECONDS waits for the end of a stream and checks it.
end_transfer() {
	local sum
	sum=$(on "$1" "$(wait_for "/tmp/$2.sum")" "$4") || fail "the stream to $1 has not ended within $4 s"
	sum_of "$3"
	same "sum of $3 chunks to $1" "$sum" "$SUM"
	say "$3 chunks arrived at $1 unchanged"
}

# begin_transfer FROM TO ADDRESS PORT CHUNKS [PAUSE]: FROM and TO are guests or dom0,
# ADDRESS is that of TO.
begin_transfer() {
	on "$2" "$(listener "$4")"
	on "$1" "$(sender "$3" "$4" "$5" "${6:-}")"
}

# exchange A ADDRESS B ADDRESS CHUNKS sends this many chunks both ways at the same time. A and
# B are guests or dom0.
exchange() {
	on "$1" "$(listener 5001)"
	on "$3" "$(listener 5002); $(sender "$2" 5001 "$5")"
	on "$1" "$(sender "$4" 5002 "$5")"
	end_transfer "$1" 5001 "$5" 240
	end_transfer "$3" 5002 "$5" 240
	on "$1" "rm -f /tmp/500*"
	on "$3" "rm -f /tmp/500*"
}

# begin_streams NAME ADDRESS [PAUSE] starts streams both ways between dom0 and a guest. They
# last until end_streams NAME, which checks them. Their pauses leave processor time for other
# work.
begin_streams() {
	on dom0 "$(listener 5001)"
	in_guest "$1" "$(listener 5002); $(sender "$DOM0" 5001 "" "${3:-0.5}")"
	on dom0 "$(sender "$2" 5002 "" "${3:-0.5}")"
}
end_streams() {
	local to_dom0 to_guest
	not test -e /tmp/5001.sum || fail "the stream to dom0 has ended before its time"
	in_guest "$1" "test ! -e /tmp/5002.sum" || fail "the stream to $1 has ended before its time"
	touch /tmp/5002.enough
	to_dom0=$(in_guest "$1" "touch /tmp/5001.enough; $(wait_for /tmp/5001.sent)")
	to_guest=$(on dom0 "$(wait_for /tmp/5002.sent)")
	end_transfer dom0 5001 "$to_dom0" 240
	end_transfer "$1" 5002 "$to_guest" 240
}

# bad_sums WHERE prints the number of TCP segments with wrong checksums that a kernel received.
bad_sums() { on "$1" "awk '/^Tcp: [0-9]/ { print \$NF }' /proc/net/snmp"; }

# moved sets MOVED to the bytes that dom0 sent and received over the bridge.
moved() {
	local rx tx
	read -r rx </sys/class/net/xenbr0/statistics/rx_bytes
	read -r tx </sys/class/net/xenbr0/statistics/tx_bytes
	MOVED=$((rx + tx))
}
moved_on() {
	moved
	[ $MOVED -gt "$1" ]
}

# eventually_moves SECONDS BYTES waits until this many more bytes have crossed the bridge.
eventually_moves() {
	moved
	eventually "$1" "$2 bytes more go over the bridge" moved_on $((MOVED + $2))
}

# start_agent NAME VIF runs our own frontend in a guest without xen-netfront, and waits until
# it is connected. VIF is a JSON object, see internal/lab/guest/config.go.
start_agent() {
	in_guest "$1" "test -e /tmp/agent.in || mkfifo /tmp/agent.in
		/netbackd-lab guest --vif='$2' <>/tmp/agent.in >/tmp/agent.out 2>/tmp/agent.err &
		until grep -q '\"id\":0,' /tmp/agent.out; do kill -0 \$! || { cat /tmp/agent.err; exit 1; }; sleep 0.1; done"
}

# agent NAME COMMAND [ARGUMENTS] sends a command to that frontend, prints its answer, and fails
# if the answer is an error. Commands are in internal/lab/guest/protocol.go. It leaves out the
# part about each queue in the answer to stats.
agent() {
	local id=${EPOCHREALTIME/./} arguments=${3:-}
	in_guest "$1" "echo '{\"id\":$id,\"cmd\":\"$2\",\"args\":${arguments:-null}}' >/tmp/agent.in
		until answer=\$(grep '\"id\":$id,' /tmp/agent.out); do sleep 0.1; done
		echo \"\$answer\" | sed -E 's/,\"queues\":\[.*\](,\"violations\"|,\"broken\"|}})/\1/'
		! echo \"\$answer\" | grep -q '\"error\":\"'"
}

# agent_stat NAME FIELD prints a counter of that frontend.
agent_stat() { agent "$1" stats | sed "s/.*\"total\":{[^}]*\"$2\":\([0-9]*\).*/\1/"; }

# broken NAME prints the rules that the backend of that frontend has broken, and how often, as a
# JSON object; nothing if it has broken none. The rules are in internal/lab/netfront/violation.go.
broken() { agent "$1" stats | sed -n 's/.*"broken":\({[^}]*}\).*/\1/p'; }

# innocent NAME fails if that frontend has seen its backend violate the protocol.
innocent() { same "rules that the backend broke" "$(broken "$1")" ""; }

# innocent_after_kill NAME is innocent for a guest whose netbackd was killed, perhaps during a
# copy: bytes that it wrote into an rx page without publishing them are still there when its
# successor puts a shorter packet in the same page.
innocent_after_kill() {
	same "rules that the backend broke" "$(broken "$1" |
		sed -E 's/"rx page written outside of the data":[0-9]+,?//; s/,}/}/; s/^\{\}$//')" ""
}

# in_use NAME prints the grant references of a guest that another domain uses, according to
# Xen. Each is a line on Xen's console, whose buffer has room for some hundred.
in_use() {
	xl dmesg -c >/dev/null
	xl debug-keys g
	eventually 240 "Xen prints its grant tables" dumped
	xl dmesg | awk -v dom="d${DOMID[$1]}" '
		/grant-table for remote / { on = index($0 " ", " " dom " ") }
		on && match($0, /\[0x[0-9a-f]+\]/) { print substr($0, RSTART + 1, RLENGTH - 2) }' |
		while read -r ref; do echo $((ref)); done | sort -n
}
dumped() { xl dmesg | grep 'gnttab_usage_print_all \] done'; }

# destroy NAME destroys a guest. If the backend does not close within 10 s xl prints that, but
# its exit code is 0.
destroy() {
	within 240000 "xl destroy $1" quiet xl destroy "$1"
	unset "DOMID[$1]"
}

# nothing_left succeeds if there is no guest, not even a dying one, and no interface, node or
# journal.
nothing_left() {
	! compgen -G '/sys/class/net/vif*' && ! compgen -G '/run/netbackd/ring-*' &&
		[ -z "$(xenstore-list /local/domain/0/backend/vif 2>/dev/null)" ] && [ "$(xl list | wc -l)" = 2 ]
}

main() {
	local name said
	: >/tmp/expected
	# shellcheck source=/dev/null
	. "/host/scenarios/$1.sh"
	if [ -z "$LOST" ]; then
		for name in "${!DOMID[@]}"; do destroy "$name"; done
		eventually 240 "no guest, interface or node is left" nothing_left
	else
		say "dom0 is lost: $LOST"
	fi
	[ -z "$NETBACKD" ] || stop_netbackd
	! test -e /sys/module/xen_netback || rmmod xen-netback
	said=$(errors | grep -vEf /tmp/expected) || true
	[ -z "$said" ] || fail "netbackd has complained: $said"
	said=$(dmesg | grep -E 'BUG:|Oops|Call Trace') || true
	[ -z "$said" ] || fail "dom0's kernel has complained: $said"
}
main "$1"
