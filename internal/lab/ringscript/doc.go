// SPDX-License-Identifier: Apache-2.0

// Package ringscript plays scripts as a misbehaving frontend. A script uses any slot,
// flag, reference, index, key and state, and has the expected result of each. The same
// script runs in the embedded Xen and inside a real guest, over /dev/xen, and writes the
// same transcript there, so that the two can be compared.
//
// [Parse] reads a script, [Play] plays it inside the guest. An [Umpire] runs on the host
// beside the daemon and tells the player what only the host can observe: counters, the
// error node, frames that come out of the vif. They exchange messages over two of the
// guest's nodes in xenstore. The observations are written to a transcript, which has no
// number that differs between machines.
//
// # Scripts
//
// A line is a directive. Blanks separate words; a word in double quotes is a Go string; #
// begins a comment. The first directive that fails ends the script.
//
//	frame F 300             # a frame of 300 bytes; name and length determine its bytes
//	rings                   # a queue, with an event channel for each ring
//	connect                 # publish it and wait for the backend
//	case the second of two slots crosses its page
//	tx 1 F[:200] size=300 more
//	tx 2 same off=4000 size=100
//	push
//	answers 1..2=error
//	out                     # nothing came out
//	drops tx_cross_page=1
//
// Frames:
//
//	frame NAME LEN [dst=MAC]           not IP
//	frame NAME tcp LEN [mss=N] [IP]    TCP, checksum blank; with mss it is sent to the
//	                                   guest for segmentation
//	frame NAME udp LEN [IP]            UDP
//
// IP is from=ADDRESS:PORT to=ADDRESS:PORT, vlan=N, and fragment (the first of a
// packet); a frame with vlan or fragment has a complete checksum.
//
//	case TEXT                          a heading; checks that all responses so far
//	                                   were read
//
// The device. Key takes effect with the next offer, which removes all nodes of an
// earlier one. Values that a script cannot know are @tx-ring and @rx-ring,
// @tx-port (those of queue 0), @control-ring, @readonly, @foreign, @freed (pages),
// @closed-port and @foreign-port.
//
//	rings [N] [single]                 N new queues; single: one event channel each
//	control slot|stream|neither        a control ring for these queues; neither: a page
//	                                   that belongs to no protocol
//	key NAME VALUE                     "-": without this key
//	offer                              publish the rings, go to Connected
//	connect                            offer, and wait for the backend's Connected
//	close                              Closing, wait, Closed, wait; rings freed
//	reopen                             Initialising, wait for InitWait
//	free                               free the rings at once
//	state S, write NAME VALUE, remove NAME
//	backend N                          wait until the backend is in state N
//
// The rings of the queue chosen by the directive queue, at first queue 0.
// IDS is a number or a range, 1..9. WHAT is NAME, NAME[from:to], NAME/STEP (each slot
// takes the next STEP bytes), each in a page of its own; or same (the last reference),
// freed, foreign, readonly, ring (the tx ring), gref=N. BUFFER is page, or one of these.
//
//	queue N
//	tx IDS WHAT [off=N] [size=N] [flags=N] [csum] [valid] [more] [extra]
//	extra gso none|tcpv4|tcpv6|N SIZE [more]
//	extra mcast-add|mcast-del MAC [more]
//	extra hash|N [more]
//	rx IDS BUFFER
//	push                               publish, and send the events asked for
//	publish                            publish, send none
//	kick                               send events, asked for or not
//	turn tx|rx N                       use page N of the pool next
//	req-prod tx|rx N                   add to req_prod
//	rsp-event tx|rx N                  ask for an event at the N-th response from now
//	answers [IDS=okay|error|dropped | null]...
//	filled [IDS=LEN[@OFF][:FLAG+FLAG...] | IDS=error | extra=gso:TYPE:SIZE | extra=xdp:N]...
//	content NAME IDS...                these buffers hold exactly the frame
//	armed tx|rx [N]                    wait until req_event is N past req_prod
//	event tx|rx|none                   wait for an event; none: check that none came
//
// The control ring. Messages name one page, which is granted for writing (page)
// and for reading only (readonly); the backend may write only the statuses of a list
// there. BYTES are words like hex=6d5a, u16=, u32= and u64=1,2, zeros=N, each with
// *N behind it to repeat it N times, and grefs=PAGE[:ro|:FLAGS],... for the entries of
// a list, where PAGE is tx[N] or rx[N..M] (of the pools), or as BUFFER. On a ring of
// slots a MESSAGE is a type, by name or number, and its data: numbers, page, control
// (the ring's), or as PAGE. On byte streams it is TYPE [size=N] BYTES, where size is
// the size in the header; stream=N is a type of any number; the type bytes sends BYTES
// without a header.
//
//	page BYTES...                     fill the page
//	call MESSAGE -> STATUS [DATA]      send, and wait for the response; a message
//	                                   without success must change no setting
//	send [id=IDS] MESSAGE              put a message
//	replies [[ID=]STATUS[:DATA]]...    push, and wait for responses
//	statuses [N=STATUS | N=untouched]... the statuses in the list
//	kick control                       send an event, asked for or not
//	req-prod control N                 add to req_prod
//	rsp-cons N                         add to rsp_cons, of byte streams
//
// The host. The player waits until a fact is true.
//
//	out [NAME[+csum][+tcpv4:MSS][*N]]...   the frames that came out since the last out
//	inject NAME [TIMES]                send a frame to the guest
//	drops [REASON=N]...                all packets dropped since the last drops
//	counters NAME=N...                 increases since the last counters
//	quarantined TEXT|no, error TEXT|no a part of the reason, of the error node
//	carrier up|down, stalled yes|no, held yes|no
//	served slot|stream|no|TEXT         the control ring, and the reason if it is out
//	                                   of use
//	hashing ALGORITHM TYPES KEY/LENGTH MAPPING, or no
//	steered hash|host                  the guest's hash or the host chooses the queue
//	static N...                        static grants of each queue
//	grants N, ports N, headroom N, mcast [MAC]..., features [NAME]...
//	reset                              netbackd reset
//
// After the last line the device is closed. The script must have checked every drop, and
// no page may be mapped.
//
// The package depends on the protocol and on the daemon's status of a vif. It must not
// depend on the daemon's code, nor on which Xen it runs in.
package ringscript
