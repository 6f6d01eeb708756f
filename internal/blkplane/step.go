// SPDX-License-Identifier: Apache-2.0

package blkplane

import "slices"

// step is a moment of a queue's work at which a test may end the queue or the process: after
// each store of the journal or the ring, and around an operation of the disk.
type step uint8

const (
	stepSlot    step = iota // slot and index of an entry
	stepState               // an entry is in flight
	stepCons                // req_cons of the journal
	stepSubmit              // an operation of the disk is about to be queued
	stepDone                // an operation of the disk has ended, and nothing knows it yet
	stepOpen                // responses are being changed
	stepRsp                 // a response
	stepRecord              // responses are valid
	stepPublish             // slots and rsp_prod of the ring
	stepFree                // an entry is free
	stepNotify              // the guest was notified
	numSteps
)

var stepNames = [numSteps]string{"slot", "state", "cons", "submit", "done", "open", "rsp", "record", "publish", "free", "notify"}

func (s step) String() string { return stepNames[s] }

// Steps returns the names that [Options.AtStep] is called with.
func Steps() []string { return slices.Clone(stepNames[:]) }

// at calls the hook of a test.
func (j *Journal) at(s step) {
	if j.hook != nil {
		j.hook(s)
	}
}
