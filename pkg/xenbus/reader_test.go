// SPDX-License-Identifier: Apache-2.0

package xenbus_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// dir is a directory /d of keys. It answers errors[key] if that is set, and counts reads.
type dir struct {
	keys   map[string]string
	errors map[string]error
	reads  int
}

func (d *dir) Read(ctx context.Context, path string) (string, error) {
	d.reads++
	key, ok := strings.CutPrefix(path, "/d/")
	if err := errors.Join(ctx.Err(), d.errors[key]); err != nil {
		return "", err
	}
	v, has := d.keys[key]
	if !ok || !has {
		return "", fmt.Errorf("%s: %w", path, syscall.ENOENT)
	}
	return v, nil
}

func TestReader(t *testing.T) {
	d := &dir{keys: map[string]string{
		"text": " frontend \n\x00", "empty": "", "on": "1", "off": "0\x00", "port": "5", "queue-1/ring-ref": "4294967295",
	}}
	r := xenbus.NewReader(t.Context(), d, "/d")
	if v, ok := r.Text("text"); v != "frontend" || !ok {
		t.Errorf("text: %q, %t", v, ok)
	}
	if v, ok := r.Text("empty"); v != "" || !ok {
		t.Errorf("empty: %q, %t", v, ok)
	}
	if v, ok := r.Text("missing"); v != "" || ok {
		t.Errorf("missing: %q, %t", v, ok)
	}
	for key, want := range map[string]bool{"on": true, "off": false, "empty": false, "missing": false} {
		if got := r.Bool(key); got != want {
			t.Errorf("%s: %t", key, got)
		}
	}
	if n := r.Uint("queue-1/ring-ref", 0, 1<<32-1); n != 1<<32-1 {
		t.Errorf("ring-ref: %d", n)
	}
	if n := r.UintOr("port", 1, 9, 3); n != 5 {
		t.Errorf("port: %d", n)
	}
	if n := r.UintOr("missing", 1, 9, 3); n != 3 {
		t.Errorf("missing: %d", n)
	}
	if n := r.Parse("port", "7", 1, 9); n != 7 {
		t.Errorf("parsed: %d", n)
	}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}

// The first error stays, and nothing is read after it.
func TestReaderError(t *testing.T) {
	hidden := fmt.Errorf("read: %w", syscall.EACCES)
	d := &dir{
		keys:   map[string]string{"big": "10", "word": "two", "flag": "yes", "empty": ""},
		errors: map[string]error{"hidden": hidden},
	}
	for _, tt := range []struct {
		name string
		read func(r *xenbus.Reader)
		want error
		errs []error // that the error matches
	}{
		{"too big", func(r *xenbus.Reader) { r.Uint("big", 1, 9) },
			&xenbus.KeyError{Key: "big", Value: "10", Want: "a number from 1 to 9"}, []error{syscall.EINVAL}},
		{"no number", func(r *xenbus.Reader) { r.UintOr("word", 1, 9, 1) },
			&xenbus.KeyError{Key: "word", Value: "two", Want: "a number from 1 to 9"}, nil},
		{"empty number", func(r *xenbus.Reader) { r.UintOr("empty", 1, 9, 1) },
			&xenbus.KeyError{Key: "empty", Value: "", Want: "a number from 1 to 9"}, nil},
		{"missing number", func(r *xenbus.Reader) { r.Uint("missing", 1, 9) },
			&xenbus.KeyError{Key: "missing", Missing: true, Want: "a number from 1 to 9"}, []error{syscall.ENOENT, fs.ErrNotExist}},
		{"no flag", func(r *xenbus.Reader) { r.Bool("flag") },
			&xenbus.KeyError{Key: "flag", Value: "yes", Want: "0 or 1"}, nil},
		{"hidden", func(r *xenbus.Reader) { r.Text("hidden") }, hidden, []error{fs.ErrPermission}},
		{"the caller's", func(r *xenbus.Reader) { r.Fail(hidden) }, hidden, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := xenbus.NewReader(t.Context(), d, "/d")
			tt.read(r)
			before := d.reads
			_, ok := r.Text("big")
			if ok || r.Bool("flag") || r.Uint("missing", 0, 1) != 0 || r.UintOr("word", 0, 1, 0) != 0 || d.reads != before {
				t.Errorf("%d reads after an error", d.reads-before)
			}
			r.Fail(errors.New("another error"))
			if diff := cmp.Diff(tt.want.Error(), r.Err().Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			for _, e := range tt.errs {
				if !errors.Is(r.Err(), e) {
					t.Errorf("%v does not match %v", r.Err(), e)
				}
			}
		})
	}
}

func TestReaderContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := xenbus.NewReader(ctx, &dir{keys: map[string]string{"on": "1"}}, "/d")
	if r.Bool("on") || !errors.Is(r.Err(), context.Canceled) {
		t.Errorf("got %v", r.Err())
	}
}

// A guest's node that may not be read counts as missing, and its error tells both.
func TestGuestStore(t *testing.T) {
	d := &dir{errors: map[string]error{"hidden": syscall.EACCES, "lost": syscall.EIO}}
	r := xenbus.NewReader(t.Context(), xenbus.GuestStore(d), "/d")
	if r.Bool("hidden") || r.Err() != nil {
		t.Errorf("got %v", r.Err())
	}
	if r.Bool("lost") || !errors.Is(r.Err(), syscall.EIO) {
		t.Errorf("got %v", r.Err())
	}
	if _, err := xenbus.GuestStore(d).Read(t.Context(), "/d/hidden"); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

// listFunc is a Lister.
type listFunc func() ([]string, error)

func (f listFunc) List(context.Context, string) ([]string, error) { return f() }

func TestList(t *testing.T) {
	for _, tt := range []struct {
		name  string
		names []string
		err   error
		want  []string
		is    error
	}{
		{"some", []string{"a", "b"}, nil, []string{"a", "b"}, nil},
		{"missing", nil, syscall.ENOENT, nil, nil},
		{"too many", []string{"a", "b", "c"}, nil, nil, syscall.EINVAL},
		{"hidden", nil, syscall.EACCES, nil, fs.ErrPermission},
	} {
		got, err := xenbus.List(t.Context(), listFunc(func() ([]string, error) { return tt.names, tt.err }), "/d", 2)
		if diff := cmp.Diff(tt.want, got); diff != "" || !errors.Is(err, tt.is) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestTrim(t *testing.T) {
	for in, want := range map[string]string{
		"4": "4", "4\x00": "4", " 4\n": "4", "4\n\x00\x00": "4", "": "", "\x00": "", "4\x005": "4\x005",
	} {
		if got := xenbus.Trim(in); got != want {
			t.Errorf("Trim(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzReader reads a key of any value in every way. Each gives a value in range or a
// *KeyError of that key, and never both.
func FuzzReader(f *testing.F) {
	for _, s := range []string{"", "0", "1", "131071", "131072", "-1", "+1", "0x10", " 1", "1\x00", "18446744073709551616", strings.Repeat("9", 5000)} {
		f.Add(s)
	}
	const min, max = 1, 1<<17 - 1
	fuzzloop.Fuzz(f, func(t *testing.T, value string) {
		d := &dir{keys: map[string]string{"key": value}}
		check := func(r *xenbus.Reader, zero bool) {
			t.Helper()
			if r.Err() == nil {
				return
			}
			var k *xenbus.KeyError
			if !errors.As(r.Err(), &k) || k.Key != "key" || k.Value != xenbus.Trim(value) || k.Want == "" || k.Missing || !zero {
				t.Errorf("%q: %#v", value, r.Err())
			}
			if text := r.Err().Error(); len(text) > 400 || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("%q: the error is %q", value, text)
			}
		}
		read := func() *xenbus.Reader { return xenbus.NewReader(t.Context(), d, "/d") }
		r := read()
		on := r.Bool("key")
		check(r, !on)
		for _, number := range []func(*xenbus.Reader) uint64{
			func(r *xenbus.Reader) uint64 { return r.Uint("key", min, max) },
			func(r *xenbus.Reader) uint64 { return r.UintOr("key", min, max, min) },
		} {
			r := read()
			n := number(r)
			check(r, n == 0)
			if r.Err() == nil && (n < min || n > max) {
				t.Errorf("%q is %d", value, n)
			}
		}
	})
}
