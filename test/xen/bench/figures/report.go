// SPDX-License-Identifier: Apache-2.0

package main

// report is the part of a report that is drawn. Reports of older versions have fewer fields.
type report struct {
	Rows    []row     `json:"rows"`
	RTT     []row     `json:"ping_rtt_ns"`
	Counts  []counts  `json:"counts"`
	Latency []latency `json:"latency"`
}

// key has what rows of a report are found by.
type key struct {
	Boot  string `json:"boot"`
	Dom0  string `json:"dom0_kernel"`
	Setup string `json:"setup"`
	Item  string `json:"item"`
}

// row is a comparison of two back ends.
type row struct {
	key
	Of      string `json:"of"`
	To      string `json:"to"`
	Machine struct {
		To    side    `json:"to"`
		Of    side    `json:"of"`
		Ratio float64 `json:"ratio"`
	} `json:"machine"`
	Void bool    `json:"void"`
	Bar  float64 `json:"bar"`
	Goal float64 `json:"goal"`
}

type side struct {
	Phases []float64 `json:"phases"`
	Value  float64   `json:"value"`
	Spread float64   `json:"spread"` // difference of the phases
}

// counts has the operations of a back end per unit.
type counts struct {
	key
	Backend         string  `json:"backend"`
	Hypercalls      float64 `json:"hypercalls"`
	CopyCalls       float64 `json:"grant_copy_calls"`
	Maps            float64 `json:"grant_map_ops"`
	Dom0Interrupts  float64 `json:"dom0_interrupts"`
	GuestInterrupts float64 `json:"guest_interrupts"`
	SystemCalls     float64 `json:"netbackd_system_calls"`
	GrantOps        float64 `json:"netbackd_grant_ops"`
	OwnOps          float64 `json:"netbackd_own_grant_ops"`
}

// latency has the percentiles of a back end's round trips.
type latency struct {
	key
	Backend string     `json:"backend"`
	NS      [3]float64 `json:"p50_p90_p99_ns"`
	Ratio   [3]float64 `json:"ratio"`
}

// Labels of test/xen/bench.
const (
	instructions = "instructions"
	inTime       = "time"
	kernel       = "kernel"
	netbackd     = "netbackd"
	plain        = "plain"
	static       = "static"
	copying      = "copy"
)

var networkItems = []string{
	"tcp guest to dom0", "tcp dom0 to guest", "tcp without TSO guest to dom0",
	"udp 64 guest to dom0", "udp 1472 guest to dom0", "udp 64 dom0 to guest", "udp 1472 dom0 to guest",
	"ping",
}

var frameItems = []string{
	"64 B guest to dom0", "1500 B guest to dom0", "64 KiB guest to dom0",
	"64 B dom0 to guest", "1500 B dom0 to guest", "64 KiB dom0 to guest",
}

// row returns the comparison of two back ends, or nil.
func (r *report) row(k key, of, to string) *row {
	for i := range r.Rows {
		if n := &r.Rows[i]; n.key == k && n.Of == of && n.To == to {
			return n
		}
	}
	return nil
}

// counts returns the counts of a back end, or nil.
func (r *report) counts(k key, backend string) *counts {
	for i := range r.Counts {
		if n := &r.Counts[i]; n.key == k && n.Backend == backend {
			return n
		}
	}
	return nil
}

// latency returns the round trips of a back end, or nil.
func (r *report) latency(k key, backend string) *latency {
	for i := range r.Latency {
		if n := &r.Latency[i]; n.key == k && n.Backend == backend {
			return n
		}
	}
	return nil
}
