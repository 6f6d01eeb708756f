# SPDX-License-Identifier: Apache-2.0
#
# The list of multicast addresses that a guest wants: edited by extras of a request without
# data, and cleared when the guest disconnects.
frame U 60
frame B 60 dst=ff:ff:ff:ff:ff:ff
frame X 60 dst=01:00:5e:00:00:01
frame Y 60 dst=33:33:00:00:00:02
frame M 60

rings
key request-multicast-control 1
connect
mcast

case only addresses in the list pass
rx 1..8 page
push
inject X
inject B
inject U
filled 1..2=60
content B 1
content U 2
drops rx_mcast_filtered=1

case an address is added, with a page that is not examined
tx 1 gref=4294967280 off=0xffff size=0xffff extra
extra mcast-add 01:00:5e:00:00:01
push
answers 1=okay null
mcast 01:00:5e:00:00:01
inject X
inject Y
inject U
filled 3..4=60
content X 3
drops rx_mcast_filtered=1

# netif.h does not define the effect of adding an address twice. Linux's netback then has it
# twice in its list, and it still passes after one removal. Here the list is a set, as in
# drivers, in the order of adding.
case the address is added again, with another one, and removed
tx 1 same extra
extra mcast-add 01:00:5e:00:00:01
tx 2 same extra
extra mcast-add 33:33:00:00:00:02
tx 3 same extra
extra mcast-del 01:00:5e:00:00:01
push
answers 1=okay null 2=okay null 3=okay null
mcast 33:33:00:00:00:02
inject X
inject Y
filled 5=60
content Y 5
drops rx_mcast_filtered=1

case removing an address that is not in the list
tx 1 same extra
extra mcast-del 01:00:5e:7f:ff:ff
push
answers 1=okay null

# netif.h allows either extra on a request and does not mention both. Linux's netback keeps one
# extra of each type and checks for adding first (xenvif_tx_build_gops): their order in the
# chain does not matter.
case both in one chain: only adding counts
tx 1 same extra
extra mcast-del 01:00:5e:00:00:01 more
extra mcast-add 01:00:5e:00:00:01
push
answers 1=okay null null
mcast 33:33:00:00:00:02 01:00:5e:00:00:01

# Linux's netback takes the address into its list, where it has no effect: only packets to a
# group are filtered. Here it takes none of the 64 entries, and the guest gets an error.
case an address that is not multicast
tx 1 same extra
extra mcast-add 02:00:00:00:00:02
push
answers 1=error null
drops mcast_full=1

case a packet after an edit
tx 1 same extra
extra mcast-del 01:00:5e:00:00:01
tx 2 M
push
answers 1=okay null 2=okay
out M

