# SPDX-License-Identifier: Apache-2.0
#
# With hashing on, a packet comes on the queue that the table maps its hash to, and carries its
# hash behind its first slot: with two and with four queues, with a table and without, and
# across changes. The hashes are from Microsoft's verification suite.
frame T1 tcp 100 from=66.9.149.187:2794 to=161.142.100.80:1766
frame T2 tcp 100 from=199.92.111.2:14230 to=65.69.140.83:4739
frame T3 tcp 100 from=24.19.198.95:12898 to=12.22.207.184:38024
frame T4 tcp 100 from=38.27.205.30:48228 to=209.142.163.6:2217
frame U1 udp 100 from=66.9.149.187:2794 to=161.142.100.80:1766
frame F1 tcp 100 from=66.9.149.187:2794 to=161.142.100.80:1766 fragment
frame V1 tcp 104 from=66.9.149.187:2794 to=161.142.100.80:1766 vlan=5
frame S1 tcp 4054 mss=1000 from=66.9.149.187:2794 to=161.142.100.80:1766
frame P1 udp 6000 from=66.9.149.187:2794 to=161.142.100.80:1766
frame T6 tcp 100 from=[3ffe:2501:200:1fff::7]:2794 to=[3ffe:2501:200:3::1]:1766
frame U6 udp 100 from=[3ffe:2501:200:1fff::7]:2794 to=[3ffe:2501:200:3::1]:1766
frame M 60

rings 4
key feature-gso-tcpv4 1
key feature-ipv6-csum-offload 1
control slot
connect
call set-hash-algorithm 1 -> success
page hex=6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa
call set-hash-key page 40 -> success
call set-hash-mapping-size 4 -> success
page u32=3,2,1,0
call set-hash-mapping page 4 0 -> success
call set-hash-flags 15 -> success
steered hash
queue 0
rx 1..60 page
push
queue 1
rx 1..60 page
push
queue 2
rx 1..60 page
push
queue 3
rx 1..60 page
push

case by table: 0x51ccc178, 0xc626b0ea, 0x5c2b394a, 0xafc7327f modulo 4 are 0, 2, 2, 3
inject T1
queue 3
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178
content T1 1
inject T2
inject T3
queue 1
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:c626b0ea 3=100:valid+csum+extra extra=hash:ipv4-tcp:5c2b394a
content T2 1
content T3 3
inject T4
queue 0
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:afc7327f
queue 2
filled

case UDP and fragments have the hash of their addresses: 0x323e8fc2 modulo 4 is 2
inject U1
inject F1
queue 1
filled 5=100:extra extra=hash:ipv4:323e8fc2 7=100:extra extra=hash:ipv4:323e8fc2
content U1 5

case IPv6: 0x40207d3d and 0x2cc18cd5 modulo 4 are 1
inject T6
inject U6
queue 2
filled 1=100:valid+csum+extra extra=hash:ipv6-tcp:40207d3d 3=100:extra extra=hash:ipv6:2cc18cd5
content U6 3

case a tagged packet has the hash of the untagged one
inject V1
queue 3
filled 3=104:extra extra=hash:ipv4-tcp:51ccc178
content V1 3

case a packet that is not IP has no hash, and goes to the queue of hash 0
inject M
queue 3
filled 5=60
content M 5

case the hash extra is behind that of segmentation, before the second data slot
inject S1
filled 6=4054:valid+csum+extra extra=gso:tcpv4:1000 extra=hash:ipv4-tcp:51ccc178
content S1 6
inject P1
queue 1
filled 9=4096:more+extra extra=hash:ipv4:323e8fc2 11=1904
content P1 9 11

case the table changes
page u32=2,2,2,2
call set-hash-mapping page 4 0 -> success
inject T1
inject T2
inject T4
queue 2
filled 5=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178 7=100:valid+csum+extra extra=hash:ipv4-tcp:c626b0ea 9=100:valid+csum+extra extra=hash:ipv4-tcp:afc7327f

case a table of three: 0x51ccc178, 0xc626b0ea, 0x5c2b394a modulo 3 are 1, 1, 2
call set-hash-mapping-size 3 -> success
page u32=0,1,3
call set-hash-mapping page 3 0 -> success
inject T1
queue 1
filled 12=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178
inject T2
filled 14=100:valid+csum+extra extra=hash:ipv4-tcp:c626b0ea
inject T3
queue 3
filled 9=100:valid+csum+extra extra=hash:ipv4-tcp:5c2b394a

case a new size makes a new table, all of queue 0
call set-hash-mapping-size 128 -> success
inject T1
queue 0
filled 3=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178

case without a table the queue is the hash modulo the queues
call set-hash-mapping-size 0 -> success
inject T1
filled 5=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178
inject T4
queue 3
filled 11=100:valid+csum+extra extra=hash:ipv4-tcp:afc7327f
inject T6
queue 1
filled 16=100:valid+csum+extra extra=hash:ipv6-tcp:40207d3d

case addresses only
call set-hash-flags 5 -> success
inject T1
queue 2
filled 11=100:valid+csum+extra extra=hash:ipv4:323e8fc2
inject T6
queue 1
filled 18=100:valid+csum+extra extra=hash:ipv6:2cc18cd5

case TCP only: other packets have no hash
call set-hash-flags 2 -> success
inject U1
queue 0
filled 7=100
inject T1
filled 8=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178
inject T6
filled 10=100:valid+csum

case another key
page hex=0000000000000001
call set-hash-key page 8 -> success
call set-hash-flags 15 -> success
inject T1
queue 1
filled 20=100:valid+csum+extra extra=hash:ipv4-tcp:0a267185
call set-hash-key page 0 -> success
inject T4
queue 0
filled 11=100:valid+csum+extra extra=hash:ipv4-tcp:00000000

case two queues
close
reopen
rings 2
control slot
connect
queue 0
rx 1..20 page
push
queue 1
rx 1..20 page
push
call set-hash-algorithm 1 -> success
page hex=6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa
call set-hash-key page 40 -> success
call set-hash-flags 15 -> success
inject T1
queue 0
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178
inject T4
queue 1
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:afc7327f
call set-hash-mapping-size 2 -> success
page u32=1,0
call set-hash-mapping page 2 0 -> success
inject T4
queue 0
filled 3=100:valid+csum+extra extra=hash:ipv4-tcp:afc7327f
inject T1
queue 1
filled 3=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178

case one queue: no steering, and packets carry hashes
close
reopen
rings
control slot
connect
rx 1..20 page
push
call set-hash-algorithm 1 -> success
call set-hash-mapping-size 1 -> success
page u32=1
call set-hash-mapping page 1 0 -> invalid-parameter
page hex=6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa
call set-hash-key page 40 -> success
call set-hash-flags 15 -> success
inject T1
filled 1=100:valid+csum+extra extra=hash:ipv4-tcp:51ccc178

case a packet waits if there is no slot for its hash
close
reopen
rings
control slot
connect
call set-hash-algorithm 1 -> success
call set-hash-key page 40 -> success
call set-hash-flags 15 -> success
rx 1 page
push
inject U1
held yes
filled
rx 2 page
push
filled 1=100:extra extra=hash:ipv4:323e8fc2
held no
content U1 1
