# SPDX-License-Identifier: Apache-2.0
#
# A frontend makes its buffers static grants, uses them, and removes some.
frame M 60
frame J 9000

rings
control slot
connect

case ask, then add: tx buffers to be read, rx buffers to be written
call get-gref-mapping-size 0 -> success 1100
page grefs=tx[0..3]:ro,rx[0..3]
call add-gref-mapping 0 page 8 -> success
static 8

case send from them: no grant operation
turn tx 0
tx 1 M
tx 2 J[:4096] size=9000 more
tx 3 J[4096:8192] more
tx 4 J[8192:]
push
answers 1..4=okay
out M J
counters static_hits=4 grant_ops=0

case receive into them
turn rx 0
rx 1..4 page
push
inject M
inject J
filled 1=60 2..3=4096:more 4=808
content M 1
content J 2..4
counters static_misses=0 grant_ops=0

case a packet with one page that is not static
turn tx 2
tx 5 J[:4096] size=9000 more
tx 6 J[4096:8192] more
tx 7 J[8192:]
push
answers 5..7=okay
out J
counters static_hits=2 static_misses=1 grant_ops=1

case add maps all or none: tx[0] is static already
page grefs=tx[4]:ro,tx[0]:ro
call add-gref-mapping 0 page 2 -> invalid-parameter
static 8

case delete returns a status for each entry
page grefs=tx[0],tx[4],tx[0]
call del-gref-mapping 0 page 3 -> success 1
statuses 0=success 1=invalid-parameter 2=invalid-parameter
static 7

case a removed page is copied
turn tx 0
tx 8 M
push
answers 8=okay
out M
counters static_hits=0 static_misses=1 grant_ops=1

case a read-only static grant in an rx request
page grefs=rx[4]:ro
call add-gref-mapping 0 page 1 -> success
turn rx 4
rx 8 page
push
inject M
filled 8=error
drops rx_readonly=1
