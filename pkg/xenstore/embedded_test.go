// SPDX-License-Identifier: Apache-2.0

package xenstore_test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// These tests run against the embedded xenstored, which follows the real one.

func startStore(t testing.TB) *store.Server {
	s := store.New(store.Options{})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect returns a client of domain 0.
func connect(t testing.TB, s *store.Server, kind xenstore.Kind) *xenstore.Client {
	near, far := net.Pipe()
	var served sync.WaitGroup
	served.Go(func() { _ = s.ServeConn(far, 0, kind) })
	c := xenstore.New(near, kind)
	t.Cleanup(func() {
		_ = c.Close()
		served.Wait()
	})
	return c
}

func kinds(t *testing.T, f func(t *testing.T, kind xenstore.Kind)) {
	for _, k := range []xenstore.Kind{xenstore.Socket, xenstore.Xenbus} {
		t.Run(k.String(), func(t *testing.T) { f(t, k) })
	}
}

// TestClientAgainstAModel compares random operations with a map of paths.
func TestClientAgainstAModel(t *testing.T) {
	kinds(t, func(t *testing.T, kind xenstore.Kind) {
		c := connect(t, startStore(t), kind)
		run := 0
		rapid.Check(t, func(t *rapid.T) {
			run++
			root := fmt.Sprintf("/run%d", run)
			if err := c.Mkdir(t.Context(), root); err != nil {
				t.Fatal(err)
			}
			model := map[string]string{root: ""}
			parents := func(p string) {
				for ; p != root; p = path.Dir(p) {
					if _, ok := model[p]; !ok {
						model[p] = ""
					}
				}
			}
			node := rapid.Custom(func(t *rapid.T) string {
				return root + "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3).Draw(t, "path"), "/")
			})
			for range rapid.IntRange(1, 40).Draw(t, "steps") {
				p := node.Draw(t, "node")
				switch rapid.IntRange(0, 5).Draw(t, "operation") {
				case 0:
					v := string(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "value"))
					if err := c.Write(t.Context(), p, v); err != nil {
						t.Fatal(err)
					}
					parents(p)
					model[p] = v
				case 1:
					if err := c.Mkdir(t.Context(), p); err != nil {
						t.Fatal(err)
					}
					parents(p)
				case 2:
					err := c.Remove(t.Context(), p)
					if _, ok := model[path.Dir(p)]; ok != (err == nil) || err != nil && !errors.Is(err, xenstore.ErrNotExist) {
						t.Fatalf("remove %s: %v", p, err)
					}
					maps.DeleteFunc(model, func(k, _ string) bool { return k == p || strings.HasPrefix(k, p+"/") })
				case 3:
					v, err := c.Read(t.Context(), p)
					want, ok := model[p]
					if v != want || ok != (err == nil) || err != nil && !errors.Is(err, xenstore.ErrNotExist) {
						t.Fatalf("read %s: %q, %v", p, v, err)
					}
				case 4:
					got, err := c.List(t.Context(), p)
					var want []string
					for k := range model {
						if path.Dir(k) == p {
							want = append(want, path.Base(k))
						}
					}
					slices.Sort(got)
					slices.Sort(want)
					if _, ok := model[p]; ok != (err == nil) {
						t.Fatalf("list %s: %v", p, err)
					}
					if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
						t.Fatalf("list %s (-want +got):\n%s", p, diff)
					}
				case 5:
					ok, err := c.Exists(t.Context(), p)
					if _, want := model[p]; ok != want || err != nil {
						t.Fatalf("exists %s: %t, %v", p, ok, err)
					}
				}
			}
		})
	})
}

