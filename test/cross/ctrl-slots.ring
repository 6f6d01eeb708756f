# SPDX-License-Identifier: Apache-2.0
#
# The ring of slots: unknown messages, ids, a ring full of messages, wrong indices, pages that
# are no ring. Packets move in any case.
frame M 60

rings
control slot
connect
served slot
grants 3
ports 3

case unknown messages
call 0 -> not-supported
call 11 1 2 3 -> not-supported
call 0xffff -> not-supported
call 0x8001 -> not-supported

case any ids are sent back
send id=0xffff set-hash-algorithm 1
send id=1 get-hash-flags
send id=1 get-hash-flags
send id=0x8000 get-hash-mapping-size
replies 65535=success 1=success:15 1=success:15 32768=success:128

case two messages at once, the second of which depends on the first
send id=7 set-hash-algorithm 0
send id=9 get-hash-flags
send id=8 set-hash-algorithm 1
send id=6 get-hash-flags
replies 7=success 9=not-supported 8=success 6=success:15

case a ring full of messages
send id=1..128 get-hash-mapping-size
replies 1..128=success:128
send id=1000..1127 200
replies 1000..1127=not-supported

case events without messages
kick control
kick control
replies
call get-hash-flags -> success 15

case the ring as the page of a message
call set-hash-key control 0 -> success
page hex=ff
call set-hash-key readonly 1 -> success
hashing toeplitz - ff/1 -

case more messages than slots: the ring is disabled, the settings stay
call set-hash-flags 15 -> success
req-prod control 129
served "out of use"
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp ff/1 -
tx 1 M
rx 1..4 page
push
answers 1=okay
out M
inject M
filled 1=60
content M 1
replies
quarantined no
error no
close
reopen

case indices far ahead
rings
control slot
connect
served slot
call set-hash-algorithm 1 -> success
req-prod control 0x80000000
served "out of use"
tx 1 M
push
answers 1=okay
out M
close
reopen

case indices that go backwards
rings
control slot
connect
call get-hash-mapping-size -> success 128
req-prod control -1
served "out of use"
tx 1 M
push
answers 1=okay
out M
close
reopen

case a page that is not a ring
rings
control neither
connect
served "neither a new slot ring nor a byte-stream ring"
tx 1 M
rx 1..2 page
push
answers 1=okay
out M
inject M
filled 1=60
quarantined no
error no
close
reopen

case a page that is not granted
rings
control slot
key ctrl-ring-ref 4000
offer
backend 6
error gref 4000
close
reopen

case a read-only page
rings
control slot
key ctrl-ring-ref @readonly
offer
backend 6
error "control ring: map ring"
close
reopen

case a page that was granted to another domain
rings
control slot
key ctrl-ring-ref @foreign
offer
backend 6
error "control ring: map ring"
close
reopen

case a channel that was closed
rings
control slot
key event-channel-ctrl @closed-port
offer
backend 6
error "control ring"
close
reopen

case a channel to another domain
rings
control slot
key event-channel-ctrl @foreign-port
offer
backend 6
error "control ring"
close
reopen

case a ring without a channel
rings
control slot
key event-channel-ctrl -
offer
backend 6
error "event-channel-ctrl"
close
reopen

case a channel without a ring, and an empty ring key
rings
control slot
key ctrl-ring-ref -
connect
served no
close
reopen
rings
control slot
key ctrl-ring-ref ""
connect
served no
tx 1 M
push
answers 1=okay
out M
close
reopen

case one channel for two rings
rings
control slot
key event-channel-ctrl @tx-port
offer
backend 6
error "control ring"
close
reopen

case a valid ring after all that
rings 2
control slot
connect
served slot
hashing none - - -
call set-hash-algorithm 1 -> success
call get-hash-flags -> success 15
call get-gref-mapping-size 1 -> success 1100
