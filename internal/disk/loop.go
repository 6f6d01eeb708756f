// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// loopDevice returns the loop device, such as "/dev/loop0", that writes to the file or that
// would see it change, "" if there is none. The kernel's back end has files attached so,
// and takes no lock. A device that only reads, beside a disk that only reads, is no harm.
func (d *Disk) loopDevice() string {
	if d.id.Backing != KindFile {
		return ""
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range files {
		device := filepath.Dir(filepath.Dir(name))
		text, err := os.ReadFile(name)
		if err != nil || d.readOnly && readNumber(device+"/ro") == 1 {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(strings.TrimSuffix(string(text), "\n"), &st) != nil {
			continue // deleted, or in another mount namespace
		}
		if st.Dev == d.id.Device && st.Ino == d.id.Inode {
			return "/dev/" + filepath.Base(device)
		}
	}
	return ""
}
