// SPDX-License-Identifier: Apache-2.0

package blkguest

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strconv"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Config is the configuration of an agent.
type Config struct {
	// Xen is the directory of an embedded Xen. Empty means the real one: the agent then
	// runs in the guest, on /dev/xen/gntalloc, /dev/xen/evtchn and /dev/xen/xenbus.
	Xen string
	// Domid is the domain to be, in an embedded Xen.
	Domid xen.Domid
	// Disks are connected at the start.
	Disks []DiskConfig
}

// DiskConfig is the configuration of a disk.
type DiskConfig struct {
	// Name is the agent's name for it; empty means xvda.
	Name string `json:"name,omitempty"`
	// Seed tells the patterns of this disk from those of others.
	Seed uint64 `json:"seed,omitempty"`
	// Stubborn ignores a backend that closes, as a guest that uses the disk.
	Stubborn bool            `json:"stubborn,omitempty"`
	Front    blkfront.Config `json:"front,omitzero"`
}

func (c DiskConfig) withDefaults() DiskConfig {
	if c.Name == "" {
		c.Name = "xvda"
	}
	return c
}

// Args returns the arguments from which ParseArgs makes the same config.
func (c Config) Args() []string {
	var args []string
	if c.Xen != "" {
		args = append(args, "--xen="+c.Xen, "--domid="+strconv.Itoa(int(c.Domid)))
	}
	for _, d := range c.Disks {
		b, err := json.Marshal(d)
		if err != nil {
			panic(err) // strings and numbers
		}
		args = append(args, "--disk="+string(b))
	}
	return args
}

// ParseArgs reads the agent's command line. With -h or --help it writes a usage text to w
// and returns flag.ErrHelp.
func ParseArgs(args []string, w io.Writer) (Config, error) {
	var c Config
	f := flag.NewFlagSet("guest", flag.ContinueOnError)
	f.SetOutput(w)
	f.StringVar(&c.Xen, "xen", "", "`directory` of an embedded Xen; without it, use the real one's device nodes")
	f.Func("domid", "`number` of the domain to be, in an embedded Xen", func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		c.Domid = xen.Domid(n)
		return err
	})
	f.Func("disk", "a disk to connect, as a `JSON` object like {\"name\":\"xvda\",\"front\":{\"dir\":\"device/vbd/51712\",\"queues\":2}}", func(s string) error {
		var d DiskConfig
		if err := json.Unmarshal([]byte(s), &d); err != nil {
			return err
		}
		c.Disks = append(c.Disks, d)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return Config{}, err
	}
	if f.NArg() > 0 {
		return Config{}, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return c, nil
}
