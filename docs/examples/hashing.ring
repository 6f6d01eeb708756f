# SPDX-License-Identifier: Apache-2.0
#
# A frontend with two queues maps flows to queues. The key, the flows and their hashes are those
# of Microsoft's verification suite for RSS.
frame T1 tcp 100 from=66.9.149.187:2794 to=161.142.100.80:1766
frame T2 tcp 100 from=199.92.111.2:14230 to=65.69.140.83:4739
frame A 60

rings 2
control slot
connect

case the usual order
call set-hash-algorithm 1 -> success
call get-hash-flags -> success 15
page hex=6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa
call set-hash-key page 40 -> success
call get-hash-mapping-size -> success 128
call set-hash-mapping-size 4 -> success
page u32=1,0,0,1
call set-hash-mapping readonly 4 0 -> success
call set-hash-flags 3 -> success
steered hash

case flows: 0x51ccc178 and 0xc626b0ea modulo 4 are entries 0 and 2, queues 1 and 0
queue 0
rx 1..20 page
push
queue 1
rx 1..20 page
push
inject T1
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178
inject T2
queue 0
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:c626b0ea

case a packet without a hash goes to the queue of hash 0: entry 0
inject A
queue 1
filled 3=60

case refused messages change nothing
page u32=1,2
call set-hash-mapping page 2 0 -> invalid-parameter
call set-hash-mapping page 1 4 -> invalid-parameter
call set-hash-mapping page 1 0xffffffff -> invalid-parameter
call set-hash-key page 41 -> buffer-overflow
call set-hash-flags 16 -> invalid-parameter
call 11 -> not-supported

case the table reversed
page u32=0,1,1,0
call set-hash-mapping page 4 0 -> success
inject T1
queue 0
filled 3=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178

case off again: no packet carries a hash
call set-hash-algorithm 0 -> success
call get-hash-flags -> not-supported
steered host