case a full list
tx 1 same extra
extra mcast-add 01:00:5e:7f:01:00
tx 2 same extra
extra mcast-add 01:00:5e:7f:01:01
tx 3 same extra
extra mcast-add 01:00:5e:7f:01:02
tx 4 same extra
extra mcast-add 01:00:5e:7f:01:03
tx 5 same extra
extra mcast-add 01:00:5e:7f:01:04
tx 6 same extra
extra mcast-add 01:00:5e:7f:01:05
tx 7 same extra
extra mcast-add 01:00:5e:7f:01:06
tx 8 same extra
extra mcast-add 01:00:5e:7f:01:07
tx 9 same extra
extra mcast-add 01:00:5e:7f:01:08
tx 10 same extra
extra mcast-add 01:00:5e:7f:01:09
tx 11 same extra
extra mcast-add 01:00:5e:7f:01:0a
tx 12 same extra
extra mcast-add 01:00:5e:7f:01:0b
tx 13 same extra
extra mcast-add 01:00:5e:7f:01:0c
tx 14 same extra
extra mcast-add 01:00:5e:7f:01:0d
tx 15 same extra
extra mcast-add 01:00:5e:7f:01:0e
tx 16 same extra
extra mcast-add 01:00:5e:7f:01:0f
tx 17 same extra
extra mcast-add 01:00:5e:7f:01:10
tx 18 same extra
extra mcast-add 01:00:5e:7f:01:11
tx 19 same extra
extra mcast-add 01:00:5e:7f:01:12
tx 20 same extra
extra mcast-add 01:00:5e:7f:01:13
tx 21 same extra
extra mcast-add 01:00:5e:7f:01:14
tx 22 same extra
extra mcast-add 01:00:5e:7f:01:15
tx 23 same extra
extra mcast-add 01:00:5e:7f:01:16
tx 24 same extra
extra mcast-add 01:00:5e:7f:01:17
tx 25 same extra
extra mcast-add 01:00:5e:7f:01:18
tx 26 same extra
extra mcast-add 01:00:5e:7f:01:19
tx 27 same extra
extra mcast-add 01:00:5e:7f:01:1a
tx 28 same extra
extra mcast-add 01:00:5e:7f:01:1b
tx 29 same extra
extra mcast-add 01:00:5e:7f:01:1c
tx 30 same extra
extra mcast-add 01:00:5e:7f:01:1d
tx 31 same extra
extra mcast-add 01:00:5e:7f:01:1e
tx 32 same extra
extra mcast-add 01:00:5e:7f:01:1f
tx 33 same extra
extra mcast-add 01:00:5e:7f:01:20
tx 34 same extra
extra mcast-add 01:00:5e:7f:01:21
tx 35 same extra
extra mcast-add 01:00:5e:7f:01:22
tx 36 same extra
extra mcast-add 01:00:5e:7f:01:23
tx 37 same extra
extra mcast-add 01:00:5e:7f:01:24
tx 38 same extra
extra mcast-add 01:00:5e:7f:01:25
tx 39 same extra
extra mcast-add 01:00:5e:7f:01:26
tx 40 same extra
extra mcast-add 01:00:5e:7f:01:27
tx 41 same extra
extra mcast-add 01:00:5e:7f:01:28
tx 42 same extra
extra mcast-add 01:00:5e:7f:01:29
tx 43 same extra
extra mcast-add 01:00:5e:7f:01:2a
tx 44 same extra
extra mcast-add 01:00:5e:7f:01:2b
tx 45 same extra
extra mcast-add 01:00:5e:7f:01:2c
tx 46 same extra
extra mcast-add 01:00:5e:7f:01:2d
tx 47 same extra
extra mcast-add 01:00:5e:7f:01:2e
tx 48 same extra
extra mcast-add 01:00:5e:7f:01:2f
tx 49 same extra
extra mcast-add 01:00:5e:7f:01:30
tx 50 same extra
extra mcast-add 01:00:5e:7f:01:31
tx 51 same extra
extra mcast-add 01:00:5e:7f:01:32
tx 52 same extra
extra mcast-add 01:00:5e:7f:01:33
tx 53 same extra
extra mcast-add 01:00:5e:7f:01:34
tx 54 same extra
extra mcast-add 01:00:5e:7f:01:35
tx 55 same extra
extra mcast-add 01:00:5e:7f:01:36
tx 56 same extra
extra mcast-add 01:00:5e:7f:01:37
tx 57 same extra
extra mcast-add 01:00:5e:7f:01:38
tx 58 same extra
extra mcast-add 01:00:5e:7f:01:39
tx 59 same extra
extra mcast-add 01:00:5e:7f:01:3a
tx 60 same extra
extra mcast-add 01:00:5e:7f:01:3b
tx 61 same extra
extra mcast-add 01:00:5e:7f:01:3c
tx 62 same extra
extra mcast-add 01:00:5e:7f:01:3d
tx 63 same extra
extra mcast-add 01:00:5e:7f:01:3e
push
answers 1=okay null 2=okay null 3=okay null 4=okay null 5=okay null 6=okay null 7=okay null 8=okay null 9=okay null 10=okay null 11=okay null 12=okay null 13=okay null 14=okay null 15=okay null 16=okay null 17=okay null 18=okay null 19=okay null 20=okay null 21=okay null 22=okay null 23=okay null 24=okay null 25=okay null 26=okay null 27=okay null 28=okay null 29=okay null 30=okay null 31=okay null 32=okay null 33=okay null 34=okay null 35=okay null 36=okay null 37=okay null 38=okay null 39=okay null 40=okay null 41=okay null 42=okay null 43=okay null 44=okay null 45=okay null 46=okay null 47=okay null 48=okay null 49=okay null 50=okay null 51=okay null 52=okay null 53=okay null 54=okay null 55=okay null 56=okay null 57=okay null 58=okay null 59=okay null 60=okay null 61=okay null 62=okay null 63=okay null
tx 64 same extra
extra mcast-add 01:00:5e:7f:02:00
push
answers 64=error null
drops mcast_full=1

case the next connection has an empty list
close
reopen
rings
key request-multicast-control 1
connect
mcast

case a guest without the feature gets everything, and may edit the list
close
reopen
rings
connect
tx 1 gref=0 extra
extra mcast-add 01:00:5e:00:00:01
push
answers 1=okay null
rx 1..2 page
push
inject X
inject Y
filled 1..2=60
content X 1
content Y 2
close
reopen
