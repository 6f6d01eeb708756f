// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// dirPeer serves one directory as xenstored does. change is called before each
// part and may replace the children.
type dirPeer struct {
	*peer
	children []string
	gen      int
	parts    int
	change   func(d *dirPeer)
}

func (d *dirPeer) handle(m message) {
	list := AppendStrings(nil, d.children...)
	if m.Header.Type == MsgDirectory {
		if len(list) > MaxPayload {
			d.refuse(m, "E2BIG")
		} else {
			d.reply(m, string(list))
		}
		return
	}
	if d.parts++; d.change != nil {
		d.change(d)
		list = AppendStrings(nil, d.children...)
	}
	off, _ := strconv.Atoi(m.strs()[1])
	b := AppendStrings(nil, strconv.Itoa(d.gen))
	if off < len(list) {
		rest := list[off:]
		for len(rest) > 0 {
			n := bytes.IndexByte(rest, 0) + 1
			if len(b)+n >= MaxPayload {
				break
			}
			b, rest = append(b, rest[:n]...), rest[n:]
		}
		if len(rest) > 0 {
			d.reply(m, string(b))
			return
		}
	}
	d.reply(m, string(append(b, 0)))
}

func names(prefix string, n int) []string {
	ss := make([]string, n)
	for i := range ss {
		ss[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return ss
}

func listFrom(t testing.TB, d *dirPeer) ([]string, error) {
	c, p := dialPeer(t, Socket)
	d.peer = p
	go p.serve(d.handle)
	defer c.Close()
	return c.List(t.Context(), "/dir")
}

func TestListInParts(t *testing.T) {
	for _, n := range []int{0, 1, 500, 700, 5000} {
		d := &dirPeer{children: names("child", n)}
		got, err := listFrom(t, d)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d.children, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%d children (-want +got):\n%s", n, diff)
		}
		if want := n * len("child1234\x00") / 4096; n > 1000 && d.parts < want {
			t.Errorf("%d children came in %d parts", n, d.parts)
		}
	}
}

func TestListStartsOverWhenTheNodeChanges(t *testing.T) {
	d := &dirPeer{children: names("old", 3000)}
	d.change = func(d *dirPeer) {
		if d.parts == 3 {
			d.children, d.gen = names("new", 2000), 1
		}
	}
	got, err := listFrom(t, d)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(names("new", 2000), got); diff != "" {
		t.Errorf("children (-want +got):\n%s", diff)
	}
}

func TestListOfANodeThatShrinksToNothing(t *testing.T) {
	d := &dirPeer{children: names("old", 3000)}
	d.change = func(d *dirPeer) {
		if d.parts == 2 {
			d.children, d.gen = nil, 1
		}
	}
	if got, err := listFrom(t, d); err != nil || len(got) != 0 {
		t.Errorf("%d names, %v", len(got), err)
	}
}

func TestListGivesUpOnANodeThatNeverRests(t *testing.T) {
	d := &dirPeer{children: names("child", 3000)}
	d.change = func(d *dirPeer) { d.gen++ }
	if _, err := listFrom(t, d); !errors.Is(err, ErrAgain) {
		t.Errorf("got %v", err)
	}
	if d.parts > 2*(maxListRestarts+1) {
		t.Errorf("after %d parts", d.parts)
	}
}

func TestListWithoutDirectoryPart(t *testing.T) {
	c, p := dialPeer(t, Socket)
	go p.serve(func(m message) {
		if m.Header.Type == MsgDirectory {
			p.refuse(m, "E2BIG")
		} else {
			p.refuse(m, "ENOSYS")
		}
	})
	if _, err := c.List(t.Context(), "/dir"); !errors.Is(err, ErrTooBig) {
		t.Errorf("got %v", err)
	}
}

func TestListErrorsOfParts(t *testing.T) {
	for name, tc := range map[string]struct {
		part func(p *peer, m message)
		want error
	}{
		"node removed":       {func(p *peer, m message) { p.refuse(m, "ENOENT") }, ErrNotExist},
		"no generation":      {func(p *peer, m message) { p.reply(m, "") }, ErrProtocol},
		"nothing behind it":  {func(p *peer, m message) { p.reply(m, "1\x00") }, ErrProtocol},
		"unterminated":       {func(p *peer, m message) { p.reply(m, "1\x00abc") }, ErrProtocol},
		"names without end":  {func(p *peer, m message) { p.reply(m, "1\x00"+strings.Repeat("x", 4000)+"\x00") }, ErrTooBig},
		"generation unended": {func(p *peer, m message) { p.reply(m, "1") }, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			c, p := dialPeer(t, Socket)
			go p.serve(func(m message) {
				if m.Header.Type == MsgDirectory {
					p.refuse(m, "E2BIG")
					return
				}
				tc.part(p, m)
			})
			if _, err := c.List(t.Context(), "/dir"); !errors.Is(err, tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestListIsOneStateOfTheNode changes the node at random times: the result must
// be one of the states it had, whole.
func TestListIsOneStateOfTheNode(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(400, 2500), 1, 4).Draw(rt, "sizes")
		every := rapid.IntRange(1, 5).Draw(rt, "every")
		d := &dirPeer{children: names("s0n", sizes[0])}
		d.change = func(d *dirPeer) {
			if d.parts%every == 0 && d.gen+1 < len(sizes) {
				d.gen++
				d.children = names(fmt.Sprintf("s%dn", d.gen), sizes[d.gen])
			}
		}
		got, err := listFrom(t, d)
		if err != nil {
			rt.Fatal(err)
		}
		for i, n := range sizes {
			if slices.Equal(got, names(fmt.Sprintf("s%dn", i), n)) {
				return
			}
		}
		rt.Fatalf("%d names that were never there together", len(got))
	})
}
