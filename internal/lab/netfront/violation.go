// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Rule is something a backend must hold to. Its text says what was broken.
type Rule uint8

// The rules. A fatal one leaves the ring without meaning: Linux's netfront
// disables the device, and the queue here is of no use until it is connected anew.
const (
	RuleIndex        Rule = iota // fatal: rsp_prod
	RuleTxID                     // fatal: a tx response without a request
	RuleGrantInUse               // fatal: a response while the page is still mapped
	RuleTxStatus                 // a status that does not exist
	RuleTxNull                   // extras not answered by NULL, at once and each
	RuleTxTail                   // bytes of a slot that no response has
	RuleRxID                     // a response in another slot than its request
	RulePartial                  // a packet published in parts
	RuleRxStatus                 // no bytes in a slot
	RuleRxBounds                 // data beyond the page
	RuleRxFlags                  // flags that may not be, or not together
	RuleRxSlots                  // more slots than a frontend need accept
	RuleRxSG                     // several slots without feature-sg
	RuleRxLength                 // shorter than a header or longer than a frame may be
	RuleExtra                    // an extra that may not be
	RuleGSO                      // segmentation that was not asked for or makes no sense
	RuleCsumBlank                // a blank checksum where none may be
	RuleCsum                     // a checksum that is wrong
	RuleOutsideWrite             // bytes written outside of the announced ones
	RuleHash                     // a hash that is not the packet's, or none
	RuleHeadroom                 // not the room before a packet that was asked for
	numRules
)

var ruleNames = [numRules]string{
	"rsp_prod out of bounds",
	"tx response to no request",
	"tx response before the grant was let go",
	"unknown tx status",
	"extras not answered by NULL",
	"tx slot written beyond the response",
	"rx response out of order",
	"packet published in parts",
	"empty rx slot",
	"rx data beyond its page",
	"rx flags",
	"too many rx slots",
	"several rx slots without feature-sg",
	"rx frame length",
	"rx extra",
	"rx segmentation offload",
	"blank checksum not asked for",
	"wrong checksum",
	"rx page written outside of the data",
	"rx hash",
	"rx headroom",
}

func (r Rule) String() string {
	if r < numRules {
		return ruleNames[r]
	}
	return fmt.Sprintf("unknown(%d)", uint8(r))
}

// Fatal reports whether the queue cannot go on.
func (r Rule) Fatal() bool { return r <= RuleGrantInUse }

// Violation is a backend's breach of a rule.
type Violation struct {
	Rule   Rule
	Queue  int
	Ring   string // "tx" or "rx"
	Index  netif.Index
	Detail string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("queue %d, %s slot %d: %v: %s", v.Queue, v.Ring, v.Index, v.Rule, v.Detail)
}

// maxViolations is the number of violations that a queue describes. It counts all.
const maxViolations = 32

// violate counts a breach and describes the first ones.
func (q *Queue) violate(rule Rule, ring string, i netif.Index, format string, args ...any) {
	q.broken[rule]++
	q.stats.Violations++
	v := &Violation{Rule: rule, Queue: q.index, Ring: ring, Index: i}
	if len(q.violations) < maxViolations || rule.Fatal() {
		v.Detail = fmt.Sprintf(format, args...)
		q.violations = append(q.violations, v)
	}
	if rule.Fatal() && q.dead == nil {
		q.dead = v
	}
}

// Violations returns the first breaches the backend committed on this queue;
// Stats.Violations is the number of all.
func (q *Queue) Violations() []*Violation {
	return append([]*Violation(nil), q.violations...)
}

// Broken counts the breaches of each rule that was broken.
func (q *Queue) Broken() map[Rule]uint64 {
	m := make(map[Rule]uint64)
	for r, n := range q.broken {
		if n > 0 {
			m[Rule(r)] = n
		}
	}
	return m
}
