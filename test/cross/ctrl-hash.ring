# SPDX-License-Identifier: Apache-2.0
#
# The messages of the ring of slots about hashing, each with every possible status. A refused
# message changes nothing: key, types, table and algorithm stay, and so do the hashes of
# packets. The key is that of Microsoft's verification suite; the hashes are those of its
# vectors.
frame T tcp 200 from=66.9.149.187:2794 to=161.142.100.80:1766
frame M 60

rings 2
control slot
connect
served slot
hashing none - - -
steered host
static 0 0
grants 5
ports 5

case before an algorithm is set
call get-hash-flags -> not-supported
call set-hash-flags 15 -> invalid-parameter
call set-hash-flags 0 -> invalid-parameter
call get-hash-mapping-size -> success 128
hashing none - - -

case an algorithm
call set-hash-algorithm 2 -> invalid-parameter
call set-hash-algorithm 1 -> success
call set-hash-algorithm 2 -> invalid-parameter
call set-hash-algorithm 0xffffffff -> invalid-parameter
call get-hash-flags -> success 15
hashing toeplitz - - -

case keys
page hex=6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa
call set-hash-key page 40 -> success
hashing toeplitz - 6d5a56da/40 -
page zeros=4096
call set-hash-key page 41 -> buffer-overflow
call set-hash-key page 4096 -> buffer-overflow
call set-hash-key page 4097 -> invalid-parameter
call set-hash-key page 0x10028 -> invalid-parameter
call set-hash-key page 0xffffffff -> invalid-parameter
call set-hash-key gref=4294967280 40 -> invalid-parameter
call set-hash-key gref=4000 40 -> invalid-parameter
call set-hash-key freed 40 -> invalid-parameter
call set-hash-key foreign 40 -> invalid-parameter
hashing toeplitz - 6d5a56da/40 -

case a key in a read-only page, a short key and an empty one
page hex=0102030405
call set-hash-key readonly 5 -> success
hashing toeplitz - 01020304/5 -
call set-hash-key freed 0 -> success
hashing toeplitz - - -
page hex=6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa
call set-hash-key readonly 40 -> success
hashing toeplitz - 6d5a56da/40 -

case types
call set-hash-flags 16 -> invalid-parameter
call set-hash-flags 0x8000000f -> invalid-parameter
call set-hash-flags 1 -> success
hashing toeplitz ipv4 6d5a56da/40 -
call set-hash-flags 31 -> invalid-parameter
call set-hash-flags 15 -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 -
steered hash

case the table's size
call set-hash-mapping-size 129 -> invalid-parameter
call set-hash-mapping-size 0x10001 -> invalid-parameter
call set-hash-mapping-size 0xffffffff -> invalid-parameter
page u32=1
call set-hash-mapping page 1 0 -> invalid-parameter
call set-hash-mapping-size 128 -> success
call set-hash-mapping-size 8 -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0,0,0,0,0,0,0,0

case the table
page u32=1,0,1,1
call set-hash-mapping page 4 2 -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0,0,1,0,1,1,0,0
call set-hash-mapping readonly 4 4 -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 0,0,1,0,1,0,1,1
call set-hash-mapping page 0 8 -> success
call set-hash-mapping freed 0 0 -> success
call set-hash-mapping page 1 8 -> invalid-parameter
call set-hash-mapping page 2 7 -> invalid-parameter
call set-hash-mapping page 0 9 -> invalid-parameter
call set-hash-mapping page 9 0 -> invalid-parameter
call set-hash-mapping page 2 0xffffffff -> invalid-parameter
call set-hash-mapping page 1 0xfffffffe -> invalid-parameter
call set-hash-mapping page 0x4001 0 -> invalid-parameter
call set-hash-mapping page 0x40000001 0 -> invalid-parameter
call set-hash-mapping page 1025 0 -> invalid-parameter
call set-hash-mapping page 0xffffffff 1 -> invalid-parameter
call set-hash-mapping gref=4294967280 2 0 -> invalid-parameter
call set-hash-mapping gref=4000 2 0 -> invalid-parameter
call set-hash-mapping freed 2 0 -> invalid-parameter
call set-hash-mapping foreign 2 0 -> invalid-parameter
page u32=0,2
call set-hash-mapping page 2 0 -> invalid-parameter
page u32=0xffffffff
call set-hash-mapping page 1 0 -> invalid-parameter
page u32=1,1,1,1,1,1,1,1
call set-hash-mapping page 8 0 -> success
hashing toeplitz ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 1,1,1,1,1,1,1,1

case a whole page of a table
call set-hash-mapping-size 128 -> success
page u32=1,0*512
call set-hash-mapping page 128 0 -> success
call set-hash-mapping page 1024 0 -> invalid-parameter
call set-hash-mapping-size 2 -> success
page u32=1,1
call set-hash-mapping page 2 0 -> success

case packets follow the settings that were not refused
queue 0
rx 1..4 page
push
queue 1
rx 1..4 page
push
inject T
filled 1=200:valid+csum+extra extra=hash:ipv4-tcp:51ccc178
content T 1
queue 0
filled
call set-hash-algorithm 9 -> invalid-parameter
call set-hash-key page 41 -> buffer-overflow
call set-hash-flags 99 -> invalid-parameter
page u32=0,9
call set-hash-mapping page 2 0 -> invalid-parameter
call set-hash-mapping-size 4000 -> invalid-parameter
inject T
queue 1
filled 3=200:valid+csum+extra extra=hash:ipv4-tcp:51ccc178

case without types packets have no hash, and the host steers
call set-hash-flags 0 -> success
hashing toeplitz - 6d5a56da/40 1,1
steered host
call set-hash-flags 15 -> success
steered hash
call set-hash-algorithm 0 -> success
hashing none ipv4,ipv4-tcp,ipv6,ipv6-tcp 6d5a56da/40 1,1
steered host
call get-hash-flags -> not-supported
call set-hash-flags 15 -> invalid-parameter

case the next connection has no settings
call set-hash-algorithm 1 -> success
close
reopen
rings 2
control slot
connect
hashing none - - -
static 0 0
call get-hash-flags -> not-supported
drops
quarantined no
error no
