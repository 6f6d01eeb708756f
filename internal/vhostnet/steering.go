// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// steering steers the host's packets over the pairs in use by the Toeplitz hash of their
// flow, with a key of the host. No message of vhost-user brings the guest's. It belongs to the
// link, whose lock guards it. A nil steering leaves the choice to the host's kernel.
type steering struct {
	kernel *steer.Kernel
	hasher *toeplitz.Hasher
	pairs  int // that packets are steered over; 0: none yet
}

// ParseHashKey parses a key: up to 80 hexadecimal digits, or "random" for a key of this
// process. An empty text has no key.
func ParseHashKey(text string) ([]byte, error) {
	if text == "random" {
		key := make([]byte, toeplitz.MaxKey)
		_, err := rand.Read(key)
		return key, err
	}
	key, err := hex.DecodeString(text)
	if err != nil || len(key) > toeplitz.MaxKey {
		return nil, fmt.Errorf("%q is no key: want \"random\", or up to %d hexadecimal digits in pairs", text, 2*toeplitz.MaxKey)
	}
	return key, nil
}

// newSteering returns a steering with a key, or nil if there is none. attach gives the TAP a
// program, see tap.Device.SetSteering. It fails if the kernel accepts no steering programs.
func newSteering(key []byte, attach func(program int) error) (*steering, error) {
	if len(key) == 0 {
		return nil, nil
	}
	hasher, err := toeplitz.New(key)
	if err == nil {
		err = steer.Probe()
	}
	if err != nil {
		return nil, fmt.Errorf("steer by a hash key: %w", err)
	}
	return &steering{kernel: steer.NewKernel(attach), hasher: hasher}, nil
}

// follow steers packets over the first n pairs. With fewer than two the kernel does not ask.
func (s *steering) follow(n int) error {
	if s == nil || n < 2 || n == s.pairs {
		return nil
	}
	m := toeplitz.NewMapping(n)
	table := make([]uint32, toeplitz.MaxMapping)
	for i := range table {
		table[i] = uint32(i % n)
	}
	err := errors.Join(m.SetSize(toeplitz.MaxMapping), m.Set(0, table))
	if err == nil {
		err = s.kernel.Set(&steer.Config{Types: toeplitz.AllTypes, Hasher: s.hasher, Mapping: m})
	}
	if err == nil {
		s.pairs = n
	}
	return err
}

// close takes the program off the TAP, which may be the administrator's.
func (s *steering) close() error {
	if s == nil {
		return nil
	}
	err := s.kernel.Set(nil)
	if errors.Is(err, tap.ErrGone) {
		err = nil
	}
	return errors.Join(err, s.kernel.Close())
}

// by says how the queue of a packet is chosen.
func (s *steering) by() string {
	if s == nil {
		return "host"
	}
	return "hash, in the kernel"
}
