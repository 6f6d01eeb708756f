// SPDX-License-Identifier: Apache-2.0

package xenbus_test

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// domidNode is a store whose node domid has a value, or cannot be read.
type domidNode struct {
	value string
	err   error
}

func (d domidNode) Read(_ context.Context, path string) (string, error) {
	if path != "domid" {
		return "", syscall.ENOENT
	}
	return d.value, d.err
}

func TestOwnDomid(t *testing.T) {
	for _, tt := range []struct {
		node domidNode
		want xen.Domid
		ok   bool
	}{
		{domidNode{value: "7"}, 7, true},
		{domidNode{value: "0"}, 0, true},
		{domidNode{value: "7\n"}, 7, true},
		{domidNode{err: syscall.ENOENT}, 0, true},
		{domidNode{value: "seven"}, 0, false},
		{domidNode{value: "65536"}, 0, false},
		{domidNode{value: ""}, 0, false},
		{domidNode{err: syscall.EIO}, 0, false},
	} {
		got, err := xenbus.OwnDomid(t.Context(), tt.node)
		if got != tt.want || (err == nil) != tt.ok || tt.node.err == syscall.EIO && !errors.Is(err, syscall.EIO) {
			t.Errorf("%+v: %d, %v", tt.node, got, err)
		}
	}
}
