// SPDX-License-Identifier: Apache-2.0

package fuzzloop_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

// envFault makes the target fail.
const envFault = "FUZZLOOP_TEST_FAULT"

// FuzzKinds has an argument of each kind. It fails, if told so, when mutations have brought
// all of them to certain values.
func FuzzKinds(f *testing.F) {
	f.Add([]byte("one two"), "three", true, uint8(4), int16(-5), uint64(6))
	f.Add([]byte{}, "", false, uint8(0), int16(0), uint64(0))
	calls := 0
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte, s string, yes bool, small uint8, signed int16, large uint64) {
		calls++
		t.Cleanup(func() { calls-- })
		if os.Getenv(envFault) != "" && len(b) > 8 && s != "three" && small > 4 && signed < -5 && large > 6 {
			t.Fatal("the fault is found")
		}
		if calls > 1000 {
			t.Error("cleanups are left over")
		}
	})
}

// inCopy runs the target in a directory of its own.
func inCopy(t *testing.T, env ...string) (dir, said string, err error) {
	t.Helper()
	dir = t.TempDir()
	c := exec.Command(os.Args[0], "-test.run=^FuzzKinds$")
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	return dir, string(out), err
}

// TestCount: the target is executed as often as asked.
func TestCount(t *testing.T) {
	_, said, err := inCopy(t, fuzzloop.EnvCount+"=50001", fuzzloop.EnvSeed+"=7")
	if err != nil || !strings.Contains(said, "FuzzKinds: 50001 executions without guidance in ") || !strings.Contains(said, "seed 7,") {
		t.Errorf("%v\n%s", err, said)
	}
}

// TestFault: an input that fails is kept, and is one that Go reads and that fails again.
func TestFault(t *testing.T) {
	dir, said, err := inCopy(t, fuzzloop.EnvCount+"=1000000", envFault+"=1")
	if err == nil || !strings.Contains(said, "the fault is found") {
		t.Fatalf("not found: %v\n%s", err, said)
	}
	files, err := filepath.Glob(filepath.Join(dir, "testdata/fuzz/FuzzKinds/*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("kept %v, %v", files, err)
	}
	c := exec.Command(os.Args[0], "-test.run=^FuzzKinds$/"+filepath.Base(files[0]))
	c.Dir, c.Env = dir, append(os.Environ(), envFault+"=1")
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "the fault is found") {
		t.Errorf("the input does not fail again: %v\n%s", err, out)
	}
}
