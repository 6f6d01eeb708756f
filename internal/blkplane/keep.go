// SPDX-License-Identifier: Apache-2.0

package blkplane

import "runtime"

// run runs the work of a queue on a thread of its own.
func (p *Pool) run(work func()) {
	if !p.opts.KeepThreads {
		go work()
		return
	}
	select {
	case p.idle <- work:
	default:
		go p.keep(work)
	}
}

// keep runs the work of queues, one after the other, on the same thread, which ends in
// tests only: a ring
// that was reserved before the process was confined belongs to its thread, and there can be no
// other one.
func (p *Pool) keep(work func()) {
	runtime.LockOSThread()
	for ok := true; ok; work, ok = <-p.idle {
		work()
	}
}
