// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Store reads nodes of xenstore. *xenstore.Client and *xenstore.Tx are Stores. The error
// for a missing node matches fs.ErrNotExist, and the one for a node that may not be read
// matches fs.ErrPermission.
type Store interface {
	Read(ctx context.Context, path string) (string, error)
}

// GuestStore returns a Store for nodes that belong to a guest. A node that may not be read
// counts as missing: below a directory that a driver domain may not read, xenstored answers
// EACCES for a node that is gone (errno_from_parents in xenstored_core.c). The error of such
// a read matches both fs.ErrNotExist and fs.ErrPermission.
func GuestStore(s Store) Store { return guestStore{s} }

type guestStore struct{ store Store }

func (g guestStore) Read(ctx context.Context, path string) (string, error) {
	v, err := g.store.Read(ctx, path)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: %w", err, syscall.ENOENT)
	}
	return v, err
}

// Reader reads the keys of one directory, such as those that the other end of a device has
// published. It remembers the first error and reads nothing after that: read all keys, then
// check Err.
//
//	r := xenbus.NewReader(ctx, xenbus.GuestStore(store), frontend)
//	ref := r.Uint("ring-ref", 0, math.MaxUint32)
//	port := r.Uint("event-channel", 1, maxPort)
//	persistent := r.Bool("feature-persistent")
//	if err := r.Err(); err != nil {
//
// The error of a wrong or missing key is a *KeyError, any other is the Store's.
type Reader struct {
	ctx   context.Context
	store Store
	dir   string
	err   error
}

// NewReader returns a Reader of the keys in dir. The keys given to its methods are relative
// to dir and may have subdirectories. ctx is that of all its requests.
func NewReader(ctx context.Context, s Store, dir string) *Reader {
	return &Reader{ctx: ctx, store: s, dir: dir}
}

// Err returns the first error, or nil.
func (r *Reader) Err() error { return r.err }

// Fail makes err the error of r, if it is the first one.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// Text reads a key that may be missing, and reports whether it exists. The value is
// trimmed; see Trim. After an error Text returns false.
func (r *Reader) Text(key string) (v string, ok bool) {
	if r.err != nil {
		return "", false
	}
	v, err := r.store.Read(r.ctx, r.dir+"/"+key)
	switch {
	case err == nil:
		return Trim(v), true
	case !errors.Is(err, fs.ErrNotExist):
		r.Fail(err)
	}
	return "", false
}

// Bool reads a key that is 0 or 1; see ParseBool. A missing key is false.
func (r *Reader) Bool(key string) bool {
	v, ok := r.Text(key)
	if !ok {
		return false
	}
	b, err := ParseBool(key, v)
	if err != nil {
		r.Fail(err)
	}
	return b
}

// Uint reads a number from min to max. The key must exist. After an error Uint returns 0.
func (r *Reader) Uint(key string, min, max uint64) uint64 {
	v, ok := r.Text(key)
	if !ok {
		r.Fail(&KeyError{Key: key, Missing: true, Want: wantUint(min, max)})
		return 0
	}
	return r.Parse(key, v, min, max)
}

// UintOr reads a number from min to max. It returns missing if the key does not exist.
// After an error the result is 0 or missing.
func (r *Reader) UintOr(key string, min, max, missing uint64) uint64 {
	v, ok := r.Text(key)
	if !ok {
		return missing
	}
	return r.Parse(key, v, min, max)
}

// Parse parses v, a value of key that Text has returned, as a number from min to max. If it
// is not one, Parse returns 0 and remembers the error.
func (r *Reader) Parse(key, v string, min, max uint64) uint64 {
	n, err := ParseUint(key, v, min, max)
	if err != nil {
		r.Fail(err)
	}
	return n
}

// Lister lists the children of nodes. *xenstore.Client and *xenstore.Tx are Listers.
type Lister interface {
	List(ctx context.Context, path string) ([]string, error)
}

// List returns the names of the children of a directory, in no particular order. A missing
// directory has none. More than max children are an error, a *KeyError.
func List(ctx context.Context, l Lister, dir string, max int) ([]string, error) {
	names, err := l.List(ctx, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case len(names) > max:
		return nil, &KeyError{Key: dir, Value: fmt.Sprintf("%d children", len(names)), Want: fmt.Sprintf("at most %d children", max)}
	}
	return names, nil
}
