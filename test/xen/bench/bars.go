// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"strings"
)

// target has the limits of an item's ratio: what it must not exceed, and what it should reach.
// The bar is 5 % above the goal, or above what was reached if that is more: a run fails when
// netbackd has become slower.
type target struct{ bar, goal float64 }

// barOf returns the limits of a goal; reached is 0 if the goal's own bar was met.
func barOf(goal, reached float64) target {
	return target{math.Round(max(goal, reached)*1.05*1000) / 1000, goal}
}

// goals are those of netbackd's ratios to the kernel's netback.
var goals = map[string]map[string]float64{
	bootInstructions: {
		"tcp guest to dom0":      1.00,
		"tcp dom0 to guest":      1.12,
		"udp 64 guest to dom0":   1.08,
		"udp 1472 guest to dom0": 0.85,
		"udp 64 dom0 to guest":   0.80,
		"udp 1472 dom0 to guest": 0.80,
		"ping":                   1.40,
	},
	bootTime: {
		"tcp guest to dom0":      1.4,
		"tcp dom0 to guest":      1.5,
		"udp 64 guest to dom0":   1.3,
		"udp 1472 guest to dom0": 1.1,
		"udp 64 dom0 to guest":   1.3,
		"udp 1472 dom0 to guest": 1.3,
		"ping":                   1.7,
	},
}

// newerGoals are those with Debian 13 in dom0 and guest, in instructions, where they differ.
var newerGoals = map[string]float64{
	"tcp guest to dom0": 0.85,
	"tcp dom0 to guest": 1.15,
}

const (
	plainGoal  = 1.05 // without io_uring, relative to with it
	staticGoal = 0.75 // static grants, relative to the kernel's netback

	mostPingCalls = 8 // system calls of netbackd for a ping
	plainCalls    = 2 // the further calls of one without io_uring
)

// reached are ratios to the kernel's netback that missed the bar of their goal.
var reached = map[string]map[string]float64{
	bootInstructions: {
		"udp 1472 guest to dom0": 0.92,
		"udp 64 dom0 to guest":   0.85,
		"udp 1472 dom0 to guest": 0.87,
		"64 B guest to dom0":     1.10,
		"64 B dom0 to guest":     1.40,
		"1500 B dom0 to guest":   1.34,
		"64 KiB dom0 to guest":   0.90,
	},
	bootTime: {
		"tcp dom0 to guest":      1.72,
		"udp 1472 guest to dom0": 1.16,
		"udp 64 dom0 to guest":   1.37,
		"udp 1472 dom0 to guest": 1.48,
		"ping":                   2.05,
	},
}

// targetOf returns the limits of an item in a comparison; 0 if it has none.
func targetOf(g group, c *comparison, item string) target {
	switch {
	case strings.Contains(g.Setup, withoutTSO) || strings.Contains(g.Setup, byAddress):
		return target{}
	case c.of == plain && c.to == netbackd && g.Boot == bootInstructions:
		return barOf(plainGoal, 0)
	case c.of == static && c.to == kernelNetback && g.Boot == bootInstructions:
		return barOf(staticGoal, reached[g.Boot][item])
	case (c.of == netbackd || c.of == plain) && c.to == kernelNetback:
		goal := goals[g.Boot][item]
		if newer := newerGoals[item]; g.Dom0 != "" && newer != 0 && g.Boot == bootInstructions {
			goal = newer
		}
		was := reached[g.Boot][item]
		if c.of == plain && g.Boot == bootInstructions {
			was = max(goal, was) * plainGoal
		}
		return barOf(goal, was)
	}
	return target{}
}

// interruptSlack is a difference of interrupts per measurement that means nothing: ticks of the
// clock, and the ends of the work.
const interruptSlack = 3

// countsVerdict returns which limits the counts of a back end break: static grants need no
// grant operation; netbackd maps none after it has connected, takes no more interrupts than the
// kernel's netback on both sides together (kernel is nil without it), and few system calls for a
// ping.
func countsVerdict(c, kernel *counts) string {
	var missed []string
	if c.Backend == static && (c.CopyOps != 0 || c.GrantOps != 0 || c.StaticSlots == 0) {
		missed = append(missed, "grant operations with static grants")
	}
	if c.Backend != kernelNetback && c.Maps != 0 {
		missed = append(missed, "grant maps")
	}
	calls := float64(mostPingCalls)
	if c.Backend == plain {
		calls += plainCalls
	}
	if c.Item == "ping" && (c.Backend == netbackd || c.Backend == plain) && c.SystemCalls > calls*1.05 {
		missed = append(missed, "system calls")
	}
	if kernel != nil && (c.Backend == netbackd || c.Backend == plain) && c.limited() {
		most := (kernel.Dom0Interrupts+kernel.GuestInterrupts)*1.05 + interruptSlack/float64(max(c.Units, 1))
		if c.Dom0Interrupts+c.GuestInterrupts > most {
			missed = append(missed, "interrupts")
		}
	}
	return strings.Join(missed, ", ")
}
