// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/blkcases"
)

// TestAdvisoriesDocument: the tests, scripts and cases that docs/advisories.md names exist,
// there are at least 64, and each attack and race is in a table.
func TestAdvisoriesDocument(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(root + "/docs/advisories.md")
	if err != nil {
		t.Fatal(err)
	}
	_, tables, _ := strings.Cut(string(text), "## Advisories that apply")
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(tables, -1) {
		name := m[1]
		if !named[name] && !exists(t, root, name) {
			t.Errorf("there is no %s", name)
		}
		named[name] = true
	}
	if len(named) < 64 {
		t.Errorf("%d names, want 64 at least", len(named))
	}
	for _, a := range attacks() {
		if !named["test/scenario:TestAdvisories/"+a.name] {
			t.Errorf("no table has the attack %q", a.name)
		}
	}
	for _, r := range races {
		if !named["test/scenario:TestRaces/"+r.name] {
			t.Errorf("no table has the race %q", r.name)
		}
	}
	t.Logf("%d tests and cases", len(named))
}

// exists reports whether there is such a test, case or scenario below root.
func exists(t *testing.T, root, name string) bool {
	t.Helper()
	if strings.HasSuffix(name, ".sh") {
		_, err := os.Stat(filepath.Join(root, "test/xen/scenarios", name))
		return err == nil
	}
	place, test, _ := strings.Cut(name, ":")
	switch {
	case place == "blkcases":
		for _, c := range blkcases.All() {
			if c.Name == test {
				return true
			}
		}
		return false
	case !strings.Contains(place, "/"):
		b, err := os.ReadFile(filepath.Join(root, "test/cross", place+".ring"))
		return err == nil && strings.Contains(string(b), "\ncase "+test+"\n")
	}
	test, part, _ := strings.Cut(test, "/")
	if place == "test/scenario" && test == "TestAdvisories" && part != "" {
		for _, a := range attacks() {
			if a.name == part {
				return true
			}
		}
		return false
	}
	files, err := filepath.Glob(filepath.Join(root, place, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return strings.Contains(all.String(), "\nfunc "+test+"(") && (part == "" || strings.Contains(all.String(), `"`+part+`"`))
}
