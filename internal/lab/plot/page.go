// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Fill replaces the text between two marks in a page, which stay. It does nothing if there is
// no page. The error is that of reading or writing it, or that it has not both marks.
func Fill(path, begin, end, text string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks %q and %q", path, begin, end)
	}
	return os.WriteFile(path, []byte(head+begin+text+end+tail), 0o644)
}
