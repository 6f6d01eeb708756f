// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"fmt"
	"strconv"
	"strings"
)

// Vdev is the number of a disk, or of a partition as a disk of its own, in the guest. It is
// the number of the disk's directory in xenstore, and the value of the key virtual-device;
// see the page xen-vbd-interface(7) of Xen.
type Vdev uint32

// Majors of Linux's device numbers, from which Vdevs are made.
const (
	majorIDE0 = 3
	majorSCSI = 8
	majorIDE1 = 22
	majorXen  = 202

	// vdevExtended marks the Vdev of a disk or a partition above 15: bits 8 to 27 have the
	// disk and bits 0 to 7 the partition.
	vdevExtended Vdev = 1 << 28
)

// Bounds of the numbers in a Vdev.
const (
	maxXenDisk           = 1<<20 - 1
	maxXenPartition      = 1<<8 - 1
	maxIDEPartition      = 1<<6 - 1
	maxPlainDisk         = 15
	maxPlainPart         = 15
	maxIDEDisk           = 3
	maxVdev         Vdev = 1<<31 - 1
)

// String returns the name that Linux gives the disk: xvda for 51712, xvda1 for 51713. Names
// that begin with hd and sd are those of old guests. A number that ParseVdev makes of no name
// is returned in decimal.
func (v Vdev) String() string {
	name := ""
	switch {
	case v&^(vdevExtended-1) == vdevExtended:
		name = vdevName("xvd", int(v&^vdevExtended>>8), int(v&0xff))
	case v>>8 == majorXen:
		name = vdevName("xvd", int(v>>4&0xf), int(v&0xf))
	case v>>8 == majorSCSI:
		name = vdevName("sd", int(v>>4&0xf), int(v&0xf))
	case v>>8 == majorIDE0:
		name = vdevName("hd", int(v>>6&1), int(v&0x3f))
	case v>>8 == majorIDE1:
		name = vdevName("hd", 2+int(v>>6&1), int(v&0x3f))
	}
	if back, err := ParseVdev(name); err == nil && back == v {
		return name
	}
	return strconv.FormatUint(uint64(v), 10)
}

// vdevName returns the name of a disk, or of a partition if part is not 0. Disks are a to z,
// aa to zz and so on.
func vdevName(prefix string, disk, part int) string {
	letters := ""
	for n := disk + 1; n > 0; n = (n - 1) / 26 {
		letters = string(rune('a'+(n-1)%26)) + letters
	}
	if part == 0 {
		return prefix + letters
	}
	return prefix + letters + strconv.Itoa(part)
}

// ParseVdev parses the name of a disk, as String returns it, or a number in decimal.
func ParseVdev(name string) (Vdev, error) {
	for _, kind := range [...]struct {
		prefix     string
		disk, part int // the largest
		number     func(disk, part int) Vdev
	}{
		{"xvd", maxXenDisk, maxXenPartition, xenVdev},
		{"sd", maxPlainDisk, maxPlainPart, func(d, p int) Vdev { return Vdev(majorSCSI<<8 | d<<4 | p) }},
		{"hd", maxIDEDisk, maxIDEPartition, ideVdev},
	} {
		if rest, ok := strings.CutPrefix(name, kind.prefix); ok {
			disk, part, ok := parseVdevName(rest)
			if ok && disk <= kind.disk && part <= kind.part {
				return kind.number(disk, part), nil
			}
		}
	}
	if n, err := strconv.ParseUint(name, 10, 32); err == nil && n <= uint64(maxVdev) {
		return Vdev(n), nil
	}
	return 0, fmt.Errorf("%q is not the name of a disk, such as xvda", Clip(name))
}

func xenVdev(disk, part int) Vdev {
	if disk <= maxPlainDisk && part <= maxPlainPart {
		return Vdev(majorXen<<8 | disk<<4 | part)
	}
	return vdevExtended | Vdev(disk<<8|part)
}

func ideVdev(disk, part int) Vdev {
	major := majorIDE0
	if disk > 1 {
		major = majorIDE1
	}
	return Vdev(major<<8 | disk&1<<6 | part)
}

// parseVdevName parses the letters of a disk and the number of a partition, which has no
// leading zero.
func parseVdevName(s string) (disk, part int, ok bool) {
	letters := strings.TrimRight(s, "0123456789")
	if letters == "" || len(letters) > 5 {
		return 0, 0, false
	}
	n := 0
	for _, c := range []byte(letters) {
		if c < 'a' || c > 'z' {
			return 0, 0, false
		}
		n = n*26 + int(c-'a') + 1
	}
	if digits := s[len(letters):]; digits != "" {
		p, err := strconv.ParseUint(digits, 10, 8)
		if err != nil || digits[0] == '0' {
			return 0, 0, false
		}
		part = int(p)
	}
	return n - 1, part, true
}
