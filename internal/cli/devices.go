// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// vifsAndDevices asks the daemon for its vifs with ask, and each process of a vhost-user
// device. Without a daemon there are no vifs, which is an error if there are no devices either.
func vifsAndDevices[V any](c *cobra.Command, ask func(*netcontrol.Client, context.Context) ([]V, error)) ([]V, []vhostnet.Status, error) {
	ctx := c.Context()
	devices, err := netcontrol.Devices(ctx, command.RunDir(c))
	if err != nil {
		return nil, nil, err
	}
	client := netcontrol.NewClient(command.SocketPath(c))
	defer client.Close()
	vifs, err := ask(client, ctx)
	if errors.Is(err, control.ErrNotRunning) && len(devices) > 0 {
		return []V{}, devices, nil
	}
	return vifs, devices, err
}

// findDevice returns the device of a name, or with an interface of that name. It returns nil
// if there is none.
func findDevice(ctx context.Context, c *cobra.Command, name string) (*vhostnet.Status, error) {
	devices, err := netcontrol.Devices(ctx, command.RunDir(c))
	if err != nil {
		return nil, err
	}
	for _, is := range []func(*vhostnet.Status) bool{
		func(s *vhostnet.Status) bool { return s.Name == name },
		func(s *vhostnet.Status) bool { return name != "" && s.Interface == name },
	} {
		for i := range devices {
			if is(&devices[i]) {
				return &devices[i], nil
			}
		}
	}
	return nil, nil
}

// writeDeviceRow prints a device as a line of the table of vifs.
func writeDeviceRow(w io.Writer, s *vhostnet.Status) {
	note := "vhost-user"
	switch {
	case s.Error != "" && s.State != vhostnet.Connected: // else it is that of an earlier session
		note += ": " + s.Error
	case s.Waits != "":
		note += ", waits for " + s.Waits
	}
	state := string(s.State)
	if state == "" {
		state = "-"
	}
	fmt.Fprintf(w, "%s\t-\t%s\t%d\t%s\t%d\t%s\t%d\t%s\t%d\t%s\n",
		s.Name, state, s.Active, shortVirtio(s.Features),
		s.Counters["tx_packets"], command.Size(s.Counters["tx_bytes"]),
		s.Counters["rx_packets"], command.Size(s.Counters["rx_bytes"]),
		drops(s.Counters), note)
}

// shortVirtio abbreviates a list of features of virtio, in the words of those of vifs.
func shortVirtio(names []string) string {
	has := func(n string) bool { return slices.Contains(names, n) }
	var short []string
	gso := ""
	if has("guest_tso4") {
		gso += "4"
	}
	if has("guest_tso6") {
		gso += "6"
	}
	if gso != "" {
		short = append(short, "gso"+gso)
	}
	for _, f := range []struct{ name, short string }{{"guest_csum", "csum"}, {"mrg_rxbuf", "mrg"}, {"ring_packed", "packed"}, {"mq", "mq"}} {
		if has(f.name) {
			short = append(short, f.short)
		}
	}
	if len(short) == 0 {
		return "-"
	}
	return strings.Join(short, ",")
}

// writeDevice prints one device.
func writeDevice(w io.Writer, s *vhostnet.Status, now time.Time) error {
	t := command.Table(w)
	row := func(k, format string, v ...any) { fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, v...)) }
	row("vhost-user", "%s, process %d", s.Name, s.PID)
	row("state", "%s", command.OrNone(string(s.State)))
	if s.Waits != "" {
		row("waits for", "%s", s.Waits)
	}
	if s.Error != "" {
		row("last error", "%s", s.Error)
	}
	row("socket", "%s (%s), %d front ends so far", command.OrNone(s.Socket), s.Mode, s.Sessions)
	if !s.Since.IsZero() {
		row("front end", "process %d, connected %v ago, driver status %#x", s.Frontend, now.Sub(s.Since).Round(time.Second), s.Driver)
	}
	if s.Interface != "" {
		made := "of the administrator"
		if s.Made {
			made = "made here"
		}
		row("interface", "%s (%s), %s, carrier %s", s.Interface, made, command.UpDown(s.Up), command.OnOff(s.Carrier))
		row("bridge", "%s", command.OrNone(s.Bridge))
		row("mtu", "%s", deviceMTU(s))
	}
	row("rate", "%s", s.Rate)
	row("steering", "%s", command.OrNone(s.Steering))
	row("features", "%s", command.OrNone(strings.Join(s.Features, " ")))
	row("offered", "%s", command.OrNone(strings.Join(s.Offered, " ")))
	row("memory", "%s", command.OrNone(memory(s)))
	if s.Logging {
		row("dirty log", "on: the guest is being migrated")
	}
	row("queue pairs", "%d enabled, %d offered", s.Active, s.Pairs)
	if err := t.Flush(); err != nil {
		return err
	}
	if err := writePairs(w, s); err != nil {
		return err
	}
	return writeCounterTable(w, s.Counters)
}

