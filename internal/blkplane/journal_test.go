// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// enterAll makes a journal with requests in flight at these indices, by entry.
func enterAll(n uint32, cons blkif.Index, indices ...blkif.Index) *Journal {
	j := newJournal(n)
	j.begin(&ringKeys{proto: blkif.X8664, port: 1, refs: []xen.Gref{8}}, xen.NewStamp(), 0)
	for e, i := range indices {
		j.enter(uint16(e), i)
	}
	j.consumed(cons)
	return j
}

// TestExamine: a successor finds the requests in flight in ring order, from any entries
// and across the wrap of indices, and refuses a journal that contradicts its ring.
func TestExamine(t *testing.T) {
	const last = blkif.Index(1<<32 - 1)
	for name, c := range map[string]struct {
		journal *Journal
		rspProd blkif.Index
		record  []answer
		base    blkif.Index
		want    []uint16
		replay  int
		err     error
	}{
		"nothing":        {journal: enterAll(32, 5), rspProd: 5},
		"in order":       {journal: enterAll(32, 7, 5, 6), rspProd: 5, want: []uint16{0, 1}},
		"out of order":   {journal: enterAll(32, 9, 8, 5, 7, 6), rspProd: 5, want: []uint16{1, 3, 2, 0}},
		"over the wrap":  {journal: enterAll(32, 2, 1, last, 0), rspProd: last, want: []uint16{1, 2, 0}},
		"not consumed":   {journal: enterAll(32, 6, 5, 6), rspProd: 5, want: []uint16{0}},
		"long in flight": {journal: enterAll(32, 100, 99, 5), rspProd: 98, want: []uint16{1, 0}},
		"unpublished":    {journal: enterAll(32, 7, 5, 6), rspProd: 5, base: 5, record: []answer{{index: 6}}, want: []uint16{0}, replay: 1},
		"published":      {journal: enterAll(32, 7, 5, 6), rspProd: 6, base: 5, record: []answer{{index: 6}}, want: []uint16{0}},
		"too few":        {journal: enterAll(32, 7, 5), rspProd: 5, err: ErrJournal},
		"too many":       {journal: enterAll(32, 7, 5, 6), rspProd: 6, err: ErrJournal},
		"twice":          {journal: enterAll(32, 7, 5, 5), rspProd: 5, err: ErrJournal},
		"answered":       {journal: enterAll(32, 7, 5), rspProd: 5, base: 5, record: []answer{{index: 6}}, err: ErrJournal},
		"other ring":     {journal: enterAll(32, 7, 5, 6), rspProd: 3, base: 5, record: []answer{{index: 6}}, err: ErrJournal},
		"answered twice": {journal: enterAll(32, 7, 5, 6), rspProd: 5, base: 5, record: []answer{{index: 6}, {index: 6}}, err: ErrJournal},
	} {
		t.Run(name, func(t *testing.T) {
			if c.record != nil {
				c.journal.record(c.base, c.record)
			}
			f, err := c.journal.examine(c.rspProd)
			if err != c.err {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(c.want, f.entries); diff != "" || len(f.replay) != c.replay {
				t.Errorf("%d to publish, in flight (-want +got):\n%s", len(f.replay), diff)
			}
		})
	}
}

// FuzzExamine: no content of a journal makes a successor panic, start a request twice, or
// answer more requests than were consumed.
func FuzzExamine(f *testing.F) {
	j := enterAll(32, 9, 8, 5, 7, 6)
	j.record(5, []answer{{index: 7}})
	seed := make([]byte, 4*len(j.words))
	for i, w := range j.words {
		binary.NativeEndian.PutUint32(seed[4*i:], w)
	}
	f.Add(seed, uint32(5))
	f.Add(seed, uint32(6))
	f.Add([]byte{1, 2, 3}, uint32(0))
	fuzzloop.Fuzz(f, func(t *testing.T, content []byte, rspProd uint32) {
		j := newJournal(32)
		for i := range j.words {
			if 4*i+4 <= len(content) {
				j.words[i] = binary.NativeEndian.Uint32(content[4*i:])
			}
		}
		j.names(&ringKeys{refs: []xen.Gref{8}}, xen.NewStamp())
		found, err := j.examine(blkif.Index(rspProd))
		if err != nil {
			return
		}
		seen := map[blkif.Index]bool{}
		for _, e := range found.entries {
			i := j.indexOf(e)
			// It may be far behind: later requests may have been answered meanwhile.
			if seen[i] || int32(i-found.cons) >= 0 {
				t.Fatalf("entry %d has index %d, of %d consumed", e, i, found.cons)
			}
			seen[i] = true
		}
		if n := uint32(len(found.replay) + len(found.entries)); n != found.cons.Sub(blkif.Index(rspProd)) {
			t.Fatalf("%d requests of %d", n, found.cons.Sub(blkif.Index(rspProd)))
		}
		j.settle(&found)
	})
}

// TestDamagedJournal: a journal in which a word of the record was damaged is refused, or the
// frontend gets one answer to each request all the same.
func TestDamagedJournal(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 4))
	refused := 0
	for range 150 {
		s := newScript(t)
		s.push()
		if !s.serve(&killer{at: 1 + random.Int64N(60)}) {
			continue
		}
		damage(t, s.cfg.Queues[0].Journal, random)
		if err := s.tryConnect(); err != nil {
			refused++
			continue
		}
		s.conn.Close()
		s.ends(s.conn.Done(), "close")
		s.conn = nil
		if !s.serve(&killer{at: 1000}) {
			s.collect()
		}
	}
	if refused == 0 {
		t.Error("no journal was refused")
	}
}

// damage changes a word of the header, or the state or index of an entry.
func damage(t *testing.T, path string, random *rand.Rand) {
	t.Helper()
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		t.Fatal(err)
	}
	words := []int{jEntries, jProto, jPort, jRefs, jStamp, jCons, jSeq, jBase, jCount}
	for e := range 4 {
		at := jRsp + 32*rspWords + e*entryWords
		words = append(words, at+eState, at+eIndex)
	}
	at := 4 * words[random.IntN(len(words))]
	binary.NativeEndian.PutUint32(b[at:], binary.NativeEndian.Uint32(b[at:])^1<<random.IntN(32))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
