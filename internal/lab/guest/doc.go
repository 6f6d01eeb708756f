// SPDX-License-Identifier: Apache-2.0

// Package guest is the agent that plays a guest. It connects vifs by package netfront, and
// virtio devices with a vhost-user back end by package vhostfront, gives each a TAP whose
// host side is the guest's network card, makes traffic and reports. In the embedded Xen, and
// without Xen, it is a process in a network namespace of its own; in a real guest it is a
// program that takes the place of the guest's netfront driver.
//
// [Main] is the agent. It reads commands, one JSON object per line, from its standard
// input, and writes a reply to each on its standard output, in any order:
//
//	{"id":1,"cmd":"attach","args":{"name":"eth0","addrs":["192.0.2.2/24"]}}
//	{"id":1,"result":{"name":"eth0","queues":1,...}}
//	{"id":2,"cmd":"ping","timeout_ns":5000000000,"args":{"addr":"192.0.2.1","count":3}}
//	{"id":2,"result":{"sent":3,"received":3,...}}
//	{"id":3,"cmd":"nonsense"}
//	{"id":3,"error":"no such command: nonsense"}
//
// Its first line is {"id":0,"result":{"pid":...}}. A reply has both a result and an
// error if the command succeeded in part. The end of the input ends the agent without a
// message to the backend, as a crash of the guest would; the command quit disconnects the
// vifs first.
//
// [Client] has a method for each command; [Start] starts an agent:
//
//	g, err := guest.Start(guest.StartOptions{Config: guest.Config{Xen: dir, Domid: 3}})
//	defer g.Close()
//	info, err := g.Attach(ctx, guest.VifConfig{Name: "eth0", Addrs: []string{"192.0.2.2/24"}})
//	r, err := g.Ping(ctx, guest.PingArgs{Addr: "192.0.2.1"})
//
// A guest that has virtio devices only needs no Xen:
//
//	netbackd-lab guest --no-xen --virt '{"mac":"02:00:00:00:00:01","addrs":["192.0.2.2/24"],"front":{"socket":"/run/s"}}'
//
// The package depends on netfront, vhostfront, TAPs and traffic. It must not depend on the backend.
package guest
