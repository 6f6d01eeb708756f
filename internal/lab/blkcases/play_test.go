// SPDX-License-Identifier: Apache-2.0

package blkcases_test

import (
	"math/rand/v2"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkfront/blktest"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// start connects a player to a backend in memory. Believed are the limits that the player
// takes for published, and real those that the backend checks.
func start(t *testing.T, protocol string, believed, real blkif.Limits) (*blkcases.Player, *blkfront.Queue) {
	t.Helper()
	g := xentest.Start(t, 1)
	host := xenfront.Host{Pages: g.Gntalloc(), Events: func() (xenfront.Events, error) { return g.OpenGuestEvtchn() }}
	q, err := blkfront.NewQueue(host, 0, blkfront.Config{Protocol: protocol, Pages: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	grants, err := g.OpenGntdev()
	if err != nil {
		t.Fatal(err)
	}
	events, err := g.OpenEvtchn()
	if err != nil {
		t.Fatal(err)
	}
	b := &blktest.Backend{Grants: grants, Events: events, Domid: 1, Disk: make([]byte, 2*blkcases.MinSectors*blkif.SectorSize), Limits: real}
	for i := range b.Disk {
		b.Disk[i] = byte(rand.Uint32())
	}
	if err := b.Start(q); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
		events.Close()
		grants.Close()
	})
	p, err := blkcases.NewPlayer(t.Context(), host, 0, q, believed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, q
}

// disks are limits for each kind of disk.
var disks = map[blkcases.Disk]blkif.Limits{
	blkcases.Plain:    {Sectors: blkcases.MinSectors, BlockSize: 512, MaxSegments: 700, Discard: true},
	blkcases.ReadOnly: {Sectors: blkcases.MinSectors, BlockSize: 512, MaxSegments: 256, ReadOnly: true},
	blkcases.Blocks4K: {Sectors: blkcases.MinSectors, BlockSize: 4096, MaxSegments: 256, Discard: true},
	blkcases.Bare:     {Sectors: blkcases.MinSectors, BlockSize: 512},
}

// TestCases plays all cases against a backend that is known to be right.
func TestCases(t *testing.T) {
	for kind, limits := range disks {
		for _, protocol := range []string{"x86_64-abi", "x86_32-abi", "arm-abi"} {
			t.Run(kind.String()+"/"+protocol, func(t *testing.T) {
				p, _ := start(t, protocol, limits, limits)
				played := 0
				for _, c := range blkcases.All() {
					if !p.Fits(&c) || c.Overrun != 0 {
						continue
					}
					played++
					if err := p.Play(t.Context(), &c); err != nil {
						t.Errorf("%s: %v", c.Name, err)
					}
				}
				if played < 4 {
					t.Errorf("only %d cases", played)
				}
			})
		}
	}
}

// TestCasesFind: a backend that checks other limits than it has published fails the cases
// that are about them, and only those.
func TestCasesFind(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   blkcases.Disk
		change func(*blkif.Limits)
		finds  string
	}{
		{"larger disk", blkcases.Plain, func(l *blkif.Limits) { l.Sectors += 8 }, "write whose last sector is beyond the end"},
		{"more segments", blkcases.Plain, func(l *blkif.Limits) { l.MaxSegments++ }, "indirect read of one segment more than published"},
		{"writable", blkcases.ReadOnly, func(l *blkif.Limits) { l.ReadOnly = false }, "indirect write to a read-only disk"},
		{"blocks", blkcases.Blocks4K, func(l *blkif.Limits) { l.BlockSize = 512 }, "two halves of a block in two segments"},
		{"discard", blkcases.Bare, func(l *blkif.Limits) { l.Discard = true }, "discard that is not offered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			real := disks[c.kind]
			c.change(&real)
			p, _ := start(t, "", disks[c.kind], real)
			for _, k := range blkcases.All() {
				if k.Name == c.finds {
					if err := p.Play(t.Context(), &k); err == nil {
						t.Error("not found")
					} else {
						t.Log(err)
					}
					return
				}
			}
			t.Fatal("there is no such case")
		})
	}
}

// TestNames: no two cases have the same name.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range blkcases.All() {
		if seen[c.Name] {
			t.Errorf("two cases are %q", c.Name)
		}
		seen[c.Name] = true
	}
}
