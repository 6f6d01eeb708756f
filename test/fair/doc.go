// SPDX-License-Identifier: Apache-2.0

// Package fair measures what an innocent guest keeps beside a hostile one: netbackd on the
// embedded Xen, with real TAPs, a bridge and network namespaces. The programs are built
// without the race detector.
//
// # Guests
//
// The quiet guest is a Linux-like guest with one queue. It sends TCP streams to the host and
// pings it. Another one reconnects, and is detached and attached again. The hostile guest is
// a process of package hostile with one load, on as many queues as netbackd allows; loads on
// xenstore are of twelve guests. netbackd has one worker, which all of them share.
//
// # Fair share
//
// All processes share the processors of the machine: the daemon, the embedded Xen, the guests
// and the host's servers. A guest that is busy takes processors from the quiet guest, even
// if netbackd is fair. So the fair share of the quiet guest is its throughput in the same run
// beside an honest peer: a guest of one queue, played by the same program, that sends packets
// of 1514 bytes to the host as fast as they are taken. The peer takes as many processors as
// the hostile guest, and half of the worker. (Where packets go to many ports, those of the
// peer do so as well; where the host floods the hostile guest, it floods the peer.)
//
// In the runs of disks each guest, the daemon and the embedded Xen have a session of their own,
// by which the kernel divides the processors, and the embedded Xen comes first.
//
// # Bars
//
// Beside each load at full strength the quiet guest has 80 % of its fair share. With
// processors to spare, when it sends at a quarter of the speed that it has alone and the load
// is at a quarter of its full strength, it keeps 90 % of its speed. The 99th percentile of its
// pings is at most twice that of alone, and 1 ms. To reconnect, to be detached and netbackd
// show take one second at most. 16 hostile guests with 8 queues each never starve the
// watchdog.
//
// Streams are short, and those alone, beside the peer and beside the load follow each other
// again and again, so that other work on the machine is in all of them. Figures are medians of
// the ratios of neighbours; a time is the median of five rounds.
//
// # Strength
//
// A load that is weaker than that of a real guest proves nothing. The table has its strength:
// what it sent per second, the slots that were answered, how often it looked at a ring and
// found it empty (then it was the weaker side), and the processors that its process used.
//
// TestLoads, TestDisks and TestWatchdog are the long run: see run. The tests of the short run
// do not depend on how busy the machine is: two guests ask for more than there is, one of them
// in many places, and each has to get about the same.
package fair
