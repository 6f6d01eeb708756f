// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"fmt"
	"slices"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// Rule is a rule that a backend must follow. Its text describes the violation.
type Rule uint8

// The rules. After a violation of a fatal one Linux's blkfront disables the disk, and the
// queue here cannot be used until it is connected again.
const (
	RuleIndex      Rule = iota // fatal: rsp_prod
	RuleID                     // fatal: a response to no request, or a second one
	RuleOp                     // fatal: another operation than that of the request
	RuleStatus                 // a status that does not exist
	RuleLeak                   // a byte in a slot that is neither the response nor the request
	RuleGrantInUse             // a response while a page is still in use
	numRules
)

var ruleNames = [numRules]string{
	"rsp_prod out of bounds",
	"response to no request",
	"response has wrong operation",
	"unknown status",
	"slot has bytes of something else",
	"response before the page was let go",
}

func (r Rule) String() string {
	if r < numRules {
		return ruleNames[r]
	}
	return fmt.Sprintf("unknown(%d)", uint8(r))
}

// Fatal reports whether the queue cannot be used after a violation of the rule.
func (r Rule) Fatal() bool { return r <= RuleOp }

// Violation is a backend's breach of a rule.
type Violation struct {
	Rule   Rule
	Queue  int
	Index  blkif.Index // of the response
	Detail string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("queue %d, slot %d: %v: %s", v.Queue, v.Index, v.Rule, v.Detail)
}

// maxViolations is the number of violations that a queue describes. It counts all.
const maxViolations = 32

// violate counts a breach. It describes the first maxViolations.
func (q *Queue) violate(rule Rule, i blkif.Index, format string, args ...any) {
	q.stats.Violations++
	v := &Violation{Rule: rule, Queue: q.index, Index: i}
	if len(q.violations) < maxViolations || rule.Fatal() {
		v.Detail = fmt.Sprintf(format, args...)
		q.violations = append(q.violations, v)
	}
	if rule.Fatal() && q.dead == nil {
		q.dead = v
	}
}

// Violations returns the first breaches that the backend committed on this queue;
// Stats.Violations is the number of all.
func (q *Queue) Violations() []*Violation { return slices.Clone(q.violations) }
