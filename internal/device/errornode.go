// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"path"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// ErrorNode is the node of a device for the text of an error, where toolstacks look for it.
type ErrorNode struct {
	path string // empty: there is none
	text string
	log  *zap.Logger
}

// NewErrorNode returns the error node at path. Errors are logged as well.
func NewErrorNode(path string, log *zap.Logger) ErrorNode { return ErrorNode{path: path, log: log} }

// Text returns the contents of the node.
func (n *ErrorNode) Text() string { return n.text }

// Report logs an error under the name of the event, and writes it into the node. It does
// nothing if the node has this error already.
func (n *ErrorNode) Report(ctx context.Context, s Store, event string, err error) {
	text := ErrorText(err)
	if text == n.text {
		return
	}
	n.text = text
	n.log.Error(event, zap.Error(err))
	if n.path == "" {
		return
	}
	if err := s.Write(ctx, n.path, text); err != nil && !Unanswered(err) {
		n.log.Warn("error node not written", zap.Error(err))
	}
}

// Clear removes the node. If it stayed, it would mislead administrators, and use up the
// nodes that a driver domain may have.
func (n *ErrorNode) Clear(ctx context.Context, s Store) {
	n.text = ""
	if n.path == "" {
		return
	}
	err := s.Transaction(ctx, func(tx *xenstore.Tx) error {
		dev := path.Dir(n.path)
		if err := tx.Remove(ctx, dev); err != nil {
			return err
		}
		dom := path.Dir(dev)
		if others, err := tx.List(ctx, dom); err != nil || len(others) > 0 {
			return err
		}
		return tx.Remove(ctx, dom)
	})
	if err != nil && !errors.Is(err, xenstore.ErrNotExist) && !Unanswered(err) {
		n.log.Warn("error node not removed", zap.Error(err))
	}
}

// ErrorText returns an error as Linux back ends write it: an errno and a text.
func ErrorText(err error) string {
	errno := unix.EINVAL // for a wrong value
	_ = errors.As(err, &errno)
	text := fmt.Sprintf("%d %v", int(errno), err)
	const most = 512
	if len(text) > most {
		text = text[:most]
	}
	return text
}
