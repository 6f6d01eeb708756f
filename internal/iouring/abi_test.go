// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestFieldOffsets checks the offsets of include/uapi/linux/io_uring.h. The sizes are
// asserted when the package is compiled.
func TestFieldOffsets(t *testing.T) {
	for _, tt := range []struct {
		of   any
		want map[string]uintptr
	}{
		{sqe{}, map[string]uintptr{"opcode": 0, "flags": 1, "ioprio": 2, "fd": 4, "off": 8, "addr": 16, "len": 24, "opFlags": 28, "userData": 32, "bufIndex": 40}},
		{cqe{}, map[string]uintptr{"userData": 0, "res": 8, "flags": 12}},
		{sqOffsets{}, map[string]uintptr{"head": 0, "tail": 4, "ringMask": 8, "ringEntries": 12, "flags": 16, "dropped": 20, "array": 24}},
		{cqOffsets{}, map[string]uintptr{"head": 0, "tail": 4, "ringMask": 8, "ringEntries": 12, "overflow": 16, "cqes": 20, "flags": 24}},
		{params{}, map[string]uintptr{"sqEntries": 0, "cqEntries": 4, "flags": 8, "sqThreadCPU": 12, "sqThreadIdle": 16, "features": 20, "wqFD": 24, "sqOff": 40, "cqOff": 80}},
		{filesUpdate{}, map[string]uintptr{"offset": 0, "fds": 8}},
		{probeOp{}, map[string]uintptr{"op": 0, "flags": 2}},
		{probe{}, map[string]uintptr{"lastOp": 0, "opsLen": 1, "ops": 16}},
		{timespec{}, map[string]uintptr{"sec": 0, "nsec": 8}},
		{geteventsArg{}, map[string]uintptr{"sigmask": 0, "sigmaskSz": 8, "ts": 16}},
		{iovec{}, map[string]uintptr{"base": 0, "len": 8}},
	} {
		typ := reflect.TypeOf(tt.of)
		got := map[string]uintptr{}
		for f := range typ.Fields() {
			if f.Name != "_" {
				got[f.Name] = f.Offset
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", typ.Name(), diff)
		}
	}
}
