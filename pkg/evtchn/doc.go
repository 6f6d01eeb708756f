// SPDX-License-Identifier: Apache-2.0

// Package evtchn sends and receives Xen events through Linux's
// /dev/xen/evtchn.
//
// It knows how ports are bound, notified, masked and unmasked. It knows nothing of
// rings or of the meaning of an event.
//
// # The life of an event
//
// An event carries no data and events coalesce. When one arrives on a bound
// port, the kernel masks the port and queues its number for [Device.Pending].
// The port stays masked, and further events on it wait in one pending bit,
// until its number is given to [Device.Unmask]. So:
//
//	n, err := dev.Pending(buf)   // ports that had events
//	...                          // do the work of these ports
//	err = dev.Unmask(buf[:n])    // receive events of them again
//
// An event that arrives during the work is delivered right after Unmask. A caller
// that polls unmasks later, and one that is flooded with events later still: nothing
// else slows down a guest's events.
//
// Events are hints. A port may have one pending as soon as it is bound, an event that
// was queued before [Device.Unbind] is still delivered after it, and unknown ports
// must be ignored.
package evtchn
