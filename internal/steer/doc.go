// SPDX-License-Identifier: Apache-2.0

// Package steer chooses the queue of a multi-queue TAP for a frame from the host, by the
// Toeplitz hash and the mapping table of the guest: in the kernel, with an eBPF
// [Program] for the TAP device, or in userspace, with [Config.Choose].
//
// It knows the context of a TUN steering program, and how to assemble, load and
// configure one. Hashing follows pkg/toeplitz. The package must not know guests or
// control messages, and does not use the TAP.
//
//	program, err := steer.New() // or go without: see Probe
//	err = program.Set(&steer.Config{Types: types, Hasher: hasher, Mapping: mapping})
//	err = device.SetSteering(program.FD())
//
// While a guest has no hashing, a device should have no program: then the host chooses
// the queue that a flow was last written on.
//
// # Program and Choose
//
// Both choose the same queue for every frame. Tests check this with random frames, with
// test runs of the program and on a TAP. The kernel takes the program's result modulo
// the number of active queues (tap.Device.Active); Choose does not know this number, so
// a mapping must not have more queues than the device.
//
// The host keeps an outermost VLAN tag in the metadata of a packet or in the frame,
// depending on the packet's origin. The program looks at both, and counts tags as they
// will be in the frame that is read.
//
// Some frames do not pass the program: on a device with one queue, redirected by XDP
// (the queue is the processor's), and from a tc action skbedit queue_mapping.
//
// # Changes
//
// A change of configuration loses no frame, and each frame is steered entirely by the old
// or by the new one. A configuration is a map of its own, which is complete before the
// only slot of a map of maps refers to it. When [Program.Set] returns, the last frame has
// been steered by the old one.
//
// The order within a flow is kept as long as its queue stays the same. If a change moves
// a flow, frames from before it may still wait in the old queue, while those after it are
// in the new one. To keep the order, a reader reads the old queues after Set until each
// was found empty once, and sets aside frames that moved until then; for the previous
// configuration c, c.Choose(frame).Queue tells which have. (Conn.Resteer in
// internal/dataplane does so.) A frame can be later than that only if a queueing
// discipline of the host delayed it.
//
// A device that gets its first program, or loses its program, does not wait for frames
// that are being steered the old way. Another Set after that does wait, with any
// configuration.
//
// # Cost
//
// For most frames the program makes one call of the kernel, to copy the headers; the hash
// is one table look-up per byte, without loops. The table takes 36 KiB of kernel memory
// per Program, twice that during Set.
//
// # Requirements
//
// Linux 5.0, where a change of a map of maps waits for its readers, and CAP_BPF
// (CAP_SYS_ADMIN before 5.8). With CAP_PERFMON the kernel leaves out its guards against
// speculation, which makes the program some nanoseconds faster. A device accepts the
// program from any process that has it open.
//
// The program is assembled in Go, and not compiled from C, so that a build needs no
// clang and no generated file.
package steer
