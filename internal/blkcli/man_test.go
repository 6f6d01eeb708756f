// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/lab/pagetest"
)

// TestManPage: the page names all commands and flags of the program, and no other flag. It
// explains each counter under the name that show prints.
func TestManPage(t *testing.T) {
	page := pagetest.ReadMan(t, "../../packaging/blkbackd.8")
	page.Commands(t, New(nil, nil, Steps{}))
	help := map[string]string{}
	for _, c := range blkplane.Counters {
		help[c.Name] = c.Help
	}
	page.Counters(t, help)
}
