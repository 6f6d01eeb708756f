# SPDX-License-Identifier: Apache-2.0
#
# Extra slots: valid and invalid segmentation, chains, duplicates, and unknown types. Each extra
# of a packet is answered with NULL right behind the packet's first slot.
frame F 256
frame T tcp 4054 mss=1000
frame C tcp 900
frame M 60

rings
connect

case a TCP packet to be segmented
tx 1 T[:2000] size=4054 csum valid more extra
extra gso tcpv4 1000
tx 2 T[2000:]
push
answers 1=okay null 2=okay
out T+csum+tcpv4:1000

case a blank checksum
tx 1 C csum valid
push
answers 1=okay
out C+csum

# As in Linux's netback, which keeps one extra of each type (xenvif_get_extras).
case the last of two extras of a type counts
tx 1 T[:2000] size=4054 csum valid more extra
extra gso tcpv6 7 more
extra hash more
extra gso tcpv4 1000
tx 2 T[2000:]
push
answers 1=okay null null null 2=okay
out T+csum+tcpv4:1000

case a hash that was not requested
tx 1 F extra
extra hash
push
answers 1=okay null
out F

# From here on an invalid extra costs the packet. netif.h has ERROR for a request that was not
# carried out; it does not require that such a guest is cut off. Linux's netback cuts it off
# for a size of 0 and for unknown types (xenvif_set_skb_gso), and answers a packet that is not
# TCP with OKAY and drops it silently (checksum_setup fails, xenvif_tx_submit). ERROR informs
# the guest, which sees a lost packet: Linux's netfront checks no status except NULL, Windows
# counts an error.
case a segment size of 0
tx 1 F extra
extra gso tcpv4 0
tx 2 M
push
answers 1=error null 2=okay
out M
drops tx_bad_gso=1

case segmentation without a type
tx 1 F extra
extra gso none 1000
tx 2 M
push
answers 1=error null 2=okay
out M
drops tx_bad_gso=1

case segmentation of an unknown type, in three slots
tx 1 F[:100] size=256 more extra
extra gso 3 1000
tx 2 F[100:200] more
tx 3 F[200:]
tx 4 M
push
answers 1=error null 2..3=error 4=okay
out M
drops tx_bad_gso=1

case segmentation of a packet that is not TCP
tx 1 F extra
extra gso tcpv4 100
tx 2 M
push
answers 1=error null 2=okay
out M
drops tx_bad_gso=1

case IPv6 segmentation of an IPv4 packet
tx 1 C extra
extra gso tcpv6 100
tx 2 M
push
answers 1=error null 2=okay
out M
drops tx_bad_gso=1

case an extra of type 0
tx 1 M
tx 2 F extra
extra 0
tx 3 M
push
quarantined extra info of none
answers 1=okay
out M
error quarantined
carrier down
close
reopen
rings
connect
quarantined no
error no

case an extra of type 5, which is Linux's own
tx 1 F extra
extra 5
push
quarantined extra info of xdp
answers
close
reopen
rings
connect

case an extra of type 255 in a chain
tx 1 F extra
extra hash more
extra 255
push
quarantined extra info of unknown(255)
answers
close
reopen
rings
connect

case an extra that was announced and is missing
tx 1 M
tx 2 F extra
push
quarantined extra info announced but not published
answers 1=okay
out M
close
reopen
rings
connect

case a chain of extras without end
tx 1 F extra
extra hash more
extra hash more
extra hash more
extra hash more
extra hash more
extra hash more
push
quarantined extra info announced but not published
answers
close
reopen
