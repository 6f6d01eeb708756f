# SPDX-License-Identifier: Apache-2.0
#
# The ring of byte streams that was proposed before the ring of slots: its messages with all
# their responses, in pieces, in a row, larger than the ring, and never complete. The backend
# recognises the protocol of the ring.
frame T tcp 100 from=66.9.149.187:2794 to=161.142.100.80:1766
frame M 60

rings 2
control stream
connect
served stream
# Flags are off. With flags and no table all packets would go to queue 0.
hashing toeplitz - - 0
steered host
grants 5

case types
call get-flags -> success 15
call set-flags u64=16 -> invalid-parameter
call set-flags u64=0x10000000f -> invalid-parameter
call set-flags u64=0x100000000 -> invalid-parameter
call set-flags u32=16 -> invalid-parameter
call set-flags u32=2 -> success
hashing toeplitz ipv4-tcp - 0
call set-flags u64=15 -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp - 0
steered hash

case types of a wrong size
call set-flags -> invalid-parameter
call set-flags zeros=3 -> invalid-parameter
call set-flags zeros=7 -> invalid-parameter
call set-flags zeros=9 -> invalid-parameter
call set-flags zeros=16 -> invalid-parameter
call get-flags u64=1 -> invalid-parameter

case keys
call set-key hex=6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0
call set-key -> invalid-parameter
call set-key zeros=39 -> invalid-parameter
call set-key zeros=41 -> invalid-parameter
call set-key zeros=1024 -> invalid-parameter
call set-key zeros=1025 -> buffer-overflow
call set-key zeros=5000 -> buffer-overflow

case tables
call set-mapping u64=1 -> success
call set-mapping u64=1,0 -> success
call set-mapping u64=0,1,1,0 -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0,1,1,0
call set-mapping -> invalid-parameter
call set-mapping u64=0,1,1 -> invalid-parameter
call set-mapping u64=0*127 -> invalid-parameter
call set-mapping u64=0*129 -> buffer-overflow
call set-mapping u64=0*256 -> buffer-overflow
call set-mapping u64=0,2 -> invalid-parameter
call set-mapping u64=0xffffffff -> invalid-parameter
call set-mapping u64=0x100000001 -> invalid-parameter
call set-mapping u32=0 -> invalid-parameter
call set-mapping zeros=12 -> invalid-parameter
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0,1,1,0

case a table larger than the ring
call set-mapping u64=1*128 -> success
call set-mapping u64=1,1*64 -> success

case unknown messages
call stream=0 -> not-supported
call ack u64=0 -> not-supported
call stream=6 zeros=40 -> not-supported
call stream=0xffffffff zeros=3000 -> not-supported
call stream=0x10002 -> not-supported

case packets are steered, and carry no hash
queue 0
rx 1..9 page
push
queue 1
rx 1..9 page
push
inject T
filled 1=100:valid+csum
content T 1
call set-mapping u64=0 -> success
inject T
queue 0
filled 1=100:valid+csum
content T 1

case several requests in a row
send get-flags
send set-flags u64=16
send stream=9 zeros=10
send set-flags u64=15
replies success:15 invalid-parameter not-supported success

case a message in pieces
send set-mapping size=16 zeros=1
replies
send bytes zeros=6
replies
send bytes zeros=1
replies
send bytes u64=1
replies success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0,1

case a header in pieces
send bytes hex=02
replies
send bytes hex=000000
replies
send bytes hex=000000
replies
send bytes hex=00
replies success:15

case a message that is much too long is read to its end, and the stream stays in step
call stream=4 zeros=70000 -> buffer-overflow
call get-flags -> success 15

case a message that never ends: packets move, the settings stay
send set-mapping size=0xffffffff u64=0,0,0,0
replies
inject T
queue 0
filled 2=100:valid+csum
queue 1
filled
tx 1 M
push
answers 1=okay
out M
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0,1
send bytes zeros=5000
replies
tx 1 M
push
answers 1=okay
out M
drops
quarantined no
error no
close
reopen

case the next connection begins with the defaults
rings 2
control stream
connect
served stream
hashing toeplitz - - 0
call get-flags -> success 15

case more bytes than the ring holds: the ring is disabled, the settings stay
call set-flags u64=3 -> success
req-prod control 1025
served "out of use"
hashing toeplitz ipv4,ipv4-tcp - 0
tx 1 M
push
answers 1=okay
out M
close
reopen

case a counter far ahead
rings
control stream
connect
req-prod control 0x80000000
served "out of use"
tx 1 M
push
answers 1=okay
out M
close
reopen

case a reader that is ahead of the writer
rings
control stream
connect
call get-flags -> success 15
send get-flags
rsp-cons 1
served "out of use"
tx 1 M
push
answers 1=okay
out M
close
reopen

case the other protocol still works
rings 2
control slot
connect
served slot
hashing none - - -
