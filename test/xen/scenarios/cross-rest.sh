# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The scenario cross with the scripts that it leaves out: keys, states, events, control
# rings, static grants, multicast, stalls, breaches of the ring protocol.

count=300
scripts=
for file in /host/cross/*.ring; do
	name=${file##*/}
	name=${name%.ring}
	grep -qE "^packets=.*\\b$name\\b" /host/scenarios/cross.sh || scripts+=" $name"
done
# shellcheck source=test/xen/scenarios/cross.sh
. /host/scenarios/cross.sh
