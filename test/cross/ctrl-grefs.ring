# SPDX-License-Identifier: Apache-2.0
#
# Static grants: the three messages with all their responses, and packets over pages that are
# static, over pages that are not, and over both.
frame M 60
frame F 256
frame Q 1514
frame B 65000
frame J 9000

rings 2
control slot
connect
static 0 0

case the size of a table
call get-gref-mapping-size 0 -> success 1100
call get-gref-mapping-size 1 -> success 1100
call get-gref-mapping-size 2 -> invalid-parameter
call get-gref-mapping-size 0xffffffff -> invalid-parameter

case lists that are refused as a whole
page grefs=tx[0]:ro
call add-gref-mapping 2 page 1 -> invalid-parameter
call add-gref-mapping 0xffffffff page 1 -> invalid-parameter
call add-gref-mapping 0 page 513 -> invalid-parameter
call add-gref-mapping 0 page 0xffffffff -> invalid-parameter
call add-gref-mapping 0 page 0x20000001 -> invalid-parameter
call add-gref-mapping 0 gref=4294967280 1 -> invalid-parameter
call add-gref-mapping 0 gref=4000 1 -> invalid-parameter
call add-gref-mapping 0 freed 1 -> invalid-parameter
call add-gref-mapping 0 foreign 1 -> invalid-parameter
static 0 0

case empty lists
call add-gref-mapping 0 page 0 -> success
call add-gref-mapping 0 freed 0 -> success
call del-gref-mapping 0 page 0 -> success
call del-gref-mapping 0 freed 0 -> success
call add-gref-mapping 2 page 0 -> invalid-parameter
call del-gref-mapping 2 page 0 -> invalid-parameter
static 0 0

case invalid entries: none of the list is mapped
page grefs=tx[0..1]:ro,gref=4294967280:ro,tx[2]:ro
call add-gref-mapping 0 page 4 -> invalid-parameter
page grefs=tx[0..1]:ro,gref=4000
call add-gref-mapping 0 page 3 -> invalid-parameter
page grefs=tx[0..1]:ro,freed
call add-gref-mapping 0 page 3 -> invalid-parameter
page grefs=tx[0..1]:ro,foreign
call add-gref-mapping 0 page 3 -> invalid-parameter
page grefs=tx[0..3]:ro,tx[0]:ro
call add-gref-mapping 0 page 5 -> invalid-parameter
page grefs=tx[0]:2
call add-gref-mapping 0 page 1 -> invalid-parameter
page grefs=tx[0]:0x8001
call add-gref-mapping 0 page 1 -> invalid-parameter
page grefs=tx[0]
call add-gref-mapping 0 page 1 -> invalid-parameter
static 0 0

case valid lists, also from a read-only page
page grefs=tx[0..9]:ro
call add-gref-mapping 0 page 10 -> success
page grefs=rx[0..9],rx[10]:ro
call add-gref-mapping 0 readonly 11 -> success
static 21 0

case a gref that is static already is refused, with its whole list
page grefs=tx[20]:ro,tx[9]:ro
call add-gref-mapping 0 page 2 -> invalid-parameter
page grefs=rx[10]
call add-gref-mapping 0 page 1 -> invalid-parameter
static 21 0

case the same grefs on another queue
page grefs=tx[0..9]:ro
call add-gref-mapping 1 page 10 -> success
static 21 10

case grefs of the toolstack can be static if they are granted
page grefs=gref=0,gref=1
call add-gref-mapping 1 page 2 -> success
static 21 12
page grefs=gref=2
call add-gref-mapping 1 page 1 -> invalid-parameter
page grefs=gref=1,gref=7,gref=0
call del-gref-mapping 1 page 3 -> success 2
statuses 0=success 1=invalid-parameter 2=success
static 21 10

case packets from static grants take no grant operation
turn tx 0
tx 1 M
tx 2 Q
push
answers 1..2=okay
out M Q
counters static_hits=2 static_misses=0 grant_ops=0

