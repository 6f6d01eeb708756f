# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Guests with the kernels of two Debian releases, 6.1 and 6.12, on one bridge: ping
# and TCP between dom0 and the newer one, and from one guest to the other.

start_netbackd
make_bridge
make_guest u1
make_guest u2 kernel=trixie
up u1 u2
address u1 10.0.0.2/24
address u2 10.0.0.3/24
eventually 60 "the first guest answers" reach 10.0.0.2
eventually 60 "the second guest answers" reach 10.0.0.3
releases=("$(in_guest u1 "uname -r")" "$(in_guest u2 "uname -r")")
say "kernels: ${releases[*]}"
[[ ${releases[0]} = 6.1.* && ${releases[1]} = 6.12.* ]]
pings dom0 10.0.0.3 -s 4000
pings u2 10.0.0.2
exchange dom0 "$DOM0" u2 10.0.0.3 8
exchange u1 10.0.0.2 u2 10.0.0.3 8
netbackd list
