# SPDX-License-Identifier: Apache-2.0
#
# Packets from the guest that break a rule but not the ring: each of their data slots is
# answered with an error, the packet is dropped and counted by its reason, and the next packet
# passes.
frame F 256
frame T 1344    # 21 slots of 64 bytes
frame M 60

rings
connect
ports 2
grants 2

case later slot crosses its page
tx 1 F size=356 more
tx 2 same off=4000 size=97
tx 3 M
push
answers 1..2=error 3=okay
out M
drops tx_cross_page=1

case later slot of more than a page
tx 1 F size=5000 more
tx 2 same size=4097
tx 3 M
push
answers 1..2=error 3=okay
out M
drops tx_cross_page=1

case later slot crosses the end of 16 bits
tx 1 F size=356 more
tx 2 same off=0xffff size=2
tx 3 M
push
answers 1..2=error 3=okay
out M
drops tx_cross_page=1

case first slot crosses its page
tx 1 M off=4000
tx 2 same off=4000 size=97
tx 3 M
push
answers 1=okay 2=error 3=okay
out M M
drops tx_cross_page=1

case first slot crosses its page with the rest of the packet's size
tx 1 F off=100 size=5000 more
tx 2 same size=1000
tx 3 M
push
answers 1..2=error 3=okay
out M
drops tx_cross_page=1

case first slot crosses the end of 16 bits
tx 1 M
tx 2 same off=0xfff0 size=100
tx 3 M
push
answers 1=okay 2=error 3=okay
out M M
drops tx_cross_page=1

case single slot of 64 KiB
tx 1 F size=0xffff
tx 2 M
push
answers 1=error 2=okay
out M
drops tx_cross_page=1

case 20 data slots
tx 1 T[:64] size=1280 more
tx 2..19 T[64:]/64 more
tx 20 T[:64]
tx 21 M
push
answers 1..20=error 21=okay
out M
drops tx_too_many_slots=1

case 21 data slots and an extra
tx 1 T[:64] size=1344 more extra
extra gso tcpv4 1000
tx 2..20 T[64:]/64 more
tx 21 T[:64]
tx 22 M
push
answers 1=error null 2..21=error 22=okay
out M
drops tx_too_many_slots=1

case slots add up to more than the packet
tx 1 F size=300 more
tx 2 same size=200 more
tx 3 same size=101
tx 4 M
push
answers 1..3=error 4=okay
out M
drops tx_size_mismatch=1

case later slot is larger than the packet
tx 1 F size=100 more
tx 2 same size=101
tx 3 M
push
answers 1..2=error 3=okay
out M
drops tx_size_mismatch=1

case packet of 64 KiB with a size that has wrapped
tx 1 F size=256 more
tx 2..16 same size=4096 more
tx 17 same size=4096
tx 18 M
push
answers 1..17=error 18=okay
out M
drops tx_size_mismatch=1

case first slot of 13 bytes
tx 1 F[:13] size=113 more
tx 2 same size=100
tx 3 M
push
answers 1..2=error 3=okay
out M
drops tx_too_short=1

case first slot of 0 bytes
tx 1 F[:0] size=100 more
tx 2 same size=100
tx 3 M
push
answers 1..2=error 3=okay
out M
drops tx_too_short=1

case packet of 13 bytes
tx 1 F[:13]
tx 2 M
push
answers 1=error 2=okay
out M
drops tx_too_short=1

case packet of 0 bytes, in a page that must not be examined
tx 1 gref=4294967280
tx 2 M
push
answers 1=error 2=okay
out M
drops tx_too_short=1

case packet of 0 bytes in three slots
tx 1..2 gref=4294967280 more
tx 3 gref=4294967280
tx 4 M
push
answers 1..3=error 4=okay
out M
drops tx_too_short=1

case checksum of a packet that is neither TCP nor UDP
tx 1 F csum
tx 2 M
push
answers 1=okay 2=okay
out M
drops tx_bad_csum=1

case all faults in one batch, with good packets between
tx 1 M
tx 2 F[:13]
tx 3 M
tx 4 F size=100 more
tx 5 same size=101
tx 6 M
tx 7 F size=0xffff
tx 8 gref=4294967280 size=60
tx 9 M
push
answers 1=okay 2=error 3=okay 4..5=error 6=okay 7..8=error 9=okay
out M M M M
drops tx_too_short=1 tx_size_mismatch=1 tx_cross_page=1 tx_grant=1

case bad packets do not quarantine the guest
quarantined no
error no
carrier up
close
reopen