// deviceMTU prints the MTU of the interface, and that which the front end told.
func deviceMTU(s *vhostnet.Status) string {
	text := fmt.Sprintf("interface %d", s.MTU)
	if s.GuestMTU == 0 {
		return text
	}
	text += fmt.Sprintf(", guest %d", s.GuestMTU)
	if s.GuestMTU != s.MTU {
		text += " (they differ)"
	}
	return text
}

// memory describes the memory that the front end shares.
func memory(s *vhostnet.Status) string {
	var list []string
	for _, m := range s.Memory {
		text := fmt.Sprintf("%d regions of %s memory, %s bytes", m.Regions, m.Kind, command.Size(m.Bytes))
		if m.Flags != 0 {
			text += fmt.Sprintf(" of domain %d (flags %#x)", m.Domid, m.Flags)
		}
		list = append(list, text)
	}
	return strings.Join(list, "; ")
}

// writePairs prints the pairs of queues that the front end has started.
func writePairs(w io.Writer, s *vhostnet.Status) error {
	if !slices.ContainsFunc(s.Queues, func(q vhostnet.QueueStatus) bool { return q.Rx.Started || q.Tx.Started }) {
		return nil
	}
	fmt.Fprintln(w)
	t := command.Table(w)
	fmt.Fprintln(t, "PAIR\tWORKER\tTX RING\tRX RING\tTX PKTS\tRX PKTS\tTX PENDING\tRX BUFFERS FREE\tHELD\tOWES\tSYSCALLS/PKT\tCALLS/PKT")
	for i := range s.Queues {
		q := &s.Queues[i]
		if !q.Rx.Started && !q.Tx.Started {
			continue
		}
		n := q.Counters["tx_packets"] + q.Counters["rx_packets"]
		fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", i, q.Worker, ring(q.Tx), ring(q.Rx),
			q.Counters["tx_packets"], q.Counters["rx_packets"], q.Tx.Available, q.Rx.Available, q.Held, pairOwes(q),
			command.Ratio(q.Counters["syscalls"], n), command.Ratio(q.Counters["notifies"], n))
	}
	return t.Flush()
}

// ring describes the state of a ring.
func ring(r vhostnet.RingStatus) string {
	switch {
	case r.Error != "":
		return "broken: " + r.Error
	case !r.Started:
		return "stopped"
	}
	text := fmt.Sprintf("%d", r.Size)
	if r.Packed {
		text += " packed"
	}
	if !r.Enabled {
		text += ", disabled"
	}
	return text
}

// pairOwes returns the side that a pair waits for.
func pairOwes(q *vhostnet.QueueStatus) string {
	switch {
	case q.Held > 0 || q.Stalled:
		return "guest: rx buffers"
	case q.RateWaiting:
		return "rate limit"
	case q.Tx.Available > 0:
		return "netbackd: tx"
	}
	return "-"
}

// deviceNames returns the names of the devices, for completion.
func deviceNames(c *cobra.Command) []string {
	devices, err := netcontrol.Devices(c.Context(), command.RunDir(c))
	if err != nil {
		return nil
	}
	var names []string
	for i := range devices {
		names = append(names, devices[i].Name)
	}
	return names
}

// writeCounterTable prints the counters that are not 0, with their meaning.
func writeCounterTable(w io.Writer, counters map[string]uint64) error {
	if !slices.ContainsFunc(dataplane.Counters[:], func(c dataplane.CounterInfo) bool { return counters[c.Name] != 0 }) {
		return nil
	}
	fmt.Fprintln(w)
	t := command.Table(w)
	fmt.Fprintln(t, "COUNTER\tVALUE\tMEANING")
	for _, c := range dataplane.Counters {
		n := counters[c.Name]
		if n == 0 {
			continue
		}
		name := c.Name
		if c.Kind == dataplane.Drop {
			name = "drop " + name
		}
		fmt.Fprintf(t, "%s\t%d\t%s\n", name, n, c.Help)
	}
	return t.Flush()
}
