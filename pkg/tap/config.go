// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxQueues is the largest number of queues of a device (MAX_TAP_QUEUES).
const MaxQueues = 256

// Config describes the device that [Create] makes.
type Config struct {
	// Name is the interface's name, of 1 to 15 bytes.
	Name string
	// Queues is the number of queues to open, 1 to MaxQueues; 0 means 1.
	Queues int
	// Single makes a device that can have one queue only. The kernel allocates
	// memory for MaxQueues queues of any other device: some 230 KiB, against 35
	// (Linux 6.18). An adopted device stays as it was made.
	Single bool
	// VnetHdr puts a VnetHdr before each frame.
	VnetHdr bool
	// Offload lists the work on frames that the reader can complete itself. It needs
	// VnetHdr. If it is none, a new device has none, and an adopted one keeps its
	// offloads.
	Offload Offload
	// Persist lets the device, and its place in a bridge, outlive this process, even
	// if it is killed. Close removes the device nevertheless; CloseKeep does not.
	Persist bool
	// NoCarrier starts with the carrier off, like a cable that is not plugged
	// in yet: see SetCarrier.
	NoCarrier bool
}

// check returns the first fault of cfg. It does not depend on the machine.
func (cfg *Config) check() error {
	if err := checkName(cfg.Name); err != nil {
		return err
	}
	if cfg.Queues < 0 || cfg.Queues > MaxQueues {
		return fmt.Errorf("%w: %d, not 1 to %d", errQueues, cfg.Queues, MaxQueues)
	}
	if cfg.Single && cfg.Queues > 1 {
		return fmt.Errorf("%w: %d of a device with one queue only", errQueues, cfg.Queues)
	}
	return cfg.Offload.check(cfg.VnetHdr)
}

// flags returns the flags that the driver is to open the device with (TUNSETIFF).
func (cfg *Config) flags() uint16 {
	flags := uint16(flagsPlain)
	if cfg.VnetHdr {
		flags = flagsVnet
	}
	if cfg.Single {
		flags &^= unix.IFF_MULTI_QUEUE
	}
	return flags
}

// checkName follows the kernel's dev_valid_name, and refuses the '%' of names
// that the kernel would complete: two calls with the same name must mean the
// same device.
func checkName(name string) error {
	ok := name != "" && name != "." && name != ".." && len(name) < unix.IFNAMSIZ
	for _, c := range []byte(name) {
		switch c {
		case '/', ':', '%', ' ', '\t', '\n', '\v', '\f', '\r', 0:
			ok = false
		case 0xa0: // to the kernel's isspace, a blank
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%w: %q", errName, name)
	}
	return nil
}