case a packet of several pages, all of them static
turn tx 0
tx 1 J[:4096] size=9000 more
tx 2 J[4096:8192] more
tx 3 J[8192:]
push
answers 1..3=okay
out J
counters static_hits=3 static_misses=0 grant_ops=0

case a page of which others are static, too
turn tx 8
tx 1 J[:4096] size=9000 more
tx 2 J[4096:8192] more
tx 3 J[8192:]
push
answers 1..3=okay
out J
counters static_hits=2 static_misses=1 grant_ops=1

case the first is none, with an extra
turn tx 20
tx 1 F[:100] size=256 more extra
extra hash
turn tx 3
tx 2 F[100:200] more
turn tx 4
tx 3 F[200:]
push
answers 1=okay null 2..3=okay
out F
counters static_hits=2 static_misses=1 grant_ops=1

case one that cannot be copied, between two that are static
turn tx 0
tx 1 F[:100] size=256 more
tx 2 foreign size=100 more
turn tx 1
tx 3 F[200:]
tx 4 M
push
answers 1=okay 2=error 3..4=okay
out M
drops tx_grant=1
counters static_hits=3 static_misses=1 grant_ops=1

case the largest packet
turn tx 100
page grefs=tx[100..115]:ro
call add-gref-mapping 0 page 16 -> success
static 37 10
tx 1 B[:4096] size=65000 more
tx 2..15 B[4096:61440]/4096 more
tx 16 B[61440:]
push
answers 1..16=okay
out B
counters static_hits=16 static_misses=0 grant_ops=0

case packets to static grants
turn rx 0
rx 1..9 page
push
inject M
inject J
filled 1=60 2..3=4096:more 4=808
content M 1
content J 2..4
counters static_misses=0 grant_ops=0
inject Q 5
filled 5..9=1514
content Q 9
counters static_misses=0 grant_ops=0

case a read-only grant in an rx request
turn rx 10
rx 1 page
turn rx 0
rx 2 page
push
inject M 2
filled 1=error 2=60
content M 2
drops rx_readonly=1

case an rx packet over a static grant and another page
turn rx 9
rx 1..2 page
turn rx 20
rx 3 page
push
inject J
filled 1=4096:more 2=error:more 3=808
drops rx_readonly=1
turn rx 9
rx 1 page
turn rx 20
rx 2..3 page
push
inject J
filled 1..2=4096:more 3=808
content J 1..3
counters static_misses=3 grant_ops=3

case static grants of one queue do not apply to another
queue 1
turn tx 20
tx 1 M
push
answers 1=okay
out M
counters static_misses=1 grant_ops=1
queue 0

case deletions that are refused
page grefs=tx[0..2]:ro
call del-gref-mapping 2 page 1 -> invalid-parameter
statuses 0..2=untouched
call del-gref-mapping 0 page 513 -> invalid-parameter
call del-gref-mapping 0 page 0xffffffff -> invalid-parameter
call del-gref-mapping 0 readonly 3 -> invalid-parameter
call del-gref-mapping 0 gref=4294967280 1 -> invalid-parameter
call del-gref-mapping 0 freed 1 -> invalid-parameter
call del-gref-mapping 0 foreign 1 -> invalid-parameter
statuses 0..2=untouched
static 37 10

case deleting some, and some that are not static
page grefs=tx[0]:ro,tx[30]:ro,gref=4294967280,tx[1]:ro,tx[0]:ro,tx[2]
call del-gref-mapping 0 page 6 -> success 3
statuses 0=success 1..2=invalid-parameter 3=success 4=invalid-parameter 5=success
static 34 10
page grefs=tx[3]:0xffff
call del-gref-mapping 0 page 1 -> success 1
statuses 0=success
call del-gref-mapping 0 page 1 -> success
statuses 0=invalid-parameter
static 33 10

