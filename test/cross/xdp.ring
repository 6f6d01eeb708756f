# SPDX-License-Identifier: Apache-2.0
#
# Headroom before packets, for a guest's XDP program. Each packet begins behind the headroom in
# its first page, an extra has the offset, and the packet needs no further offload.
frame S 60
frame Q 1514
frame F 3840
frame G 3841
frame P 4096
frame J 9000
frame T tcp 5000 mss=1448
frame C tcp 200

rings
control slot
key feature-gso-tcpv4 1
key xdp-headroom 256
connect
features rx-copy rx-notify sg gso-tcpv4 csum-ipv4
headroom 256

case a small packet, and one that fills its page
rx 1..4 page
push
inject S
inject F
filled 1=60@256:extra extra=xdp:256 3=3840@256:extra extra=xdp:256
content S 1
content F 3

case a byte more, and one slot short of it
rx 1..2 page
push
inject G
held yes
filled
rx 3 page
push
filled 1=3840@256:more+extra extra=xdp:256 3=1
content G 1 3
held no

case the pages behind the first are filled
rx 1..4 page
push
inject J
filled 1=3840@256:more+extra extra=xdp:256 3=4096:more 4=1064
content J 1 3 4
counters rx_xdp=4 rx_xdp_split=2

case a packet to be segmented, and a blank checksum
rx 1..10 page
push
inject T
inject C
filled 1=1502@256:valid+extra extra=xdp:256 3=1502@256:valid+extra extra=xdp:256 5=1502@256:valid+extra extra=xdp:256 7=656@256:valid+extra extra=xdp:256 9=200@256:valid+extra extra=xdp:256
counters segmented=1 csum_completed=1 rx_gso=0

case a buffer that was granted to another domain
rx 1 foreign
rx 2..4 page
push
inject S 2
filled 1=error@256:extra extra=xdp:256 3=60@256:extra extra=xdp:256
content S 3
drops rx_grant=1
counters grant_ops=2

case a static grant
page grefs=rx[100..103]
call add-gref-mapping 0 page 4 -> success
turn rx 100
rx 1..4 page
push
inject Q
inject S
filled 1=1514@256:extra extra=xdp:256 3=60@256:extra extra=xdp:256
content Q 1
content S 3
counters static_hits=2 grant_ops=0
call del-gref-mapping 0 page 4 -> success 4

case the program is detached: headroom stays until the guest continues after the answer
state 7
write xdp-headroom 0
backend 8
headroom 256
rx 1..3 page
push
inject S
filled 1=60@256:extra extra=xdp:256
state 4
headroom 0
inject P
filled 3=4096
content P 3

case a packet waits while a program is attached
inject T
held yes
state 7
write xdp-headroom 256
backend 8
headroom 256
rx 1..8 page
push
filled 1=1502@256:valid+extra extra=xdp:256 3=1502@256:valid+extra extra=xdp:256 5=1502@256:valid+extra extra=xdp:256 7=656@256:valid+extra extra=xdp:256
state 4

# Our node still shows the answer to the last request, so Linux does not wait.
case another headroom, of a guest that does not wait
state 7
write xdp-headroom 512
state 4
headroom 512
rx 1..2 page
push
inject Q
filled 1=1514@512:extra extra=xdp:512
content Q 1

case more headroom than a page has
state 7
write xdp-headroom 65535
state 4
headroom 3584
rx 1..3 page
push
inject Q
filled 1=512@3584:more+extra extra=xdp:3584 3=1002
content Q 1 3

case states without a key
write xdp-headroom 256
state 7
state 4
headroom 256
state 7
backend 8
state 4
headroom 256
error no
quarantined no

case a wrong key changes nothing until the next connection
state 7
write xdp-headroom banana
state 4
error "xdp-headroom"
headroom 256
rx 1..2 page
push
inject S
filled 1=60@256:extra extra=xdp:256
state 1
backend 2
rings
key xdp-headroom 70000
offer
backend 6
error "xdp-headroom"
state 1
backend 2

case a guest that takes one slot only
rings
key feature-sg -
key xdp-headroom 3584
connect
headroom 3584
error no
rx 1..4 page
push
inject Q
inject S
filled 1=60@3584:extra extra=xdp:3584
content S 1
drops rx_too_big=1
close
reopen
