# SPDX-License-Identifier: Apache-2.0
#
# Frontends that change their state in forbidden or in unusual ways. The backend always has the
# right state, holds no page that it should not hold, and connects to the next frontend.
frame M 60
frame S 60

rings
connect
tx 1 M
push
answers 1=okay
out M

case closed and back, in the regular order
close
grants 0
ports 0
reopen
rings
connect
grants 2
ports 2
tx 1 M
push
answers 1=okay
out M

case from Connected to Initialising, as a guest that was resumed
state 1
backend 2
grants 0
rings
connect
tx 1 M
push
answers 1=okay
out M

case the rings are freed before the backend has unmapped them
free
state 1
backend 2
grants 0
rings
connect
tx 1 M
push
answers 1=okay
out M

case Connected again with other rings, without another state between
rings 2
connect
grants 4
tx 1 M
push
answers 1=okay
queue 1
tx 1 M
push
answers 1=okay
out M*2

case Connected again with the same rings
state 4
tx 2 M
push
answers 2=okay
out M

case Closing and back to Connected with the same rings
state 5
backend 5
grants 0
connect
grants 4
queue 0
tx 2 M
push
answers 2=okay
out M

case Closing, and at once Initialising
state 5
state 1
backend 2
grants 0
rings
connect

case from Connected to Closed
state 6
backend 6
grants 0
ports 0

case Closed twice, then Closing
state 6
state 5
backend 5
grants 0
state 6
backend 6

case from Closed to Connected
rings
connect
grants 2
tx 1 M
push
answers 1=okay
out M

case Reconfiguring is answered, and the rings stay in use
state 7
backend 8
tx 2 M
push
answers 2=okay
out M
state 4
tx 3 M
push
answers 3=okay
out M
error no

case InitWait, a state that no frontend has
state 2
backend 6
error "\"state\""
grants 0
state 4
grants 2
tx 4 M
push
answers 4=okay
out M
error no

case a state that does not exist
state 9
backend 6
error "\"state\""
grants 0
state 1
backend 2
rings
connect
error no

case a state that is not a number
state four
backend 6
error "\"state\""
state 1
backend 2

case no state at all
rings
connect
remove state
backend 6
grants 0
state 1
backend 2

case rings on offer, but not Connected
rings
offer
backend 4
state 3
tx 1 M
push
answers 1=okay
out M

case packets that waited for the guest are not for its next connection
inject S
held yes
state 5
backend 5
state 6
backend 6
state 1
backend 2
rings
rx 1..2 page
push
connect
inject S
filled 1=60
content S 1
close
reopen
