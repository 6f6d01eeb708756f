// SPDX-License-Identifier: Apache-2.0

// Package diskcheck is the user of a guest's disk, in place of a file system: it writes
// patterns, remembers them, and checks every byte that it reads.
//
// A [Model] knows what each sector of a disk may have. Each write gives its sectors a new
// generation, and the 512 bytes of a sector follow from its number, its generation and the
// seed of the model. A write without an answer, or one that failed, may have happened or
// not, for each sector on its own: then the sector may have any of several generations until
// it is read or written again. A discarded sector may be zero or have what it had.
//
// A [Runner] puts load on one queue of a frontend: reads, writes, flushes, barriers and
// discards of random sizes at random or ascending places in a part of the disk that is its
// own. It checks all that it reads, and measures.
//
//	m := diskcheck.NewModel(sectors, seed)
//	r := diskcheck.NewRunner(m, 0, sectors)
//	res, err := r.Run(ctx, queue, diskcheck.Load{Requests: 1000, Depth: 8, MaxSegments: 64, Reads: 50})
//	err = r.Scan(ctx, queue)
//
// If the queue ends with requests that have no answer, as when a guest resumes, the runner is
// told so with [Runner.Abandon]. A daemon that is killed needs nothing of the sort: its
// successor answers.
package diskcheck
