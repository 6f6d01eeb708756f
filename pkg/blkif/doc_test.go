// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocument holds docs/block-indirect.md to the code: the table of reasons, and the
// places that it names.
func TestDocument(t *testing.T) {
	root := filepath.Join("..", "..")
	b, err := os.ReadFile(filepath.Join(root, "docs", "block-indirect.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 1; i < Reasons; i++ {
		r := Reason(i)
		answer := r.Status().String()
		if r.Fatal() {
			answer = "none: the queue stops for good"
		}
		if row := fmt.Sprintf("| `%s` | %s | %s |\n", r.String(), answer, r.Error()); !strings.Contains(text, row) {
			t.Errorf("there is no row %q", row)
		}
	}
	places := regexp.MustCompile("`([a-z0-9_/]+\\.go)`,\\s+`([A-Za-z-]+)`").FindAllStringSubmatch(text, -1)
	if len(places) < 30 {
		t.Errorf("only %d places in the code", len(places))
	}
	for _, p := range places {
		code, err := os.ReadFile(filepath.Join(root, p[1]))
		if err != nil || !regexp.MustCompile(`\b`+p[2]+`\b`).Match(code) {
			t.Errorf("%s has no %s (%v)", p[1], p[2], err)
		}
	}
}
