# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Hostile requests that Linux's netfront never sends: our own frontend plays scripts of
# test/cross in a real guest. Each script has the expected results, and its transcript must
# equal that of the embedded Xen (test/scenario, TestScriptsOfBothXens). The guest's other vif
# loses no packet. This scenario plays the scripts about packets; cross-rest plays the others.

packets="grants rx tx-broken tx-odd extras"
: "${scripts:=$packets}" "${count:=80}" # pings of the other vif

# netbackd_for RX_STALL starts netbackd. A guest without buffers must stall in the script about
# that and in no other, however slow this machine is.
netbackd_for() { start_netbackd --max-queues=4 "--rx-stall=$1" --rx-drain=1h --control-ring=both --static-grants=1100; }

netbackd_for 1h
make_bridge xenbr0
ip link set xenbr0 mtu 9000
files=()
for script in $scripts; do files+=("file=/host/cross/$script.ring" "file=/host/cross/$script.said"); done
guest u1 memory=256 cmdline=no-netfront vif="bridge=xenbr0,mtu=9000 bridge=xenbr0" file=/host/netbackd-lab "${files[@]}"
cp /host/netbackd-lab /tmp/
/tmp/netbackd-lab guest umpire --domid "${DOMID[u1]}" >/tmp/umpire.log 2>&1 &
umpire=$!
start_agent u1 '{"addrs":["10.0.0.2/24"],"front":{"dir":"device/vif/1","strict":true,"control":true}}'
eventually 240 "the other vif answers" reach 10.0.0.2
in_guest u1 "echo '{\"id\":1,\"cmd\":\"ping\",\"timeout_ns\":500000000000,\"args\":{\"addr\":\"$DOM0\",\"count\":$count,\"interval_ns\":250000000,\"timeout_ns\":200000000000}}' >/tmp/agent.in"

# plays SCRIPT...: one process plays them, so that the guest's grants are made once.
failed=
plays() {
	in_guest u1 "/netbackd-lab guest script -o /tmp/said $(printf ' /%s.ring' "$@")" 850 >/tmp/played ||
		failed+=" $(grep -m 1 '^netbackd: ' /tmp/played || true)"
	cat /tmp/played
}
in_guest u1 "mkdir /tmp/said"
others=${scripts/rx-stall/}
# shellcheck disable=SC2086 # lists
plays $others
if [ "$others" != "$scripts" ]; then
	stop_netbackd
	netbackd_for 3s
	plays rx-stall
fi
said=$(in_guest u1 "until grep -q '\"id\":1,' /tmp/agent.out; do sleep 0.3; done
	sed -n 's/\"rtt_ns\".*//; /\"id\":1,/p' /tmp/agent.out" 240)
grep -q '"received":'"$count"',.*"corrupt":0' <<<"$said" || fail "the other vif: $said"
innocent u1
agent u1 quit
in_guest u1 'for said in /*.said; do
		name=${said##*/}
		diff $said /tmp/said/${name%.said}.ring.said || failed=yes
	done
	test -z "$failed"' >/tmp/differ || failed+=" $(grep -m 1 '^[-+][^-+]' /tmp/differ || true)"
cat /tmp/differ
kill "$umpire"
wait "$umpire" || failed+=" the umpire"
cat /tmp/umpire.log
[ -z "$failed" ] || fail "this Xen is not like the embedded one:$failed"

# Each error in the log must be one that a script causes.
said=$(grep -E 'panic|internal error' /tmp/netbackd.log) || true
[ -z "$said" ] || fail "netbackd has failed inside: $said"
: >/tmp/netbackd.log
