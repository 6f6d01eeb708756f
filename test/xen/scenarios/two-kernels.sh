# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Guests with the kernels of two Debian releases, 6.1 and 6.12, on one bridge: ping
# and TCP between dom0 and the newer one, and from one guest to the other.

start_netbackd
make_bridge
guest u1
guest u2 kernel=trixie
address u1 10.0.0.2/24
address u2 10.0.0.3/24
eventually 60 "the first guest answers" reach 10.0.0.2
eventually 60 "the second guest answers" reach 10.0.0.3
releases=("$(in_guest u1 "uname -r")" "$(in_guest u2 "uname -r")")
say "kernels: ${releases[*]}"
[[ ${releases[0]} = 6.1.* && ${releases[1]} = 6.12.* ]]
ping -q -c 5 -i 0.2 -W 5 -s 4000 10.0.0.3 | tail -n 1
in_guest u2 "ping -q -c 5 -i 0.2 -W 5 10.0.0.2" | tail -n 1
begin_transfer dom0 u2 10.0.0.3 5001 8
begin_transfer u2 dom0 "$DOM0" 5002 8
end_transfer u2 5001 8 240
end_transfer dom0 5002 8 240
begin_transfer u1 u2 10.0.0.3 5003 8
begin_transfer u2 u1 10.0.0.2 5004 8
end_transfer u2 5003 8 240
end_transfer u1 5004 8 240
netbackd list
