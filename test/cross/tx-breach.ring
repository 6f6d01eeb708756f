# SPDX-License-Identifier: Apache-2.0
#
# Breaches of the tx ring, after which the start of the next packet is unknown. The good packets
# before the breach are answered and reach the host; nothing after it is read. The vif is
# quarantined until the guest reconnects, or until a reset.
frame F 200
frame L 1408
frame M 60

rings
connect

case req_prod 257 ahead
req-prod tx +257
kick
quarantined tx ring: req_prod is out of bounds
answers
error quarantined
carrier down
close
reopen
rings
connect
quarantined no
error no
carrier up

case req_prod half of all numbers ahead
req-prod tx 0x80000000
kick
quarantined tx ring: req_prod is out of bounds
close
reopen
rings
connect

case req_prod rewound by one
req-prod tx -1
kick
quarantined tx ring: req_prod is out of bounds
close
reopen
rings
connect

case a packet published in part
tx 1 M
tx 2 F[:100] size=200 more
push
quarantined packet published in part
answers 1=okay
out M

case a ring in quarantine is not read
tx 3 F[100:]
tx 4 M
publish
kick
quarantined packet published in part
answers
out

case reset of a vif whose ring is valid again
reset
quarantined no
answers 2..4=okay
out F M
carrier up
error no

case reset of a ring that is still broken
req-prod tx -1
kick
quarantined req_prod is out of bounds
reset
backend 6
error req_prod
grants 0
close
reopen
rings
connect
error no

case packet published in part, behind an extra
tx 1 F[:100] size=200 more extra
extra hash
push
quarantined packet published in part
answers
close
reopen
rings
connect

case 22 data slots
tx 1 M
tx 2 L[:64] size=1408 more
tx 3..22 L[64:]/64 more
tx 23 L[1344:]
push
quarantined packet without end: more than 21 data slots
answers 1=okay
out M
close
reopen
rings
connect

case a packet that fills the ring
tx 1 F size=0xffff more
tx 2..256 same size=64 more
push
quarantined packet without end
answers
close
reopen
rings 2
connect

case a breach of one queue takes the vif out of service
tx 1 M
push
answers 1=okay
out M
queue 1
tx 1 F[:100] size=200 more
push
quarantined queue 1: tx ring
answers
queue 0
tx 2 M
publish
kick
answers
out
close
reopen
rings single
connect

case the same with one event channel
ports 1
tx 1 M
tx 2 F[:100] size=200 more
push
quarantined packet published in part
answers 1=okay
out M
close
reopen
