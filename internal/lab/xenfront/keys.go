// SPDX-License-Identifier: Apache-2.0

package xenfront

import (
	"context"
	"errors"
	"strconv"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// KeyWriter writes nodes below a directory until the first error.
type KeyWriter struct {
	ctx context.Context
	tx  *xenstore.Tx
	dir string
	err error
}

// NewKeyWriter makes a writer for nodes below dir.
func NewKeyWriter(ctx context.Context, tx *xenstore.Tx, dir string) *KeyWriter {
	return &KeyWriter{ctx: ctx, tx: tx, dir: dir}
}

// Err returns the first error.
func (w *KeyWriter) Err() error { return w.err }

// Text writes any value.
func (w *KeyWriter) Text(key, value string) {
	if w.err == nil {
		w.err = w.tx.Write(w.ctx, w.dir+"/"+key, value)
	}
}

// Write writes a number.
func (w *KeyWriter) Write(key string, n uint32) { w.Text(key, strconv.FormatUint(uint64(n), 10)) }

// Remove removes a node. Its directory may be missing as well.
func (w *KeyWriter) Remove(key string) {
	if w.err != nil {
		return
	}
	if err := w.tx.Remove(w.ctx, w.dir+"/"+key); err != nil && !errors.Is(err, xenstore.ErrNotExist) {
		w.err = err
	}
}

// Flag writes 1, or removes the node of an earlier connection.
func (w *KeyWriter) Flag(key string, on bool) {
	if on {
		w.Write(key, 1)
	} else {
		w.Remove(key)
	}
}
