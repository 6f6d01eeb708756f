# SPDX-License-Identifier: Apache-2.0
#
# Packets from the guest that look odd and are legal: they reach the host unchanged.
frame F 300
frame S 31
frame H 14
frame A 1152    # 18 slots of 64 bytes
frame B 1216    # 19
frame P 12288
frame Z 65535
frame M 60

rings
connect

case 18 data slots
tx 1 A[:64] size=1152 more
tx 2..17 A[64:]/64 more
tx 18 A[1088:]
push
answers 1..18=okay
out A

case 19 data slots, one more than a backend must take
tx 1 B[:64] size=1216 more
tx 2..18 B[64:]/64 more
tx 19 B[1152:]
push
answers 1..19=okay
out B

case 19 data slots and three extras
tx 1 B[:64] size=1216 more extra
extra hash more
extra hash more
extra hash
tx 2..18 B[64:]/64 more
tx 19 B[1152:]
push
answers 1=okay null null null 2..19=okay
out B

case first slot of 14 bytes, then one byte each
tx 1 S[:14] size=31 more
tx 2..17 S[14:]/1 more
tx 18 S[30:]
push
answers 1..18=okay
out S

case 65535 bytes in 16 slots
tx 1 Z[:4096] size=65535 more
tx 2..15 Z[4096:]/4096 more
tx 16 Z[61440:]
push
answers 1..16=okay
out Z

case 65535 bytes in 17 slots, the first of 14 bytes
tx 1 Z[:14] size=65535 more
tx 2..16 Z[14:]/4096 more
tx 17 Z[61454:]
push
answers 1..17=okay
out Z

case data ends with its page
tx 1 F off=3796
push
answers 1=okay
out F

case data of each slot ends with its page
tx 1 F[:150] off=3946 size=300 more
tx 2 F[150:] off=3946
push
answers 1..2=okay
out F

case later slot of 0 bytes, with an invalid gref
tx 1 F more
tx 2 gref=4294967280 off=4096
push
answers 1..2=okay
out F

case all later slots of 0 bytes
tx 1 F more
tx 2..18 gref=4294967280 more
tx 19 freed
push
answers 1..19=okay
out F

case slots of 0 bytes in the middle of a packet in pages
tx 1 P[:4096] size=12288 more
tx 2 foreign off=9 more
tx 3 P[4096:8192] more
tx 4 foreign more
tx 5 P[8192:]
push
answers 1..5=okay
out P

case checksum marked as valid
tx 1 F valid
push
answers 1=okay
out F

case flags that do not exist
tx 1 F flags=0xfff0
push
answers 1=okay
out F

case 14 bytes
tx 1 H
push
answers 1=okay
out H

case any ids are sent back
tx 0xffff M
tx 0 M
tx 0x8000 M
tx 7 M
tx 7 M
tx 7 F[:13]
push
answers 65535=okay 0=okay 32768=okay 7=okay 7=okay 7=error
out M M M M M
drops tx_too_short=1

case a ring filled to the last slot
tx 1 M
tx 2..256 same size=60
push
answers 1..256=okay
out M*256

case the last slot of the ring and the first in one packet
tx 1 P[:4096] size=12288 more
tx 2 P[4096:8192] more
tx 3 P[8192:]
push
answers 1..3=okay
out P

case the guest is not quarantined
quarantined no
error no
