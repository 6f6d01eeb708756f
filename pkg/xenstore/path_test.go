// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestCheckPath(t *testing.T) {
	for _, c := range []struct {
		path        string
		node, watch bool
	}{
		{"/", true, true},
		{"/local/domain/0/backend/vif/1/0/state", true, true},
		{"device/vif/0/state", true, true},
		{"a", true, true},
		{"/a-b_c@D9", true, true},
		{"@releaseDomain", false, true},
		{"@releaseDomain/7", false, true},
		{"@introduceDomain", false, true},
		{"", false, false},
		{"//", false, false},
		{"/a/", false, false},
		{"a/", false, false},
		{"/a//b", false, false},
		{"@/", false, false},
		{"/a b", false, false},
		{"/a+b", false, false},
		{"/a.b", false, false},
		{"/a\x00b", false, false},
		{"/ä", false, false},
		{"/" + strings.Repeat("a", MaxAbsPath-1), true, true},
		{"/" + strings.Repeat("a", MaxAbsPath), false, false},
		{strings.Repeat("a", MaxRelPath), true, true},
		{strings.Repeat("a", MaxRelPath+1), false, false},
	} {
		for name, got := range map[string]struct {
			err  error
			want bool
		}{"node": {CheckPath(c.path), c.node}, "watch": {CheckWatchPath(c.path), c.watch}} {
			if (got.err == nil) != got.want {
				t.Errorf("%s %.40q: %v", name, c.path, got.err)
			}
			if got.err != nil && !errors.Is(got.err, ErrPath) {
				t.Errorf("%s %.40q: %v is not ErrPath", name, c.path, got.err)
			}
		}
	}
}

// FuzzPath compares CheckPath with the rules as docs/misc/xenstore.txt words
// them.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "", "a", "/a/b", "//", "/a/", "@x", "a@b", "/a+b", "\xff"} {
		f.Add(s)
	}
	form := regexp.MustCompile(`^(/|/?[A-Za-z0-9_@-]+(/[A-Za-z0-9_@-]+)*)$`)
	fuzzloop.Fuzz(f, func(t *testing.T, path string) {
		limit := MaxRelPath
		if strings.HasPrefix(path, "/") {
			limit = MaxAbsPath
		}
		watch := form.MatchString(path) && !strings.HasSuffix(path, "\n") && len(path) <= limit
		if err := CheckWatchPath(path); (err == nil) != watch {
			t.Errorf("watch path %q: %v, the rules say %t", path, err, watch)
		}
		node := watch && !strings.HasPrefix(path, "@")
		if err := CheckPath(path); (err == nil) != node {
			t.Errorf("node path %q: %v, the rules say %t", path, err, node)
		}
	})
}

func TestDomainPath(t *testing.T) {
	for domid, want := range map[xen.Domid]string{0: "/local/domain/0", 32751: "/local/domain/32751"} {
		if got := DomainPath(domid); got != want {
			t.Errorf("%d: %q", domid, got)
		}
	}
}
