// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
)

// Netbackd configures netbackd as the back end of one device.
type Netbackd struct {
	Exe    string
	Socket string
	// Connect: the front end listens at Socket.
	Connect bool
	TAP     string
	Queues  int      // 0 is 1
	Args    []string // more arguments of `netbackd vhost-user`
}

// StartNetbackd starts netbackd and waits for its socket, unless it connects.
func StartNetbackd(ctx context.Context, n Netbackd) (*lab.Process, error) {
	args := []string{"vhost-user", "--socket-path", n.Socket, "--tap", n.TAP, "--queues", strconv.Itoa(max(n.Queues, 1))}
	if n.Connect {
		args = append(args, "--connect")
	}
	p, err := lab.Start("netbackd", n.Exe, append(args, n.Args...)...)
	if err == nil && !n.Connect {
		err = awaitSocket(ctx, p, n.Socket)
	}
	return p, err
}

// StartDPDKBackend starts testpmd as the back end of a device, with a TAP: io between a port
// of vhost and a port of the TAP. CPU is as in [Testpmd].
func (p Programs) StartDPDKBackend(ctx context.Context, name, socket, tap string, cpu int) (*lab.Process, error) {
	t, err := p.StartTestpmd(ctx, Testpmd{
		Name:    name,
		Devices: []string{"net_vhost0,iface=" + socket + ",queues=1", "net_tap0,iface=" + tap},
		Mode:    "io",
		CPU:     cpu,
	})
	if err == nil {
		err = awaitSocket(ctx, t, socket)
	}
	return t, err
}

// StartPasst starts passt as the back end of a device. The guest has the address, and passt
// connects the gateway, and a port of the host's loopback interface, with the guest.
func (p Programs) StartPasst(ctx context.Context, socket, address, gateway string, port int) (*lab.Process, error) {
	t, err := p.start("passt", Passt, "--vhost-user", "-s", socket, "-f", "--runas", "0",
		"-a", address, "-n", "24", "-g", gateway, "-t", strconv.Itoa(port))
	if err == nil {
		err = awaitSocket(ctx, t, socket)
	}
	return t, err
}

// awaitSocket waits until a process has made its socket.
func awaitSocket(ctx context.Context, p *lab.Process, path string) error {
	for {
		if info, err := os.Stat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-p.Done():
			return fmt.Errorf("%s ended:\n%s", p.Name, lastLines(p.Log(), 20))
		case <-ctx.Done():
			p.Kill()
			return fmt.Errorf("%s does not listen: %w:\n%s", p.Name, ctx.Err(), lastLines(p.Log(), 20))
		}
	}
}