case packets in deleted grants are copied, others are not
turn tx 0
tx 1 M
turn tx 4
tx 2 M
push
answers 1..2=okay
out M*2
counters static_hits=1 static_misses=1 grant_ops=1

case buffers that wait on the ring are deleted, and filled nevertheless
turn rx 0
rx 1..3 page
push
page grefs=rx[0..2]
call del-gref-mapping 0 page 3 -> success 3
statuses 0..2=success
inject M
filled 1=60
content M 1
call add-gref-mapping 0 page 3 -> success
inject M 2
filled 2..3=60
content M 3
counters static_hits=2 static_misses=1 grant_ops=1
static 33 10

case deleting on one queue does not affect the other
page grefs=tx[0]:ro
call del-gref-mapping 1 page 1 -> success 1
page grefs=tx[100]:ro
call del-gref-mapping 1 page 1 -> success
statuses 0=invalid-parameter
static 33 9

case all of them deleted
page grefs=tx[4..9]:ro,tx[100..115]:ro
call del-gref-mapping 0 page 22 -> success 22
page grefs=rx[0..10]
call del-gref-mapping 0 page 11 -> success 11
page grefs=tx[1..9]:ro
call del-gref-mapping 1 page 9 -> success 9
static 0 0

case the longest list
page grefs=tx[0..319]:ro,rx[0..191]
call add-gref-mapping 0 page 512 -> success
static 512 0
call add-gref-mapping 0 page 512 -> invalid-parameter
call del-gref-mapping 0 page 512 -> success 512
static 0 0

case a queue takes 1100 and no more
close
reopen
rings 4
control slot
connect
static 0 0 0 0
page grefs=tx[0..511]:ro
call add-gref-mapping 0 page 512 -> success
page grefs=rx[0..511]
call add-gref-mapping 0 page 512 -> success
page grefs=tx[512..559]:ro,rx[512..540]
call add-gref-mapping 0 page 77 -> invalid-parameter
static 1024 0 0 0
page grefs=tx[512..559]:ro,rx[512..539]
call add-gref-mapping 0 page 76 -> success
page grefs=rx[540]
call add-gref-mapping 0 page 1 -> invalid-parameter
static 1100 0 0 0

case a guest takes 4096 and no more, over all its queues
page grefs=tx[0..511]:ro
call add-gref-mapping 1 page 512 -> success
call add-gref-mapping 2 page 512 -> success
call add-gref-mapping 3 page 512 -> success
page grefs=rx[0..511]
call add-gref-mapping 1 page 512 -> success
call add-gref-mapping 2 page 512 -> success
page grefs=rx[0..433]
call add-gref-mapping 3 page 434 -> success
static 1100 1024 1024 946
page grefs=tx[512..514]:ro
call add-gref-mapping 1 page 3 -> invalid-parameter
call add-gref-mapping 3 page 3 -> invalid-parameter
page grefs=tx[512..513]:ro
call add-gref-mapping 1 page 2 -> success
page grefs=tx[514]:ro
call add-gref-mapping 1 page 1 -> invalid-parameter
static 1100 1026 1024 946
page grefs=tx[0]:ro
call del-gref-mapping 2 page 1 -> success 1
page grefs=tx[514]:ro
call add-gref-mapping 1 page 1 -> success
static 1100 1027 1023 946
turn tx 514
queue 1
tx 1 M
push
answers 1=okay
out M
counters static_hits=1 static_misses=0 grant_ops=0

case static grants end with the connection
close
reopen
rings 2
control slot
connect
page grefs=tx[0..9]:ro
call add-gref-mapping 0 page 10 -> success
close
reopen
rings 2
control slot
connect
static 0 0
call del-gref-mapping 0 page 10 -> success
statuses 0..9=invalid-parameter
turn tx 0
tx 1 M
push
answers 1=okay
out M
counters static_hits=0 static_misses=0 grant_ops=1
