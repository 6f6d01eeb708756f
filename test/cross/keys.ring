# SPDX-License-Identifier: Apache-2.0
#
# Keys that are missing or malformed, or that name rings and ports which do not exist. The
# backend names the key in its error, closes, holds nothing, and connects as soon as the guest
# corrects the key.
frame M 60

case no tx-ring-ref
rings
key tx-ring-ref -
offer
backend 6
error "key \"tx-ring-ref\""
close
reopen

case no rx-ring-ref
rings
key rx-ring-ref -
offer
backend 6
error "key \"rx-ring-ref\""
close
reopen

case tx-ring-ref is empty
rings
key tx-ring-ref ""
offer
backend 6
error "key \"tx-ring-ref\""
close
reopen

case rx-ring-ref is -1
rings
key rx-ring-ref -1
offer
backend 6
error "key \"rx-ring-ref\""
close
reopen

case tx-ring-ref is 0x10
rings
key tx-ring-ref 0x10
offer
backend 6
error "key \"tx-ring-ref\""
close
reopen

case rx-ring-ref is 4294967296
rings
key rx-ring-ref 4294967296
offer
backend 6
error "key \"rx-ring-ref\""
close
reopen

case event-channel-tx is 0
rings
key event-channel-tx 0
offer
backend 6
error "key \"event-channel-tx\""
close
reopen

case event-channel-rx is 131072
rings
key event-channel-rx 131072
offer
backend 6
error "key \"event-channel-rx\""
close
reopen

case event-channel-tx is ten
rings
key event-channel-tx ten
offer
backend 6
error "key \"event-channel-tx\""
close
reopen

case feature-sg is 2
rings
key feature-sg 2
offer
backend 6
error "key \"feature-sg\""
close
reopen

case feature-rx-notify is yes
rings
key feature-rx-notify yes
offer
backend 6
error "key \"feature-rx-notify\""
close
reopen

case feature-gso-tcpv4 is -1
rings
key feature-gso-tcpv4 -1
offer
backend 6
error "key \"feature-gso-tcpv4\""
close
reopen

case request-multicast-control is 01
rings
key request-multicast-control 01
offer
backend 6
error "key \"request-multicast-control\""
close
reopen

case request-rx-copy is 0
rings
key request-rx-copy 0
offer
backend 6
error "key \"request-rx-copy\""
close
reopen

case no request-rx-copy
rings
key request-rx-copy -
offer
backend 6
error "key \"request-rx-copy\""
close
reopen

case request-rx-copy is empty
rings
key request-rx-copy ""
offer
backend 6
error "key \"request-rx-copy\""
close
reopen

case multi-queue-num-queues is 0
rings
key multi-queue-num-queues 0
offer
backend 6
error "key \"multi-queue-num-queues\""
close
reopen

case multi-queue-num-queues is 5
rings
key multi-queue-num-queues 5
offer
backend 6
error "key \"multi-queue-num-queues\""
close
reopen

case multi-queue-num-queues is empty
rings
key multi-queue-num-queues ""
offer
backend 6
error "key \"multi-queue-num-queues\""
close
reopen

case multi-queue-num-queues is 65536
rings
key multi-queue-num-queues 65536
offer
backend 6
error "key \"multi-queue-num-queues\""
close
reopen

case no event channel at all
rings
key event-channel-tx -
key event-channel-rx -
offer
backend 6
error "key \"event-channel\""
close
reopen

case half a pair of event channels
rings
key event-channel-tx -
offer
backend 6
error "key \"event-channel\""
close
reopen

case two queues, and rings for one
rings
key multi-queue-num-queues 2
offer
backend 6
error "key \"queue-0/tx-ring-ref\""
close
reopen

case no tx ring of the second queue
rings 2
key queue-1/tx-ring-ref -
offer
backend 6
error "key \"queue-1/tx-ring-ref\""
close
reopen

case a ring that was never granted
rings
key tx-ring-ref 4000
offer
backend 6
error gref 4000
grants 0
close
reopen

case a ring beyond the grant table
rings
key rx-ring-ref 4294967280
offer
backend 6
error gref 4294967280
grants 0
close
reopen

case a ring that was granted to another domain
rings
key tx-ring-ref @foreign
offer
backend 6
error map tx ring
grants 0
close
reopen

case a ring that was granted for reading only
rings
key rx-ring-ref @readonly
offer
backend 6
error map rx ring
grants 0
close
reopen

case a ring that was granted a moment ago
rings
key tx-ring-ref @freed
offer
backend 6
error map tx ring
grants 0
close
reopen

case an event channel that does not exist
rings
key event-channel-tx 999
offer
backend 6
error port 999
grants 0
close
reopen

case an event channel that was closed
rings
key event-channel-rx @closed-port
offer
backend 6
error bind
grants 0
close
reopen

case an event channel to another domain
rings
key event-channel-tx @foreign-port
offer
backend 6
error bind
grants 0
close
reopen

case one event channel for two queues
rings 2
key queue-1/event-channel-tx @tx-port
offer
backend 6
error queue 1
grants 0
close
reopen

case the second queue's ring was never granted
rings 2
key queue-1/rx-ring-ref 4000
offer
backend 6
error queue 1: map rx ring
grants 0
close
reopen

case the number of queues is 1
rings
key multi-queue-num-queues 1
connect
features rx-copy rx-notify sg csum-ipv4
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case white space and a NUL around numbers
rings
key feature-sg " 1\n"
key request-rx-copy "1\x00"
connect
features rx-copy rx-notify sg csum-ipv4
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case no feature at all
rings
key feature-sg -
key feature-rx-notify -
connect
features rx-copy csum-ipv4
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case an empty feature
rings
key feature-gso-tcpv4 ""
connect
features rx-copy rx-notify sg csum-ipv4
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case all features
rings
key feature-gso-tcpv4 1
key feature-gso-tcpv6 1
key feature-ipv6-csum-offload 1
key request-multicast-control 1
connect
features rx-copy rx-notify sg gso-tcpv4 gso-tcpv6 csum-ipv4 csum-ipv6 multicast-control
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case segmentation without scatter-gather
rings
key feature-sg -
key feature-gso-tcpv4 1
connect
features rx-copy rx-notify csum-ipv4
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case unknown keys
rings
key feature-warp 9
key queue-0/tx-ring-ref junk
connect
features rx-copy rx-notify sg csum-ipv4
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case a control ring without a channel
rings
key ctrl-ring-ref 4000
offer
backend 6
error "key \"event-channel-ctrl\""
close
reopen

case a control ring of a page that was not granted
rings
key ctrl-ring-ref 4000
key event-channel-ctrl @tx-port
offer
backend 6
error gref 4000
close
reopen

case the same channel for both rings
rings
key event-channel-rx @tx-port
connect
features rx-copy rx-notify sg csum-ipv4
grants 2
ports 1
tx 1 M
push
answers 1=okay
out M
error no
close
reopen

case keys that are corrected
rings
key tx-ring-ref -
offer
backend 6
error "key \"tx-ring-ref\""
close
reopen
rings
connect
error no
tx 1 M
push
answers 1=okay
out M

case keys that change while connected change nothing
write feature-sg 0
write multi-queue-num-queues 9
tx 2 M
push
answers 2=okay
out M
remove multi-queue-num-queues
close
reopen
