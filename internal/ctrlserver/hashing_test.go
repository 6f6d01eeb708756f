// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"errors"
	"slices"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// hashModel models the hash messages as netif.h describes them.
type hashModel struct {
	algorithm, types uint32
	key              []byte
	table            []uint32
	queues           uint32
}

func (m *hashModel) do(typ byte, a, b uint32, list []uint32, key []byte) netif.CtrlStatus {
	switch typ % 6 {
	case 0:
		if a > 1 {
			return netif.CtrlInvalidParameter
		}
		m.algorithm = a
	case 1:
		if m.algorithm == 0 || a > 15 {
			return netif.CtrlInvalidParameter
		}
		m.types = a
	case 2:
		if len(key) > 40 {
			return netif.CtrlBufferOverflow
		}
		m.key = slices.Clone(key)
	case 3:
		if a > 128 {
			return netif.CtrlInvalidParameter
		}
		m.table = make([]uint32, a)
	case 4:
		if uint64(b)+uint64(len(list)) > uint64(len(m.table)) {
			return netif.CtrlInvalidParameter
		}
		fallthrough
	default:
		for _, q := range list {
			if q >= m.queues {
				return netif.CtrlInvalidParameter
			}
		}
		if typ%6 == 4 {
			m.table = slices.Clone(m.table)
			copy(m.table[b:], list)
			break
		}
		if len(list) > 128 {
			return netif.CtrlInvalidParameter
		}
		m.table = slices.Clone(list)
	}
	return netif.CtrlSuccess
}

// FuzzHashMessages passes messages of any content to the handler and compares the
// settings with the model. The data path refuses some of them.
func FuzzHashMessages(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 1, 15, 0, 0, 3, 8, 0, 0, 4, 2, 3, 2}, uint8(4))
	f.Add([]byte{0, 1, 0, 0, 4, 0, 255, 1, 5, 1, 2, 3, 2, 40, 1, 41}, uint8(1))
	fuzzloop.Fuzz(f, func(t *testing.T, in []byte, queues uint8) {
		m := hashModel{queues: max(uint32(queues), 1)}
		refuse := false
		h := newHashHandler(int(m.queues))
		h.install = func(_, _ *hashing) error {
			if refuse {
				return errors.New("refused")
			}
			return nil
		}
		for ; len(in) >= 4; in = in[4:] {
			typ, a, b, n := in[0], uint32(in[1]), uint32(in[2]), int(in[3])
			if b == 255 {
				b = 1<<32 - 1
			}
			var list []uint32
			for i := range n {
				list = append(list, (a+uint32(i))%(m.queues+1))
			}
			key := slices.Repeat([]byte{byte(a)}, n%50)
			refuse = typ >= 128
			before := m
			want := m.do(typ, a, b, list, key)
			if refuse {
				m = before
				if want == netif.CtrlSuccess {
					want = netif.CtrlInvalidParameter
				}
			}
			var got netif.CtrlStatus
			switch typ % 6 {
			case 0:
				got = h.SetHashAlgorithm(a)
			case 1:
				got = h.SetHashFlags(a)
			case 2:
				got = h.SetHashKey(key)
			case 3:
				got = h.SetHashMappingSize(a)
			case 4:
				got = h.SetHashMapping(b, list)
			default:
				got = h.ReplaceHashMapping(list)
			}
			if got != want {
				t.Fatalf("message %d of %d, %d: %v, want %v", typ%6, a, b, got, want)
			}
			var table []uint32
			for _, q := range h.now.config.Mapping.Table() {
				table = append(table, uint32(q))
			}
			if h.now.algorithm != m.algorithm || uint32(h.now.config.Types) != m.types || !slices.Equal(h.now.key, m.key) || !slices.Equal(table, m.table) {
				t.Fatalf("after message %d in force: %+v, want %+v", typ%6, h.now, m)
			}
			if p := h.now.packetHash(ctrlring.Slot); (p != nil) != (m.algorithm == 1 && m.types != 0) {
				t.Fatalf("packets carry %v", p)
			}
			if h.now.packetHash(ctrlring.Stream) != nil {
				t.Fatal("packets carry hashes to a frontend of a byte-stream ring")
			}
			if hasher, err := toeplitz.New(m.key); err != nil || h.now.config.Hasher.Key() != hasher.Key() {
				t.Fatalf("key %x is hashed with as %x", m.key, h.now.config.Hasher.Key())
			}
		}
	})
}

// TestHashQuestions: what a frontend asks about hashing has these answers.
func TestHashQuestions(t *testing.T) {
	h := newHashHandler(4)
	if _, status := h.GetHashFlags(); status != netif.CtrlNotSupported {
		t.Errorf("flags without an algorithm: %v", status)
	}
	if status := h.SetHashAlgorithm(netif.HashAlgorithmToeplitz); status != netif.CtrlSuccess {
		t.Fatal(status)
	}
	if flags, status := h.GetHashFlags(); status != netif.CtrlSuccess || flags != 15 {
		t.Errorf("flags %#x: %v", flags, status)
	}
	if n, status := h.GetHashMappingSize(); status != netif.CtrlSuccess || n != 128 {
		t.Errorf("mapping of %d entries: %v", n, status)
	}
}
