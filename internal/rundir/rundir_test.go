// SPDX-License-Identifier: Apache-2.0

package rundir

import (
	"os"
	"path/filepath"
	"testing"
)

// TestReplace replaces a file, and leaves the old one if it cannot.
func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	want := func(text string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("file %q, %v; want %q", b, err, text)
		}
	}
	for _, text := range []string{"first", "second", ""} {
		if err := Replace(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		want(text)
	}
	if err := Replace(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+newSuffix, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("new")); err == nil {
		t.Error("replaced although the new file cannot be written")
	}
	want("old")
}

// TestRemove removes a file and the temporary file of a killed Replace. Neither need
// exist.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, names := range [][]string{{}, {path}, {path + newSuffix}, {path, path + newSuffix}} {
		for _, name := range names {
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if Base(name) != path {
				t.Errorf("%s belongs to %s", name, Base(name))
			}
		}
		if err := Remove(path); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%v are left of %v, %v", left, names, err)
		}
	}
}
