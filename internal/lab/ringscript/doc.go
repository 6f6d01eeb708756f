// SPDX-License-Identifier: Apache-2.0

// Package ringscript plays scripts as a frontend that does not behave: any slot,
// flag, reference, index, key and state, and for each what has to come of it. The
// same script runs in the embedded Xen and inside a real guest, over /dev/xen, and
// says the same there; that is how the two are held against each other.
//
// [Parse] reads a script, [Play] plays it inside the guest. What only the host can
// see - counters, the error node, frames that come out of the vif - an [Umpire]
// beside the daemon tells the player, over two nodes of the guest's in xenstore.
// What was observed is written to a transcript, which holds no number that is
// another one on each machine.
//
// # Scripts
//
// A line is a directive. Words are parted by blanks; a word in double quotes is as
// in Go; # begins a comment. The first directive that fails ends the script.
//
//	frame F 300             # a frame of 300 bytes, all of which follow from this
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
//	frame NAME tcp LEN [mss=N] [IP]    TCP, checksum blank; sent to the guest with
//	                                   mss it is to be segmented
//	frame NAME udp LEN [IP]            UDP
//
// IP is from=ADDRESS:PORT to=ADDRESS:PORT, vlan=N, and fragment (the first of a
// packet); a frame with either of the last has its checksum.
//
//	case TEXT                          a heading; every answer so far was looked at
//
// The device. Key takes effect with the next offer, which removes all that an
// earlier one wrote. Values that a script cannot know are @tx-ring and @rx-ring,
// @tx-port (those of queue 0), @control-ring, @readonly, @foreign, @freed (pages),
// @closed-port and @foreign-port.
//
//	rings [N] [single]                 N new queues; single: one event channel each
//	control slot|stream|neither        a control ring for these, or a page that is none
//	key NAME VALUE                     "-": without this key
//	offer                              publish the rings, go to Connected
//	connect                            offer, and wait for the backend's Connected
//	close                              Closing, wait, Closed, wait; rings freed
//	reopen                             Initialising, wait for InitWait
//	free                               free the rings at once
//	state S, write NAME VALUE, remove NAME
//	backend N                          wait until the backend is in state N
//
// The rings of the queue chosen by the directive queue, 0 unless told otherwise.
// IDS is a number or a row, 1..9. WHAT is NAME, NAME[from:to], NAME/STEP (each slot
// takes the next STEP bytes), each in a page of its own; or same (the reference
// used last), freed, foreign, readonly, ring (the tx ring), gref=N. BUFFER is page,
// or one of these.
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
//	turn tx|rx N                       the next page of a pool to be used
//	req-prod tx|rx N                   add to req_prod
//	rsp-event tx|rx N                  ask for an event at the N-th response from now
//	answers [IDS=okay|error|dropped | null]...
//	filled [IDS=LEN[@OFF][:FLAG+FLAG...] | IDS=error | extra=gso:TYPE:SIZE | extra=xdp:N]...
//	content NAME IDS...                these buffers hold the frame, and no more
//	armed tx|rx [N]                    wait until req_event is N past req_prod
//	event tx|rx|none                   wait for an event; none: none has come
//
// The control ring. Messages name one page, which is granted for writing (page)
// and for reading only (readonly); nothing may be written there but statuses of a
// list. OCTETS are words like hex=6d5a, u16=, u32= and u64=1,2, zeros=N, each with
// *N behind it for N times that, and grefs=PAGE[:ro|:FLAGS],... for the entries of
// a list, where PAGE is tx[N] or rx[N..M] (of the pools), or as BUFFER. On a ring of
// slots a MESSAGE is a type, by name or number, and its data: numbers, page, control
// (the ring's), or as PAGE. On byte streams it is TYPE [size=N] OCTETS, where size is
// what the header says; stream=N is a type of any number, bytes are no message.
//
//	page OCTETS...                     what is in the page
//	call MESSAGE -> STATUS [DATA]      send, and wait for the response; what is not
//	                                   answered with success has changed nothing
//	send [id=IDS] MESSAGE              put a message
//	replies [[ID=]STATUS[:DATA]]...    push, and wait for responses
//	statuses [N=STATUS | N=untouched]... those in the list
//	kick control                       send an event, asked for or not
//	req-prod control N                 add to req_prod
//	rsp-cons N                         add to rsp_cons, of byte streams
//
// The host. Facts are waited for.
//
//	out [NAME[+csum][+tcpv4:MSS][*N]]...   the frames that came out since the last time
//	inject NAME [TIMES]                send a frame to the guest
//	drops [REASON=N]...                all packets dropped since the last time
//	counters NAME=N...                 counted since the last time
//	quarantined TEXT|no, error TEXT|no the reason, the error node; a part of it
//	carrier up|down, stalled yes|no, held yes|no
//	served slot|stream|no|TEXT         the control ring, and why it is out of use
//	hashing ALGORITHM TYPES KEY/LENGTH MAPPING, or no
//	steered hash|host                  who chooses the queue
//	static N...                        static grants of each queue
//	grants N, ports N, headroom N, mcast [MAC]..., features [NAME]...
//	reset                              netbackd reset
//
// After the last line the device is closed; no drop may be left that the script did
// not ask about, and no page mapped.
//
// The package knows the protocol, and what the daemon tells about a vif. It must
// not know how the daemon does it, nor which of the Xens it is in.
package ringscript
