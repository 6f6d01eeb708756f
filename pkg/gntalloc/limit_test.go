// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limit")
	if _, err := Limit(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for text, want := range map[string]int{"1024\n": 1024, "0\n": 0, "-1\n": -1} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := Limit(path); err != nil || n != want {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	if err := os.WriteFile(path, []byte("many"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Limit(path); !errors.Is(err, strconv.ErrSyntax) {
		t.Errorf("no number: %v", err)
	}
}

func TestShare(t *testing.T) {
	for limit, want := range map[int]int{-1: 0, 0: 0, 3: 3, 8: 6, 1024: 768, 4096: 3072, 24576: 23552} {
		if got := Share(limit); got != want {
			t.Errorf("share of %d is %d, want %d", limit, got, want)
		}
	}
}
