# SPDX-License-Identifier: Apache-2.0
#
# Invalid grant references: the slot is answered with an error, the packet's other slots with
# okay, the packet is dropped and the next one passes.
frame F 300
frame P 12288
frame M 60

rings
connect

case a reference beyond the grant table
tx 1 gref=4294967280 size=300
tx 2 M
push
answers 1=error 2=okay
out M
drops tx_grant=1

case a reference in the table that was never granted
tx 1 gref=4000 size=300
tx 2 M
push
answers 1=error 2=okay
out M
drops tx_grant=1

case a page that was granted to another domain
tx 1 foreign size=300
tx 2 M
push
answers 1=error 2=okay
out M
drops tx_grant=1

case a page that was granted a moment ago
tx 2 M
tx 1 freed size=300
push
answers 2=okay 1=error
out M
drops tx_grant=1

case the second of three slots
tx 1 P[:4096] size=12288 more
tx 2 foreign size=4096 more
tx 3 P[8192:]
tx 4 M
push
answers 1=okay 2=error 3..4=okay
out M
drops tx_grant=1

case the first of three slots, with an extra
tx 1 foreign size=12288 more extra
extra hash
tx 2 P[4096:8192] more
tx 3 P[8192:]
tx 4 M
push
answers 1=error null 2..4=okay
out M
drops tx_grant=1

case the last of several slots of a small packet
tx 1 F[:100] size=300 more
tx 2 F[100:200] more
tx 3 gref=4294967280 size=100
tx 4 M
push
answers 1..2=okay 3=error 4=okay
out M
drops tx_grant=1

case each other packet of many
tx 1 M
tx 2 foreign size=60
tx 3 M
tx 4 gref=4294967280 size=60
tx 5 M
tx 6 freed size=60
push
answers 1=okay 2=error 3=okay 4=error 5=okay 6=error
out M M M
drops tx_grant=3

case the ring itself as a packet
tx 1 ring size=60
tx 2 M
push
answers 1..2=okay

case the pages that the toolstack granted to dom0: console and xenstore
tx 1 gref=0 size=300
tx 2 gref=1 size=300
tx 3 gref=2 size=300
tx 4 gref=7 size=300
push
answers 1..2=okay 3..4=error
drops tx_grant=2

case the guest's page is not written
tx 1 readonly size=300
push
answers 1=okay

case the guest is not quarantined
quarantined no
error no
