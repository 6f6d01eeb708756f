// SPDX-License-Identifier: Apache-2.0

// Package vmagent is the only program of a guest under QEMU: its first process, which loads
// the modules of virtio-net, configures the interface and obeys commands on a serial port.
//
// A command is a line of JSON, a Request, and so is the Answer. The agent first sends an
// Answer by itself, with its State: the guest is up. It serves TCP streams and UDP packets
// of package traffic at Port from then on.
package vmagent

import (
	"time"

	"github.com/netbackd/netbackd/internal/lab/traffic"
)

// Port is where the guest serves streams and packets.
const Port = 7000

// Device is the serial port of the agent in a guest, whose console is the first one.
const Device = "/dev/ttyS1"

// Request is a command to the agent.
type Request struct {
	Do string `json:"do"` // state, ping, tcp, udp, reboot
	// Addr is the target of ping, tcp and udp.
	Addr string              `json:"addr,omitempty"`
	Ping traffic.PingOptions `json:"ping"`
	TCP  traffic.TCPSend     `json:"tcp"`
	UDP  traffic.UDPSend     `json:"udp"`
	// Limit bounds the command.
	Limit time.Duration `json:"limit_ns"`
}

// Answer is the result of a command.
type Answer struct {
	Err   string             `json:"err,omitempty"`
	State *State             `json:"state,omitempty"`
	Ping  traffic.PingResult `json:"ping"`
	TCP   traffic.TCPResult  `json:"tcp"`
	UDP   traffic.UDPResult  `json:"udp"`
}

// State describes the guest's interface as the guest sees it.
type State struct {
	Boot     string `json:"boot"` // differs with each boot
	Kernel   string `json:"kernel"`
	MTU      int    `json:"mtu"`
	Queues   int    `json:"queues"`   // pairs in use
	Features string `json:"features"` // of virtio, one digit a bit from bit 0 on
	// Counters of the interface.
	RxPackets uint64 `json:"rx_packets"`
	TxPackets uint64 `json:"tx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxBytes   uint64 `json:"tx_bytes"`
}
