// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"
)

func TestParseTimes(t *testing.T) {
	for in, want := range map[string][2]time.Duration{
		"27188731 33560 25\n": {27188731, 33560},
		"0 0 0\n":             {},
		"9223372036854775807 9223372036854775807 1000\n": {1<<63 - 1, 1<<63 - 1},
		"12":        {12},
		"":          {},
		"1 2":       {1, 2},
		"1 2 3 4 5": {1, 2},
	} {
		if ran, waited := parseTimes([]byte(in)); ran != want[0] || waited != want[1] {
			t.Errorf("%q: %d, %d, want %d", in, ran, waited, want)
		}
	}
}

// TestDelayFile reads the file of a thread.
func TestDelayFile(t *testing.T) {
	onThread(func() {
		var d delayFile
		d.close()
		if err := d.open(); err != nil {
			t.Log(err)
			return
		}
		ran, first := d.read()
		for range 1000 {
			if r, next := d.read(); next < first || next-first > time.Minute || r < ran {
				t.Errorf("%v, %v after %v, %v", r, next, ran, first)
			}
		}
		if n := testing.AllocsPerRun(10, func() { d.read() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		_ = d.file.Close()
		if _, next := d.read(); next < first+time.Hour {
			t.Errorf("without a file: %v", next)
		}
		d.close()
	})
}
