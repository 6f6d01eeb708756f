# SPDX-License-Identifier: Apache-2.0
#
# Guests that do not post rx buffers in time, and breaches of the rx ring, which is checked when
# there is a packet to deliver.
frame S 60
frame J 9000

rings
connect

case a guest without buffers loses its carrier
inject S 3
stalled yes
carrier down
quarantined no
error no
rx 1..4 page
push
filled 1..3=60
stalled no
carrier up
inject S
filled 4=60

case one slot less than the packet needs
rx 1..2 page
push
inject J
inject S
stalled yes
carrier down
filled
rx 3..4 page
push
filled 1..2=4096:more 3=808 4=60
stalled no
carrier up
content J 1..3

case a guest that sends no events for new buffers is polled
close
reopen
rings
key feature-rx-notify -
connect
features rx-copy sg csum-ipv4
inject S
drops rx_stalled=1
rx 1 page
publish
inject S
filled 1=60
content S 1

case req_prod 257 ahead
close
reopen
rings
connect
req-prod rx +257
kick
inject S
quarantined rx ring: req_prod is out of bounds
filled
error quarantined
carrier down

case req_prod rewound by a slot
close
reopen
rings
connect
# Packets that the guest did not take from the last connection are gone.
rx 1 page
push
inject S
filled 1=60
req-prod rx -1
inject S
quarantined rx ring: req_prod is out of bounds

case req_prod one ahead of a full ring
close
reopen
rings
connect
rx 1..256 page
push
inject S
filled 1=60
req-prod rx +2
inject S
quarantined rx ring: req_prod is out of bounds
filled

case the guest reconnects
close
reopen
rings
connect
quarantined no
error no
rx 1..2 page
push
inject S
filled 1=60
close
reopen
