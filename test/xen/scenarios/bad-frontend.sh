# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A guest without xen-netfront writes wrong keys of its vif by hand. Each time netbackd closes
# the vif, reports the reason in its list, in one line of its log and in an error node, and is
# ready for the next attempt. In the end the guest loads xen-netfront, which connects.

# wrong WORDS [KEY=VALUE...] connects the guest with these keys and no others. The error must
# have these words; there may be quotes between them.
wrong() {
	local error=${1// /[^a-z]+} key before
	shift
	expect_error "$error"
	before=$(errors "$error" | wc -l)
	in_guest u1 "back() { until test \"\$(xenstore-read \$(xenstore-read device/vif/0/backend)/state)\" = \$1; do sleep 0.05; done; }
		for key in \$(xenstore-list device/vif/0); do
			case \$key in backend | backend-id | state | handle | mac | mtu | trusted) ;; *) xenstore-rm device/vif/0/\$key ;; esac
		done
		xenstore-write device/vif/0/state 1
		back 2
		$(for key; do printf "xenstore-write -- 'device/vif/0/%s' '%s'\n" "${key%%=*}" "${key#*=}"; done)
		xenstore-write device/vif/0/state 4
		back 6"
	netbackd list | tail -n 1
	netbackd list | grep -E "^vif.* closed .*$error" >/dev/null
	xenstore-read "/local/domain/0/error/backend/vif/${DOMID[u1]}/0/error" | grep -E "$error" >/dev/null
	same "lines in the log" $(($(errors "$error" | wc -l) - before)) 1
}

start_netbackd --max-queues=2
make_bridge
guest u1 cmdline=no-netfront
copy=request-rx-copy=1
# Grant 0 is the page of the guest's console, which dom0 may map.
rings="tx-ring-ref=0 rx-ring-ref=0"
wrong "request-rx-copy is missing"
wrong "request-rx-copy is 0" request-rx-copy=0
wrong "tx-ring-ref is missing" $copy
wrong "tx-ring-ref is 12x" $copy tx-ring-ref=12x
wrong "rx-ring-ref is missing" $copy tx-ring-ref=8
wrong "event-channel is missing" $copy tx-ring-ref=8 rx-ring-ref=9
wrong "num-queues is 0" $copy multi-queue-num-queues=0
wrong "event-channel is missing" $copy tx-ring-ref=8 rx-ring-ref=9 event-channel-tx=9
wrong "num-queues is 4294967297" $copy multi-queue-num-queues=4294967297
wrong "queue-0/tx-ring-ref is missing" $copy multi-queue-num-queues=2
wrong "map tx ring" $copy tx-ring-ref=4000000000 rx-ring-ref=9 event-channel=9
# shellcheck disable=SC2086 # two words
wrong "bind" $copy $rings event-channel=4000
netbackd show "$(vif u1)"
in_guest u1 "xenstore-write device/vif/0/state 1 && modprobe xen-netfront"
connects u1
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
same "note" "$(netbackd list | awk 'NR == 2 { print $NF }')" "-"
not xenstore-exists "/local/domain/0/error/backend/vif/${DOMID[u1]}"
