// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// steerBed is a data path and a TAP that record their calls.
type steerBed struct {
	said []string
	fail error // of the next call of the TAP
}

// name names a configuration by its first entry.
func (b *steerBed) name(c *steer.Config) string {
	if c == nil {
		return "host"
	}
	return fmt.Sprint("queue ", c.Mapping.Queue(0))
}

func (b *steerBed) SetSteering(c *steer.Config) error {
	b.said = append(b.said, "hand over: "+b.name(c))
	return b.fail
}

func (b *steerBed) Resteer(from, to *steer.Config, change func() error) error {
	b.said = append(b.said, b.name(from)+" to "+b.name(to))
	return change()
}

func (b *steerBed) set(program int) error {
	if program >= 0 {
		program = 1
	}
	b.said = append(b.said, fmt.Sprint("tap ", program))
	return b.fail
}

// to returns a hashing that steers all packets to one queue.
func to(t *testing.T, queue uint32) *hashing {
	t.Helper()
	m := toeplitz.NewMapping(4)
	if err := errors.Join(m.SetSize(1), m.Set(0, []uint32{queue})); err != nil {
		t.Fatal(err)
	}
	return &hashing{algorithm: netif.HashAlgorithmToeplitz, config: steer.Config{Types: 1, Mapping: m}}
}

// TestSteeringFollows: the TAP gets the program when hashing is turned on and loses it
// when hashing is turned off. The data path gets the configuration that steered packets
// until then. A failure changes nothing.
func TestSteeringFollows(t *testing.T) {
	off := &hashing{config: steer.Config{Mapping: toeplitz.NewMapping(4)}}
	refused := errors.New("refused")
	type step struct {
		what string
		h    *hashing
		fail error
		said []string
		by   string
	}
	for _, tt := range []struct {
		name  string
		user  error
		steps []step
	}{
		{"in the kernel", nil, []step{
			{"nothing is asked for", off, nil, nil, "host"},
			{"the TAP takes no program", to(t, 1), refused, []string{"host to queue 1", "tap 1"}, "host"},
			{"on", to(t, 1), nil, []string{"host to queue 1", "tap 1"}, "hash, in the kernel"},
			{"the same", to(t, 1), nil, nil, "hash, in the kernel"},
			{"another table", to(t, 2), refused, []string{"queue 1 to queue 2"}, "hash, in the kernel"},
			{"the TAP does not give it back", off, refused, []string{"queue 2 to host", "tap -1"}, "hash, in the kernel"},
			{"what there was", to(t, 2), nil, nil, "hash, in the kernel"},
			{"off", off, nil, []string{"queue 2 to host", "tap -1"}, "host"},
			{"off again", off, nil, nil, "host"},
		}},
		{"in netbackd", errors.New("no program"), []step{
			{"nothing is asked for", off, nil, nil, "host"},
			{"refused", to(t, 1), refused, []string{"hand over: queue 1"}, "host"},
			{"on", to(t, 1), nil, []string{"hand over: queue 1"}, "hash, in netbackd: no program"},
			{"the same", to(t, 1), nil, nil, "hash, in netbackd: no program"},
			{"off", off, nil, []string{"hand over: host"}, "host"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := steer.Probe(); err != nil && tt.user == nil {
				t.Skip(err)
			}
			b := new(steerBed)
			s := steering{conn: b, userspace: tt.user}
			if tt.user == nil {
				s.kernel = steer.NewKernel(b.set)
			}
			defer s.close()
			for _, step := range tt.steps {
				b.said, b.fail = nil, step.fail
				err := s.follow(step.h)
				// The TAP is not called for another table.
				if failed := step.fail != nil && step.what != "another table"; failed != (err != nil) {
					t.Errorf("%s: %v", step.what, err)
				}
				if diff := cmp.Diff(step.said, b.said); diff != "" {
					t.Errorf("%s (-want +got):\n%s", step.what, diff)
				}
				if got := s.by(); got != step.by {
					t.Errorf("%s: queues are chosen by %q, want %q", step.what, got, step.by)
				}
			}
		})
	}
	one := steering{}
	if err := one.follow(to(t, 0)); err != nil || one.by() != "host" {
		t.Errorf("with one queue: %v, %s", err, one.by())
	}
}
