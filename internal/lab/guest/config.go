// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strconv"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Config is the configuration of an agent.
type Config struct {
	// Xen is the directory of an embedded Xen. Empty means the real one: the
	// agent then runs in the guest, on /dev/xen/gntalloc, /dev/xen/evtchn and
	// /dev/xen/xenbus.
	Xen string
	// Domid is the domain to be, in an embedded Xen.
	Domid xen.Domid
	// NoXen is set for a guest that has virtio devices only.
	NoXen bool
	// Vifs and Virts are connected at the start.
	Vifs  []VifConfig
	Virts []VirtConfig
}

// VifConfig is the configuration of a vif and its network card.
type VifConfig struct {
	// Name is that of the network card; empty means eth0.
	Name string `json:"name,omitempty"`
	// MAC is the card's address; empty means the one that the toolstack wrote.
	MAC string `json:"mac,omitempty"`
	// Addrs are the card's addresses, like "192.0.2.2/24". IPv6 addresses are
	// usable at once.
	Addrs []string `json:"addrs,omitempty"`
	// Gateway is the next hop of the default route; empty means no such route.
	Gateway string `json:"gateway,omitempty"`
	// MTU is the card's; 0 means 1500.
	MTU int `json:"mtu,omitempty"`
	// Plain makes a card without offloads: no blank checksums and no
	// segmentation.
	Plain bool `json:"plain,omitempty"`
	// Reconnect connects again whenever the backend has closed the device and
	// is back in InitWait. Linux's netfront does not.
	Reconnect bool `json:"reconnect,omitempty"`
	// Front is the frontend. No feature at all means all that Linux's netfront
	// has, or, with Plain, those that need no offload.
	Front netfront.Config `json:"front,omitzero"`
}

// withDefaults completes the config.
func (c VifConfig) withDefaults() VifConfig {
	if c.Name == "" {
		c.Name = "eth0"
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.Front.MTU == 0 {
		c.Front.MTU = c.MTU
	}
	if c.Front.Features == (netfront.Features{}) {
		c.Front.Features = netfront.AllFeatures()
		if c.Plain {
			c.Front.Features = netfront.Features{RxCopy: true, RxNotify: true, SG: true, NoCsumOffload: true}
		}
	}
	return c
}

// Args returns the arguments from which ParseArgs makes the same config.
func (c Config) Args() []string {
	var args []string
	if c.Xen != "" {
		args = append(args, "--xen="+c.Xen, "--domid="+strconv.Itoa(int(c.Domid)))
	}
	if c.NoXen {
		args = append(args, "--no-xen")
	}
	for _, v := range c.Vifs {
		args = append(args, "--vif="+toJSON(v))
	}
	for _, v := range c.Virts {
		args = append(args, "--virt="+toJSON(v))
	}
	return args
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

// ParseArgs reads the agent's command line. With -h or --help it writes a usage
// text to w and returns flag.ErrHelp.
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
	f.Func("vif", "a vif to connect, as a `JSON` object like {\"name\":\"eth0\",\"addrs\":[\"192.0.2.2/24\"]}", func(s string) error {
		var v VifConfig
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			return err
		}
		c.Vifs = append(c.Vifs, v)
		return nil
	})
	f.BoolVar(&c.NoXen, "no-xen", false, "have virtio devices only")
	f.Func("virt", "a virtio device with a vhost-user back end, as a `JSON` object like {\"mac\":\"02:00:00:00:00:01\",\"addrs\":[\"192.0.2.2/24\"],\"front\":{\"socket\":\"/run/sock\",\"pairs\":2}}", func(s string) error {
		var v VirtConfig
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			return err
		}
		c.Virts = append(c.Virts, v)
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
