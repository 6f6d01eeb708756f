// SPDX-License-Identifier: Apache-2.0

// Package steer chooses the queue of a multi-queue TAP on which a frame from the
// host is read, by the Toeplitz hash and the mapping table that a guest has
// configured: in the kernel, with an eBPF [Program] that a TAP device is given, and
// in userspace, with its twin [Config.Choose].
//
// It knows what a steering program of the TUN driver sees and how such a program is
// made, loaded and configured. What is hashed, and how, it has from pkg/toeplitz. It
// knows nothing of guests and control messages, and does not touch the TAP.
//
//	program, err := steer.New() // or go without: see Probe
//	err = program.Set(&steer.Config{Types: types, Hasher: hasher, Mapping: mapping})
//	err = device.SetSteering(program.FD())
//
// While a guest has no hashing, better let the device go without a program: then
// the host chooses, and remembers which queue a flow was last written on.
//
// # Program and twin
//
// Both choose the same queue for every frame, which is checked over random
// frames, with test runs and on a TAP. The kernel takes the program's answer modulo
// the number of queues it has (tap.Device.Active), the twin knows of no such thing:
// a mapping is to have no more queues than the device.
//
// The host puts an outermost VLAN tag into the metadata of a packet or leaves it in
// the frame, depending on where the packet comes from. The program looks at both,
// and counts tags as they will be in the frame that is read.
//
// Frames come past the program where the host has no say or was told otherwise: on a
// device with one queue, redirected by XDP (the queue follows the processor), and
// from a tc action skbedit queue_mapping.
//
// # Changes
//
// A change of configuration loses nothing, and each frame is steered wholly by the
// old one or wholly by the new one. The configuration is a map of its own, which is
// complete before the one slot of a map of maps points to it. When [Program.Set]
// returns, the last frame has been steered by the old one.
//
// The order within a flow is kept as long as its queue stays the same. Where a
// change moves a flow, its frames that were steered before may still wait in the
// old queue, while those after are in the new one. Whoever wants to hand them on in
// order reads the old queues, after Set has returned, until they are empty once,
// and only then hands on what moved; c.Choose(frame).Queue with the configuration
// before, c, says whether a frame has. (internal/dataplane does so, in Conn.Resteer.) A
// frame can be later than that only if a queueing discipline of the host held it
// meanwhile.
//
// A device that is given its first program, or goes without from now on, does not
// wait for the frames that it is just steering by what it had before. Set, called
// once more after that, does, with whatever configuration.
//
// # Cost
//
// For most frames the program calls the kernel once, for a copy of the headers; the
// hash is a table look-up per octet, and there are no loops. The table takes 36 KiB of
// kernel memory per Program, twice that during Set.
//
// # What it takes
//
// Linux 5.0, where a change of a map of maps waits for its readers, and CAP_BPF
// (CAP_SYS_ADMIN before 5.8). With CAP_PERFMON as well the kernel leaves out its
// guards against speculation, which makes the program some nanoseconds faster. A
// device takes the program from whoever has it open.
package steer
