// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Rule is a rule that a backend must follow. Its text describes the violation.
type Rule uint8

// The rules. After a violation of a fatal one the ring's state is undefined: Linux's
// netfront disables the device, and the queue here cannot be used until it is connected
// again.
const (
	RuleIndex        Rule = iota // fatal: rsp_prod
	RuleTxID                     // fatal: a tx response without a request
	RuleGrantInUse               // fatal: a response while the page is still mapped
	RuleTxStatus                 // a status that does not exist
	RuleTxNull                   // an extra without a NULL response right after its packet's response
	RuleTxTail                   // a write to the bytes of a slot behind the response
	RuleRxID                     // a response in another slot than its request
	RulePartial                  // a packet published in parts
	RuleRxStatus                 // no bytes in a slot
	RuleRxBounds                 // data beyond the page
	RuleRxFlags                  // invalid flags, or an invalid combination
	RuleRxSlots                  // more slots than a frontend need accept
	RuleRxSG                     // several slots without feature-sg
	RuleRxLength                 // shorter than a header or longer than a frame may be
	RuleExtra                    // an invalid extra
	RuleGSO                      // segmentation that was not asked for, or an invalid one
	RuleCsumBlank                // a blank checksum that is not allowed
	RuleCsum                     // a checksum that is wrong
	RuleOutsideWrite             // bytes written outside of the announced ones
	RuleHash                     // a wrong hash, or a missing one
	RuleHeadroom                 // another headroom than the one asked for
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

// Fatal reports whether the queue cannot be used after a violation of the rule.
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

// violate counts a breach. It describes the first maxViolations.
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

// Broken returns the number of breaches of each broken rule.
func (q *Queue) Broken() map[Rule]uint64 {
	m := make(map[Rule]uint64)
	for r, n := range q.broken {
		if n > 0 {
			m[Rule(r)] = n
		}
	}
	return m
}
