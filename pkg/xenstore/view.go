// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
)

// view has the methods that Client and Tx share. It is the store as seen outside of
// any transaction (tx is 0) or within one.
type view struct {
	c    *Client
	tx   uint32
	over atomic.Bool // the transaction has ended; its id may belong to another one
	sent atomic.Int32
}

// node sends a request whose payload starts with a path.
func (v *view) node(ctx context.Context, typ MessageType, path string, rest ...string) ([]byte, error) {
	return v.send(ctx, typ, path, CheckPath, AppendStrings(nil, append([]string{path}, rest...)...))
}

func (v *view) send(ctx context.Context, typ MessageType, path string, check func(string) error, payload []byte) ([]byte, error) {
	if err := check(path); err != nil {
		return nil, &Error{Op: typ.String(), Path: path, Err: err}
	}
	if v.over.Load() {
		return nil, &Error{Op: typ.String(), Path: path, Err: ErrTxDone}
	}
	v.sent.Add(1)
	return v.c.call(ctx, typ, v.tx, path, payload)
}

// Read returns the value of a node unchanged. It may have any bytes; by convention it
// is ASCII text without a NUL at the end.
func (v *view) Read(ctx context.Context, path string) (string, error) {
	b, err := v.node(ctx, MsgRead, path)
	return string(b), err
}

// Write stores value in a node and creates the node and its parents if they
// are missing. New nodes inherit the permissions of their parent. Path and
// value together must fit one message.
func (v *view) Write(ctx context.Context, path, value string) error {
	b := append(AppendStrings(nil, path), value...)
	_, err := v.send(ctx, MsgWrite, path, CheckPath, b)
	return err
}

// Mkdir creates a node with an empty value, and its parents, if they are
// missing. An existing node keeps its value.
func (v *view) Mkdir(ctx context.Context, path string) error {
	_, err := v.node(ctx, MsgMkdir, path)
	return err
}

// Remove deletes a node and all nodes below it. It succeeds if the node does not
// exist, and returns ErrNotExist if its parent does not exist either.
func (v *view) Remove(ctx context.Context, path string) error {
	_, err := v.node(ctx, MsgRemove, path)
	return err
}

// Exists reports whether a node exists. If the caller may not read it, the error
// matches ErrPermission.
func (v *view) Exists(ctx context.Context, path string) (bool, error) {
	_, err := v.node(ctx, MsgRead, path)
	switch {
	case err == nil:
		return true, nil
	case isErr(err, ErrNotExist):
		return false, nil
	}
	return false, err
}

// Permissions returns the permission list of a node or of a special path. The
// first entry names the owner, see Perm.
func (v *view) Permissions(ctx context.Context, path string) ([]Perm, error) {
	b, err := v.send(ctx, MsgGetPerms, path, CheckWatchPath, AppendStrings(nil, path))
	if err != nil {
		return nil, err
	}
	ss, ok := SplitStrings(b)
	if !ok {
		return nil, badReply(MsgGetPerms, path, b)
	}
	perms := make([]Perm, len(ss))
	for i, s := range ss {
		if perms[i], err = ParsePerm(s); err != nil {
			return nil, badReply(MsgGetPerms, path, b)
		}
	}
	return perms, nil
}

// SetPermissions replaces the permission list of a node or of a special path.
// Only its owner may do that, and only a privileged domain may change the owner.
func (v *view) SetPermissions(ctx context.Context, path string, perms []Perm) error {
	b := AppendStrings(nil, path)
	for _, p := range perms {
		b = AppendStrings(b, p.String())
	}
	_, err := v.send(ctx, MsgSetPerms, path, CheckWatchPath, b)
	return err
}

// ReadUint returns the value of a node as an unsigned decimal number of at most
// bitSize bits. It ignores white space around it and NULs behind it, because some
// frontends write them. The error is ErrMalformed for another value that is not a
// number or is too big, and ErrNotExist for a missing node.
func (v *view) ReadUint(ctx context.Context, path string, bitSize int) (uint64, error) {
	s, err := v.Read(ctx, path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimRight(s, "\x00")), 10, bitSize)
	if err != nil {
		return 0, &Error{Op: MsgRead.String(), Path: path,
			Err: fmt.Errorf("%w: %.40q is not a number of %d bits", ErrMalformed, s, bitSize)}
	}
	return n, nil
}
