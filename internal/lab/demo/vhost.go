// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

const vmAddr = "10.97.0.20"

// vhostUser shows a guest with a virtio device on `netbackd vhost-user`, which is killed in
// the middle of a stream.
func (s *show) vhostUser(ctx context.Context) error {
	s.say("\nNow a guest with a virtio device, as of QEMU, on netbackd vhost-user:\n")
	var d *lab.Vhost
	var vm *lab.VirtGuest
	err := s.step("guest vm", func() (came string, err error) {
		d, vm, came, err = s.startVM(ctx)
		return came, err
	})
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { return s.hostPing(ctx, "ping host -> vm", vmAddr) },
		func() error { return s.tcp(ctx, "TCP vm -> host", vm.Guest, hostAddr) },
		func() error { return s.hostTCP(ctx, "TCP host -> vm", vmAddr) },
		func() error { return s.killed(ctx, d, vm) },
	}
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return s.vmReport(ctx, d, vm)
}

func (s *show) startVM(ctx context.Context) (*lab.Vhost, *lab.VirtGuest, string, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	begin := time.Now()
	d, err := s.lab.StartVhost(ctx, "vm", "--bridge", bridge, "--queues", fmt.Sprint(s.Queues))
	if err != nil {
		return nil, nil, "", err
	}
	vm, err := s.lab.StartVirt(ctx, "vm", guest.VirtConfig{
		MAC: "52:54:00:00:00:20", Addrs: []string{vmAddr + "/24"},
		Front: vhostfront.Config{Socket: d.Socket, Pairs: s.Queues},
	})
	if err != nil {
		return d, nil, "", err
	}
	if _, err := vm.TCPServe(ctx, guest.ServeArgs{Addr: ":" + tcpPort}); err != nil {
		return d, vm, "", err
	}
	st, err := d.Status(ctx)
	if err != nil {
		return d, vm, "", err
	}
	return d, vm, fmt.Sprintf("%s connected in %v: %d pairs of queues, %s", st.Interface,
		time.Since(begin).Round(time.Millisecond), st.Active, strings.Join(shown(st.Features), " ")), nil
}

// shown leaves out the features that the front end serves.
func shown(features []string) (list []string) {
	for _, f := range features {
		switch f {
		case "mrg_rxbuf", "event_idx", "indirect_desc", "host_tso4", "host_tso6", "guest_tso4", "guest_tso6":
			list = append(list, f)
		}
	}
	return list
}

// killed kills netbackd vhost-user in the middle of a stream and starts it again. The guest
// notices a pause.
func (s *show) killed(ctx context.Context, d *lab.Vhost, vm *lab.VirtGuest) error {
	const what = "TCP vm -> host, kill -9"
	return s.step(what, func() (string, error) {
		type outcome struct {
			r   traffic.TCPResult
			err error
		}
		ended := make(chan outcome, 1)
		go func() {
			r, err := vm.TCPSend(ctx, guest.TCPSendArgs{Addr: hostAddr + ":" + tcpPort, TCPSend: s.stream()})
			ended <- outcome{r, err}
		}()
		select {
		case <-time.After(s.Stretch / 3):
		case <-ctx.Done():
		}
		begin := time.Now()
		d.Kill()
		if err := d.Restart(ctx); err != nil {
			return "", err
		}
		took := time.Since(begin)
		o := <-ended
		return fmt.Sprintf("%s; its successor was ready after %v", s.streamed(what, o.r), took.Round(time.Millisecond)), o.err
	})
}

// vmReport reports the packets that the back end has dropped since it was started again, and
// the rules that it broke.
func (s *show) vmReport(ctx context.Context, d *lab.Vhost, vm *lab.VirtGuest) error {
	st, err := d.Status(ctx)
	if err != nil {
		return err
	}
	if st.State != vhostnet.Connected {
		s.lose("vm is %s: %s", st.State, st.Error)
	}
	for _, c := range dataplane.Counters {
		if n := st.Counters[c.Name]; c.Kind == dataplane.Drop && n > 0 {
			s.lose("vm dropped %d: %s", n, c.Help)
		}
	}
	stats, err := vm.VirtStats(ctx, "")
	if err != nil {
		return err
	}
	for _, v := range stats.Violations {
		s.lose("guest vm accuses the back end: %s", v)
	}
	return nil
}
