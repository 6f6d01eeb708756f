# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Frontends of different ages: guests with the kernels of two Debian releases, and with the
# oldest and the newest that Debian serves, on one bridge. Each answers dom0's pings, and
# pings and TCP go from each guest to the next, both ways.

start_netbackd
make_bridge
names=()
declare -A address_of
for kernel in bookworm trixie bullseye trixie-backports; do
	[ -e "/host/guest/$kernel" ] || {
		say "there is no Linux of $kernel here"
		continue
	}
	make_guest "$kernel" "kernel=$kernel" memory=160
	address_of[$kernel]=10.0.0.$((${#names[@]} + 2))
	names+=("$kernel")
done
up "${names[@]}"
for name in "${names[@]}"; do
	address "$name" "${address_of[$name]}/24"
	say "$name: $(in_guest "$name" "uname -r")"
	eventually 240 "$name answers" reach "${address_of[$name]}"
	pings dom0 "${address_of[$name]}" -s 4000
done
for ((i = 1; i < ${#names[@]}; i++)); do
	from=${names[i]} to=${names[i - 1]}
	pings "$from" "${address_of[$to]}"
	exchange "$from" "${address_of[$from]}" "$to" "${address_of[$to]}" 2
done
netbackd list
