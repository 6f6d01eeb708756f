// SPDX-License-Identifier: Apache-2.0

package diskcheck

import (
	"math"
	"math/bits"
	"time"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
)

// Load describes requests. Shares are in percent of all requests; the rest are writes.
type Load struct {
	// Requests ends the load after a number of requests, Duration after a time; with
	// neither it goes on until its context ends.
	Requests int           `json:"requests,omitempty"`
	Duration time.Duration `json:"duration_ns,omitempty"`

	// Rate bounds the requests per second; 0: no bound. Those that are late are made up for.
	Rate float64 `json:"rate,omitempty"`

	Depth       int `json:"depth,omitempty"`        // requests without an answer, 0: 1
	MinSegments int `json:"min_segments,omitempty"` // of a request, 0: 1
	MaxSegments int `json:"max_segments,omitempty"` // 0: as MinSegments

	Reads    int `json:"reads,omitempty"`
	Flushes  int `json:"flushes,omitempty"`
	Barriers int `json:"barriers,omitempty"` // writes with a barrier, some of them empty
	Discards int `json:"discards,omitempty"`

	// Sequential takes places in ascending order instead of random ones.
	Sequential bool `json:"sequential,omitempty"`
	// Parts uses random parts of pages instead of whole ones.
	Parts bool `json:"parts,omitempty"`
	// Direct never uses indirect requests.
	Direct bool `json:"direct,omitempty"`
	// Once goes from the first sector to the last in ascending order and ends there.
	Once bool `json:"once,omitempty"`
	// Unchecked neither makes patterns nor checks them, to measure the backend alone. The
	// model is not true any more after its writes.
	Unchecked bool `json:"unchecked,omitempty"`
	// Refused lets writes fail, as on a disk that is full.
	Refused bool `json:"refused,omitempty"`

	Seed uint64 `json:"seed,omitempty"` // of the choices
}

// Result says what a load did.
type Result struct {
	Requests uint64         `json:"requests"`
	Errors   uint64         `json:"errors"` // of requests that may fail
	Bytes    uint64         `json:"bytes"`
	Took     time.Duration  `json:"took_ns"`
	Stats    blkfront.Stats `json:"stats"`
	Latency  Histogram      `json:"latency"`
	// Unanswered is the number of requests left when the context ended.
	Unanswered int `json:"unanswered,omitempty"`
}

// Add adds the result of a load that ran at the same time.
func (r *Result) Add(o Result) {
	r.Requests += o.Requests
	r.Errors += o.Errors
	r.Bytes += o.Bytes
	r.Took = max(r.Took, o.Took)
	r.Stats.Add(o.Stats)
	r.Latency.Add(o.Latency)
	r.Unanswered += o.Unanswered
}

// Rate returns requests per second.
func (r *Result) Rate() float64 { return float64(r.Requests) / r.Took.Seconds() }

// MiB returns mebibytes per second.
func (r *Result) MiB() float64 { return float64(r.Bytes) / (1 << 20) / r.Took.Seconds() }

// Histogram counts latencies, by eighths of powers of two of a microsecond.
type Histogram []uint32

const eighths = 8

func (h *Histogram) count(d time.Duration) {
	us := uint64(max(d.Microseconds(), 1))
	top := bits.Len64(us) - 1
	i := top*eighths + int((us<<3>>top)&(eighths-1))
	for len(*h) <= i {
		*h = append(*h, 0)
	}
	(*h)[i]++
}

// Add adds the latencies of another one.
func (h *Histogram) Add(o Histogram) {
	for len(*h) < len(o) {
		*h = append(*h, 0)
	}
	for i, n := range o {
		(*h)[i] += n
	}
}

// Quantile returns a latency that the part q of all requests did not exceed, 12 % too large
// at most.
func (h Histogram) Quantile(q float64) time.Duration {
	all := uint64(0)
	for _, n := range h {
		all += uint64(n)
	}
	left := int64(math.Ceil(q * float64(all)))
	for i, n := range h {
		if left -= int64(n); left <= 0 {
			us := math.Ldexp(1+float64(i%eighths+1)/eighths, i/eighths)
			return time.Duration(us * float64(time.Microsecond))
		}
	}
	return 0
}
