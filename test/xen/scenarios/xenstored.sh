# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# xenstored is replaced while it runs, without effect on netbackd. Then it is killed and started
# again. Xen 4.17 needs a boot of the host after that: the new xenstored knows no guest, and the
# guests' connections to it are lost. netbackd reports that, and a guest keeps its network until
# the boot.

# logged TEXT succeeds if one line of netbackd's log matches.
logged() { [ "$(grep -c "$1" /tmp/netbackd.log)" = 1 ]; }

restart_xenstored() {
	rm -f /run/xenstored.pid
	xenstored --pid-file /run/xenstored.pid
	eventually 240 "xenstored answers" xenstore-read /
}

start_netbackd
make_bridge
guest u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2

within 180000 "live update" xenstore-control live-update -s /usr/lib/xen-4.17/bin/xenstored
within 180000 "attach" xl network-attach u1 "mac=$(mac 90)" bridge=xenbr0
connects u1 1
within 180000 "detach" xl network-detach u1 1
not logged "xenstore connection lost"

begin_transfer u1 dom0 "$DOM0" 5001 16 1
eventually_moves 240 1000000
LOST="its xenstored has been killed"
kill -KILL "$(cat /run/xenstored.pid)"
eventually 240 "netbackd has noticed" logged "xenstore connection lost; packets keep moving"
eventually 240 "netbackd looks for another" logged "xenstore connect failed.*connection refused"
reach 10.0.0.2 | tail -n 2
netbackd list | grep -E "^$(vif u1) .* connected "
restart_xenstored
xen-init-dom0
eventually 240 "netbackd has noticed" grep "xenstore has come back empty" /tmp/netbackd.log
xenstore-ls -f /local/domain
not xenstore-exists "/local/domain/${DOMID[u1]}"
sleep 3 # netbackd tries again every 2 s
netbackd list
same "state" "$(netbackd list | awk 'NR == 2 { print $3 }')" connected
reach 10.0.0.2 | tail -n 2
logged "xenstore has come back empty"
end_transfer dom0 5001 16 240
kill -KILL "$(cat /run/xenstored.pid)"
within 180000 "stop, without xenstored" stop_netbackd
restart_xenstored # the collection of logs would wait for it for ever
grep xenstore /tmp/netbackd.log
