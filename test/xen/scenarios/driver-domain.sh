# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# netbackd serves guests in a driver domain, which may read little of xenstore. There xl devd
# runs the stock vif-bridge. A guest's vif is detached and attached, netbackd is killed under
# a stream, the guest is saved and restored, and the driver domain is destroyed and made again
# under the running guest. Each time the guest gets its network, and netbackd logs no error.

# make_driver makes the driver domain dd: a guest with the files of this dom0.
make_driver() {
	[ -e /tmp/driver.cpio ] || (
		cd /
		find . -xdev \( -path ./guest -o -path ./tmp -o -path ./run -o -path ./var/log \) -prune -o -print |
			grep -vx ./init | cpio -o -H newc 2>/dev/null >/tmp/driver.cpio
	)
	make_guest dd vif= memory=320 "kernel=$kernel" cmdline=no-netfront archive=/tmp/driver.cpio config="driver_domain = 1"
	up dd
	BACK=${DOMID[dd]}
	in_guest dd "mkdir -p /run/lock /run/xen /run/xen-hotplug /var/log/xen
		ln -s /proc/self/fd /dev/fd
		modprobe -a xenfs xen-privcmd xen-gntdev bridge && modprobe xen-gntalloc limit=2048 && mount -t xenfs xenfs /proc/xen
		ip link add name xenbr0 type bridge stp_state 0 forward_delay 0
		ip address add $DOM0/24 dev xenbr0 && ip link set xenbr0 up
		$run
		xl devd -p /run/devd.pid 2>/dev/null # hides the error that it may not count processors
		netbackd check | grep '^ok *xenstore '"
}
kernel=bookworm
[[ $(uname -r) = 6.1.* ]] || kernel=trixie
run="(netbackd run >>/tmp/netbackd.log 2>&1 &); until netbackd list >/dev/null 2>&1; do sleep 0.1; done"

# answers fails unless the driver domain answers pings of the guest, which has a new interface.
answers() {
	connects u1
	address u1 10.0.0.2/24
	in_guest u1 "until ping -c 1 -W 1 $DOM0; do sleep 0.1; done" >/dev/null
	pings dd 10.0.0.2
	own_pages
}

# own_pages fails unless the driver domain has granted all pages that it wants to itself, which
# takes its own number.
own_pages() { in_guest dd "netbackd show | grep '^own pages  *\\([0-9][0-9]*\\) of \\1\$'"; }

# left_alone fails unless the driver domain has removed all of a vif and logged no error.
left_alone() {
	in_guest dd "until test -z \"\$(ls -d /sys/class/net/vif* /run/netbackd/ring-* 2>/dev/null)\" && ! xenstore-exists backend/vif; do sleep 0.1; done
		netbackd list | grep -qx 'no vifs'"
	same "complaints" "$(in_guest dd "grep -E 'panic|WARN|ERROR' /tmp/netbackd.log; xenstore-ls error")" ""
}

make_driver
guest u1 memory=128 vif=bridge=xenbr0,backend=dd
answers
exchange dd "$DOM0" u1 10.0.0.2 1

within 180000 "detach" quiet xl network-detach u1 0
left_alone
within 180000 "attach" quiet xl network-attach u1 "mac=$(mac 90)" bridge=xenbr0 backend=dd
answers

begin_transfer u1 dd "$DOM0" 5003 3 1
in_guest dd "killall -9 netbackd; $run"
end_transfer dd 5003 3 240
own_pages
same "frontend" "$(xenstore-read "/local/domain/${DOMID[u1]}/device/vif/0/state")" 4

within 240000 "xl save" xl save u1 /tmp/u1.save 2>/dev/null
left_alone
within 240000 "xl restore" xl restore /tmp/u1.save 2>/dev/null
rm /tmp/u1.save
DOMID[u1]=$(xl domid u1)
connects u1
eventually 240 "the guest answers" on dd "ping -c 1 -W 1 10.0.0.2"

destroy dd
within 180000 "detach what is left" xl network-detach u1 0
make_driver
within 180000 "attach" quiet xl network-attach u1 "mac=$(mac 90)" bridge=xenbr0 backend=dd
answers
in_guest dd "netbackd list"
destroy u1
left_alone
destroy dd
