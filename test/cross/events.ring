# SPDX-License-Identifier: Apache-2.0
#
# Events: the backend requests an event with req_event when it has nothing to do, and sends one
# when responses pass rsp_event, not before and not twice.
frame S 60
frame J 9000
frame M 60

rings
connect

case the backend requests an event for the next request
armed tx
tx 1 M
push
answers 1=okay
out M
armed tx

case the guest requested an event for the first response
event tx
event none

case no event without a request for one
tx 2..4 M
push
answers 2..4=okay
out M*3
counters tx_slots=4 notifies=1
event none

case an event with the third response, and none before it
rsp-event tx 3
tx 5 M
push
answers 5=okay
tx 6 M
push
answers 6=okay
out M*2
counters tx_slots=2 notifies=0
event none
tx 7 M
push
answers 7=okay
out M
event tx
counters tx_slots=1 notifies=1

case one event for many responses
rsp-event tx 1
tx 8..107 M
push
answers 8..107=okay
event tx
event none
counters tx_slots=100 notifies=1
out M*100

case rsp_event in the past asks for nothing
rsp-event tx 0
tx 1 M
push
answers 1=okay
out M
counters tx_slots=1 notifies=0
event none

case requests without an event wait for one
armed tx
tx 1 M
publish
answers
tx 2 M
push
answers
kick
answers 1..2=okay
out M*2

case an event without requests is harmless
kick
kick
armed tx
tx 1 M
push
answers 1=okay
out M

case an event when a buffer is filled
rx 1..4 page
push
inject S
filled 1=60
event rx
inject S
filled 2=60
counters rx_slots=2 notifies=1
event none
rsp-event rx 2
inject S
filled 3=60
event none
inject S
filled 4=60
event rx

case the backend asks for as many buffers as the packet needs
inject J
armed rx 3
rx 1..2 page
push
counters rx_slots=2 notifies=1
filled
armed rx 1
rx 3 page
push
filled 1..2=4096:more 3=808
content J 1..3
close
reopen

case one channel for both rings
rings single
connect
armed tx
rx 1..2 page
tx 1 M
push
answers 1=okay
event tx
inject S
filled 1=60
event tx
rsp-event tx 1
tx 2 M
push
answers 2=okay
event tx
event none
out M*2
close
reopen

case requests that were there before the backend connected
rings
tx 1 M
rx 1 page
push
connect
answers 1=okay
out M
event tx
inject S
filled 1=60
event rx
close
reopen
