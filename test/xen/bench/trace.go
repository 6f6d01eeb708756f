// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// hypercalls holds the domains' hypercalls in a trace. A call within a multicall counts as
// one, and so does the multicall.
type hypercalls struct {
	All       uint64
	CopyCalls uint64 // GNTTABOP_copy
	CopyOps   uint64 // operations in those
	Maps      uint64 // operations of GNTTABOP_map_grant_ref
	OtherOps  uint64 // operations of all other grant table calls
	Events    uint64 // event channel calls, nearly all of them notifications
	Lost      uint64 // times records were lost

	ByNumber map[uint32]uint64 `json:",omitempty"` // all of them, by the numbers of public/xen.h
}

// Records of a trace, by public/trace.h and public/xen.h.
const (
	recordCycles = 1 << 31

	recordLost     = 0x0001f001
	recordCall     = 0x0020100d // TRC_PV_HYPERCALL_V2
	recordSubcall  = 0x0020200e // TRC_PV_HYPERCALL_SUBCALL
	recordCallMask = 0x000fffff // of the first word: the number of the call

	callGrantTable = 20
	callEvent      = 32
	grantMap       = 0
	grantCopy      = 5
)

var errTraceShort = errors.New("trace ends within a record")

// parseTrace counts the hypercalls in xentrace's output.
func parseTrace(b []byte) (h hypercalls, err error) {
	for len(b) > 0 {
		if len(b) < 4 {
			return h, errTraceShort
		}
		head := binary.LittleEndian.Uint32(b)
		b = b[4:]
		size := int(head>>28&7) * 4
		if head&recordCycles != 0 {
			if len(b) < 8 {
				return h, errTraceShort
			}
			b = b[8:]
		}
		if len(b) < size {
			return h, errTraceShort
		}
		extra := b[:size]
		b = b[size:]
		switch head & 0x0fffffff {
		case recordLost:
			h.Lost++
		case recordCall, recordSubcall:
			h.add(extra)
		}
	}
	return h, nil
}

func (h *hypercalls) add(extra []byte) {
	if len(extra) < 4 {
		return
	}
	h.All++
	number := binary.LittleEndian.Uint32(extra) & recordCallMask
	if h.ByNumber == nil {
		h.ByNumber = map[uint32]uint64{}
	}
	h.ByNumber[number]++
	switch number {
	case callEvent:
		h.Events++
	case callGrantTable:
		if len(extra) < 12 {
			return
		}
		ops := uint64(binary.LittleEndian.Uint32(extra[8:]))
		switch binary.LittleEndian.Uint32(extra[4:]) {
		case grantCopy:
			h.CopyCalls++
			h.CopyOps += ops
		case grantMap:
			h.Maps += ops
		default:
			h.OtherOps += ops
		}
	}
}

const traceFile = "/tmp/xentrace.out"

// traced runs work under xentrace.
func traced(work func() error) (h hypercalls, err error) {
	_ = os.Remove(traceFile)
	// The first trace after boot sets the size of the buffers.
	cmd := exec.Command("xentrace", "-D", "-S", "512", "-e", "0x0020f000", traceFile)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return h, err
	}
	for range 300 { // until it has made the buffers and the file
		time.Sleep(100 * time.Millisecond)
		if st, err := os.Stat(traceFile); err == nil && st.Size() > 0 {
			break
		}
	}
	workErr := work()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return h, fmt.Errorf("xentrace: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return h, fmt.Errorf("xentrace: %w", err)
	}
	if workErr != nil {
		return h, workErr
	}
	b, err := os.ReadFile(traceFile)
	if err != nil {
		return h, err
	}
	return parseTrace(b)
}
