# SPDX-License-Identifier: Apache-2.0
#
# Packets to the guest go into the buffers that it posted, in their order and with their ids,
# over as many buffers as a packet takes, and never in part. Packets for which there are too few
# buffers wait.
frame S 60
frame Q 1514
frame P 6000
frame J 9000
frame T tcp 5000 mss=1448
frame C tcp 200
frame M 60

rings
key feature-gso-tcpv4 1
connect
features rx-copy rx-notify sg gso-tcpv4 csum-ipv4

case one buffer, one packet
rx 7 page
push
inject S
filled 7=60
content S 7

case any ids are sent back
rx 0xffff page
rx 0 page
rx 0x8000 page
rx 5 page
rx 5 page
push
inject S 5
filled 65535=60 0=60 32768=60 5=60 5=60
content S 65535
content S 0

case a packet over two buffers, and one over three
rx 1..5 page
push
inject P
inject J
filled 1=4096:more 2=1904 3..4=4096:more 5=808
content P 1..2
content J 3..5

case too few buffers, then more
rx 1..2 page
push
inject J
held yes
filled
rx 3 page
push
filled 1..2=4096:more 3=808
content J 1..3
held no

case later packets do not overtake
rx 1 page
push
inject P
held yes
inject S 3
filled
rx 2..3 page
push
filled 1=4096:more 2=1904 3=60
rx 4..5 page
push
filled 4..5=60
held no
content P 1 2
content S 3
content S 5

case no buffers at all, then a ring full of them
inject Q 100
held yes
rx 1..256 page
push
filled 1..100=1514
content Q 1
content Q 100
inject S 156
filled 101..256=60
content S 256

case a packet to be segmented, and a blank checksum
rx 1..4 page
push
inject T
inject C
filled 1=4096:valid+csum+more+extra extra=gso:tcpv4:1448 3=904 4=200:valid+csum
content T 1 3
content C 4

case one slot short of what the extra needs
rx 1..2 page
push
inject T
held yes
filled
rx 3 page
push
filled 1=4096:valid+csum+more+extra extra=gso:tcpv4:1448 3=904
content T 1 3

case a buffer beyond the grant table
rx 1 gref=4294967280
rx 2 page
push
inject S 2
filled 1=error 2=60
content S 2
drops rx_grant=1

case a buffer that was granted for reading only
rx 1 readonly
rx 2 page
push
inject S 2
filled 1=error 2=60
content S 2
drops rx_grant=1

case a buffer that was granted to another domain
rx 1 foreign
rx 2 page
push
inject S 2
filled 1=error 2=60
content S 2
drops rx_grant=1

case a buffer that was granted a moment ago, and a reference that guests keep free
rx 1 gref=7
rx 2 page
rx 3 freed
push
inject S 3
filled 1=error 2=60 3=error
content S 2
drops rx_grant=2

case one bad buffer of three
rx 1 page
rx 2 foreign
rx 3..4 page
push
inject J
inject S
filled 1=4096:more 2=error:more 3=808 4=60
content S 4
drops rx_grant=1

case a bad gref in the slot of an extra is not examined
rx 1 page
rx 2 gref=4294967280
rx 3 page
push
inject T
filled 1=4096:valid+csum+more+extra extra=gso:tcpv4:1448 3=904
content T 1 3

case the same buffer twice
rx 1 page
rx 2 same
rx 3 page
push
inject S 3
filled 1..3=60
content S 1
content S 3

case the guest is not quarantined
quarantined no
error no
carrier up
close
reopen

case a guest that takes one slot only
rings
key feature-sg -
connect
features rx-copy rx-notify csum-ipv4
rx 1..6 page
push
inject S
filled 1=60
# The packet is segmented before it comes to the guest. The segments have blank checksums, as
# on a Linux host: tcp_gso_segment keeps them partial for a device that has checksum offload,
# and netback sets both flags (xenvif_rx_data_slot). The guest takes these, since it did not set
# feature-no-csum-offload. A guest that did gets complete checksums, see below.
inject T
filled 2..4=1502:valid+csum 5=656:valid+csum
inject C
filled 6=200:valid+csum
close
reopen

case a guest without offloads
rings
key feature-no-csum-offload 1
connect
features rx-copy rx-notify sg
rx 1..6 page
push
inject T
filled 1..3=1502 4=656
inject C
filled 5=200
inject S
filled 6=60
content S 6
close
reopen