// TestTransactionsAreAtomic lets several connections count in one node.
func TestTransactionsAreAtomic(t *testing.T) {
	kinds(t, func(t *testing.T, kind xenstore.Kind) {
		const clients, rounds = 4, 25
		s := startStore(t)
		first := connect(t, s, kind)
		if err := first.Write(t.Context(), "/count", "0"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range clients {
			c := connect(t, s, kind)
			wg.Go(func() {
				for range rounds {
					err := c.Transaction(t.Context(), func(tx *xenstore.Tx) error {
						n, err := tx.ReadUint(t.Context(), "/count", 64)
						if err != nil {
							return err
						}
						return tx.Write(t.Context(), "/count", strconv.FormatUint(n+1, 10))
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n, err := first.ReadUint(t.Context(), "/count", 64); err != nil || n != clients*rounds {
			t.Errorf("%d, %v", n, err)
		}
	})
}

func TestTransactionSeesItsOwnChangesFirst(t *testing.T) {
	kinds(t, func(t *testing.T, kind xenstore.Kind) {
		c := connect(t, startStore(t), kind)
		w, err := c.Watch(t.Context(), "/dev")
		if err != nil {
			t.Fatal(err)
		}
		<-w.C()
		if err := c.Transaction(t.Context(), func(tx *xenstore.Tx) error {
			if err := tx.Write(t.Context(), "/dev/a", "1"); err != nil {
				return err
			}
			if v, err := tx.Read(t.Context(), "/dev/a"); err != nil || v != "1" {
				t.Errorf("inside: %q, %v", v, err)
			}
			if _, err := c.Read(t.Context(), "/dev/a"); !errors.Is(err, xenstore.ErrNotExist) {
				t.Errorf("outside: %v", err)
			}
			if n := len(w.C()); n != 0 {
				t.Errorf("%d events before the commit", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if e := <-w.C(); e != (xenstore.Event{Path: "/dev/a"}) {
			t.Errorf("got %+v", e)
		}
	})
}

func TestWatchFollowsADevice(t *testing.T) {
	kinds(t, func(t *testing.T, kind xenstore.Kind) {
		c := connect(t, startStore(t), kind)
		const dir = "/local/domain/7/device/vif/0"
		w, err := c.Watch(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		next := func(want string) {
			t.Helper()
			if e := <-w.C(); e != (xenstore.Event{Path: want}) {
				t.Errorf("got %+v, want %s", e, want)
			}
		}
		next(dir) // the first, though the node is missing
		for _, name := range []string{"/state", "/mac"} {
			if err := c.Write(t.Context(), dir+name, "1"); err != nil {
				t.Fatal(err)
			}
			next(dir + name)
		}
		if err := c.Remove(t.Context(), "/local/domain/7"); err != nil {
			t.Fatal(err)
		}
		next(dir) // a parent went, the event names the watched path
		w.Close()
		if _, ok := <-w.C(); ok {
			t.Error("an event after Close")
		}
	})
}

func TestListOfManyChildren(t *testing.T) {
	kinds(t, func(t *testing.T, kind xenstore.Kind) {
		c := connect(t, startStore(t), kind)
		var want []string
		for i := range 1500 {
			want = append(want, fmt.Sprintf("child%d", i))
			if err := c.Mkdir(t.Context(), "/dir/"+want[i]); err != nil {
				t.Fatal(err)
			}
		}
		got, err := c.List(t.Context(), "/dir")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("names (-want +got):\n%s", diff)
		}
	})
}

func TestLongestMessages(t *testing.T) {
	kinds(t, func(t *testing.T, kind xenstore.Kind) {
		c := connect(t, startStore(t), kind)
		want := strings.Repeat("x", kind.MaxRequest()-len("/v\x00"))
		if err := c.Write(t.Context(), "/v", want); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Read(t.Context(), "/v"); err != nil || got != want {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

func TestPermissionsAreStored(t *testing.T) {
	s := startStore(t)
	s.DomainCreated(5)
	c := connect(t, s, xenstore.Socket)
	want := []xenstore.Perm{{Access: xenstore.AccessNone, Domid: 5}, {Access: xenstore.AccessRead, Domid: 0}}
	if err := c.Mkdir(t.Context(), "/p"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetPermissions(t.Context(), "/p", want); err != nil {
		t.Fatal(err)
	}
	got, err := c.Permissions(t.Context(), "/p")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
}

func TestDomains(t *testing.T) {
	s := startStore(t)
	s.DomainCreated(7)
	c := connect(t, s, xenstore.Socket)
	w, err := c.Watch(t.Context(), xenstore.ReleaseDomain)
	if err != nil {
		t.Fatal(err)
	}
	<-w.C()
	introduced := func(want bool) {
		t.Helper()
		if got, err := c.IsIntroduced(t.Context(), 7); err != nil || got != want {
			t.Errorf("introduced: %t, %v", got, err)
		}
	}
	introduced(false)
	if err := c.Introduce(t.Context(), 7, 1, 2); err != nil {
		t.Fatal(err)
	}
	introduced(true)
	s.DomainDied(7)
	if e := <-w.C(); e.Path != xenstore.ReleaseDomain {
		t.Errorf("got %+v", e)
	}
	introduced(false)
}

func TestServerGoesAway(t *testing.T) {
	s := store.New(store.Options{})
	c := connect(t, s, xenstore.Socket)
	w, err := c.Watch(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	for range w.C() {
	}
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, xenstore.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
