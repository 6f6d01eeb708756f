// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"
)

func TestParseDelay(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"27188731 33560 25\n": 33560,
		"0 0 0\n":             0,
		"9223372036854775807 9223372036854775807 1000\n": 1<<63 - 1,
		"12":  0,
		"":    0,
		"1 2": 2,
	} {
		if got := parseDelay([]byte(in)); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
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
		first := d.read()
		for range 1000 {
			if next := d.read(); next < first || next-first > time.Minute {
				t.Errorf("%v after %v", next, first)
			}
		}
		if n := testing.AllocsPerRun(10, func() { d.read() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		_ = d.file.Close()
		if next := d.read(); next < first+time.Hour {
			t.Errorf("without a file: %v", next)
		}
		d.close()
	})
}
