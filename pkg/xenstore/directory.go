// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
)

const (
	// maxListBytes bounds the names that List collects from several messages: ten times
	// the names of all domain ids.
	maxListBytes = 4 << 20

	// maxListRestarts bounds the restarts of List after changes of the node between
	// two of its messages.
	maxListRestarts = 64
)

// List returns the names, not the paths, of the children of a node, in no
// particular order. A list that does not fit one message is fetched in parts, all of
// the same state of the node.
func (v *view) List(ctx context.Context, path string) ([]string, error) {
	b, err := v.node(ctx, MsgDirectory, path)
	if isErr(err, ErrTooBig) {
		return v.listParts(ctx, path)
	}
	if err != nil {
		return nil, err
	}
	names, ok := SplitStrings(b)
	if !ok {
		return nil, badReply(MsgDirectory, path, b)
	}
	return names, nil
}

// listParts is List by DIRECTORY_PART. Each reply holds the generation of the
// node and as many whole names as fit; an empty name marks the end. A different
// generation means that the node has changed and the parts do not match.
func (v *view) listParts(ctx context.Context, path string) ([]string, error) {
	var (
		list     []byte
		gen      string
		restarts int
	)
	for {
		b, err := v.node(ctx, MsgDirectoryPart, path, strconv.Itoa(len(list)))
		if isErr(err, ErrNotSupported) {
			// An old xenstored: the answer to DIRECTORY is final.
			return nil, &Error{Op: MsgDirectory.String(), Path: path, Err: ErrTooBig}
		}
		if err != nil {
			return nil, err
		}
		g, names, ok := CutString(b)
		if !ok || len(names) == 0 || names[len(names)-1] != 0 {
			return nil, badReply(MsgDirectoryPart, path, b)
		}
		if len(list) > 0 && g != gen {
			if restarts++; restarts > maxListRestarts {
				return nil, &Error{Op: MsgDirectoryPart.String(), Path: path,
					Err: fmt.Errorf("%w: the node changed %d times meanwhile", ErrAgain, restarts)}
			}
			list = list[:0]
			continue
		}
		gen = g
		list = append(list, names...)
		if len(list) == 1 || bytes.HasSuffix(list, []byte{0, 0}) {
			ss, _ := SplitStrings(list[:len(list)-1])
			return ss, nil
		}
		if len(list) > maxListBytes {
			return nil, &Error{Op: MsgDirectoryPart.String(), Path: path,
				Err: fmt.Errorf("%w: more than %d bytes of names", ErrTooBig, maxListBytes)}
		}
	}
}
