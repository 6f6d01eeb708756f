// SPDX-License-Identifier: Apache-2.0

package procwire

import (
	"bytes"
	"testing"
)

// FuzzFrame: a frame of the other process is refused, or stays within its rule and is made of
// the same bytes again.
func FuzzFrame(f *testing.F) {
	for kind := range rules {
		for c := classNotice; c <= classFailure; c++ {
			h := header{kind: kind, class: c, id: uint32(c - 1)}
			f.Add(h.append(nil), 0)
		}
	}
	f.Add(append((&header{kind: kindEcho, class: classFailure, id: 1, body: 6}).append(nil), 28, 0, 0, 0, 0, 0), 0)
	f.Fuzz(func(t *testing.T, frame []byte, files int) {
		h, body, err := decode(frame, files)
		if err != nil {
			return
		}
		if again := append(h.append(nil), body...); !bytes.Equal(again, frame) {
			t.Errorf("frame %x was read as %+v, which is %x", frame, h, again)
		}
		if check(&h, rules, rules) != nil {
			return
		}
		r := rules[h.kind]
		switch h.class {
		case classNotice, classRequest:
			err = r.Ask.check(&h)
		case classAnswer:
			err = r.Answer.check(&h)
		case classFailure:
			if p, err := readFailure(h.kind, body); err == nil && (len(p.Text) > 10*maxText || p.Errno > maxErrno) {
				t.Errorf("failure %+v", p)
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// FuzzReader: no body makes a reader read beyond its end, or allocate more than it has.
func FuzzReader(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 'x'}, []byte{6, 7, 8})
	f.Fuzz(func(t *testing.T, body, ops []byte) {
		r := NewReader(body)
		used := 0
		for _, op := range ops {
			switch op % 9 {
			case 0:
				r.U8()
				used++
			case 1:
				r.Bool()
				used++
			case 2:
				r.U16()
				used += 2
			case 3:
				r.U32()
				used += 4
			case 4:
				r.I64()
				used += 8
			case 5:
				used += len(r.Raw(int(op)))
			case 6:
				used += 4 + len(r.Blob(int(op)))
			case 7:
				used += 4 + len(r.String(int(op)))
			case 8:
				used += 4
				if n := r.Count(int(op), 2); n > len(r.b)/2 {
					t.Errorf("%d elements in %d bytes", n, len(r.b))
				}
			}
		}
		if err := r.End(); (err == nil) != (used == len(body) && !r.bad) {
			t.Errorf("%d of %d bytes were read, invalid: %t, End: %v", used, len(body), r.bad, err)
		}
	})
}
