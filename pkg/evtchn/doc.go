// SPDX-License-Identifier: Apache-2.0

// Package evtchn sends and receives Xen events through Linux's
// /dev/xen/evtchn.
//
// It knows ports: how they are bound, notified, masked and unmasked. It knows
// nothing of rings or of what an event means.
//
// # The life of an event
//
// An event carries no data and events coalesce. When one arrives on a bound
// port, the kernel masks the port and queues its number for [Device.Pending].
// The port stays masked, and further events on it wait in one pending bit,
// until its number is given to [Device.Unmask]. So:
//
//	n, err := dev.Pending(buf)   // which ports had events
//	...                          // look at what they stand for, do the work
//	err = dev.Unmask(buf[:n])    // hear of them again
//
// An event that arrives during the work is delivered right after Unmask. A
// caller that polls anyway unmasks late, and one that is being flooded unmasks
// later still: nothing else slows a guest's events down.
//
// Events are hints. A port may have one pending from the moment it is bound,
// an event queued before [Device.Unbind] is still delivered after it, and
// ports the caller does not know are to be ignored.
package evtchn
