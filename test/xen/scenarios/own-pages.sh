# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# netbackd copies between pages of guests and pages that dom0 has granted to itself. It works
# without the module for that, with a limit that is too small, and with one that is just enough:
# then a successor of a daemon that was stopped, or killed under traffic, has as many as its
# predecessor, so nothing was left of it. Streams both ways arrive unchanged each time, and the
# guest is paused while copies are under way. At the end dom0's grant table is as before.

limit=/sys/module/xen_gntalloc/parameters/limit

# pages prints the number of own pages as GRANTED/WANTED, or the reason why there are none.
pages() {
	netbackd show | sed -n 's/^own pages *//p' >/tmp/pages
	sed -n 's/^\([0-9]*\) of \([0-9]*\).*/\1\/\2/p; /^none/p' /tmp/pages
}
have_all() { same "own pages" "$(pages)" "$all/$all"; }
served() { netbackd show "$vif" | grep '^state *connected,' >/dev/null; }

# successor ARGUMENT... starts netbackd for a guest that is connected.
successor() {
	start_netbackd "$@"
	eventually 240 "the guest is served" served
}

# both_ways PORT moves a stream each way.
both_ways() {
	begin_transfer u1 dom0 "$DOM0" "$1" 2
	end_transfer dom0 "$1" 2 240
	begin_transfer dom0 u1 10.0.0.2 "$1" 2
	end_transfer u1 "$1" 2 240
}

# own_in_use prints the references of dom0 that a domain uses.
own_in_use() {
	DOMID[self]=0
	in_use self
}

make_bridge
[ ! -d /sys/module/xen_gntalloc ] || modprobe -r xen-gntalloc
before=$(own_in_use)
unset "DOMID[self]"

say "-- no module"
start_netbackd
guest u1
vif=$(vif u1)
address u1 10.0.0.2/24
eventually 240 "the guest answers" reach 10.0.0.2
pages | grep "none, packets are copied by address: gntalloc: open: /dev/xen/gntalloc: no such file" || fail "own pages: $(cat /tmp/pages)"
both_ways 5011
stop_netbackd

say "-- a limit that is too small: a quarter is left to others"
modprobe xen-gntalloc limit=128
successor
same "own pages" "$(pages | cut -d/ -f1)" 96
all=$(pages | cut -d/ -f2)
both_ways 5012
kill_netbackd

say "-- switched off"
successor --own-pages=none
same "own pages" "$(pages)" "none, packets are copied by address: switched off by --own-pages=none"
both_ways 5013
stop_netbackd

# The share of netbackd is then $all or one more, and $all/3 are left: had a predecessor left
# pages behind, there would be too few.
echo $((all + all / 3 + 1)) >$limit
say "-- a limit of $(cat $limit) for $all pages"
successor
have_all
both_ways 5014
begin_streams u1 10.0.0.2
for how in TERM KILL KILL; do
	eventually_moves 240 2000000
	if [ $how = TERM ]; then stop_netbackd; else kill_netbackd; fi
	successor
	have_all
done
eventually_moves 240 2000000
xl pause u1
sleep 1
xl unpause u1
end_streams u1
have_all
netbackd show
{ netbackd check || true; } | grep -A 1 /dev/xen/gntalloc

# Nothing is left in the grant table, and the module has no user any more.
destroy u1
stop_netbackd
modprobe -r xen-gntalloc
same "dom0's grants in use" "$(own_in_use)" "$before"
unset "DOMID[self]"
modprobe xen-gntalloc limit=24576
