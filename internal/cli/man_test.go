// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/pagetest"
)

// TestManPage: the page names all commands and flags of the program, and no other flag. It
// explains each counter under the name that show prints.
func TestManPage(t *testing.T) {
	page := pagetest.ReadMan(t, "../../packaging/netbackd.8")
	page.Commands(t, New(nil, nil))
	help := map[string]string{}
	for _, c := range dataplane.Counters {
		help[c.Name] = c.Help
	}
	page.Counters(t, help)
}
