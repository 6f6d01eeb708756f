// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/foreign/vmagent"
)

// QEMU configures a machine with a guest.
type QEMU struct {
	Program string // OldQEMU or NewQEMU
	Name    string // of the guest
	Dir     string // of its sockets; a short path
	Initrd  string
	// Socket is that of vhost-user; QEMU listens there if Listen is true, else it connects,
	// and again when the connection ends. Netdev replaces both: a -netdev without its id.
	Socket string
	Listen bool
	Netdev string
	Queues int    // pairs, and processors; 0 is 1
	Device string // more properties of the device, with a comma before each
	CIDR   string // address of the guest
	// Incoming is a file with the state of another machine, from which this one continues.
	Incoming string
}

// Guest is a running machine whose guest has an agent.
type Guest struct {
	*lab.Process
	agent   net.Conn
	answers chan vmagent.Answer // closed with the connection
	qmp     *monitor
}

// arguments returns the command line of QEMU.
func (q QEMU) arguments(kernel string) []string {
	queues := max(q.Queues, 1)
	netdev := q.Netdev
	var args []string
	if netdev == "" {
		chardev := "socket,id=c0,path=" + q.Socket
		if q.Listen {
			chardev += ",server=on,wait=off"
		} else if q.Program == OldQEMU {
			chardev += ",reconnect=1"
		} else {
			chardev += ",reconnect-ms=300"
		}
		args = append(args, "-chardev", chardev)
		netdev = fmt.Sprintf("vhost-user,chardev=c0,queues=%d", queues)
	}
	device := "virtio-net-pci,netdev=n0,mac=02:00:00:00:00:02,romfile=" + q.Device
	if queues > 1 {
		device += ",mq=on"
	}
	if q.Program == OldQEMU {
		device += ",vectors=0" // it crashes when it sets MSI-X up for vhost-user under TCG
	} else if queues > 1 {
		device += fmt.Sprintf(",vectors=%d", 2*queues+2)
	}
	args = append(args, "-netdev", netdev+",id=n0", "-device", device,
		"-machine", "q35,memory-backend=m0", "-accel", "tcg,thread=multi,tb-size=256",
		// QEMU's emulation of AVX corrupts processes now and then.
		"-cpu", "phenom,+pdpe1gb,+rdrand,-rdtscp", "-smp", strconv.Itoa(queues), "-m", "256M",
		"-object", "memory-backend-memfd,id=m0,size=256M,share=on",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+q.path("agent"), "-serial", "chardev:agent",
		"-qmp", "unix:"+q.path("qmp")+",server=on,wait=off",
		"-kernel", kernel, "-initrd", q.Initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off nokaslr audit=0 random.trust_cpu=on address="+q.CIDR)
	if q.Incoming != "" {
		args = append(args, "-incoming", "exec:cat "+q.Incoming)
	}
	return args
}

func (q QEMU) path(name string) string { return filepath.Join(q.Dir, q.Name+"."+name) }

// StartQEMU starts a machine, and returns before the guest has booted.
func (p Programs) StartQEMU(ctx context.Context, q QEMU) (*Guest, error) {
	kernel, err := p.kernel()
	if err != nil {
		return nil, err
	}
	process, err := p.start(q.Name, q.Program, q.arguments(kernel)...)
	if err != nil {
		return nil, err
	}
	g := &Guest{Process: process, answers: make(chan vmagent.Answer, 4)}
	g.agent, err = g.dial(ctx, q.path("agent"))
	if err == nil {
		go g.listen()
		g.qmp, err = g.openMonitor(ctx, q.path("qmp"))
	}
	if err != nil {
		g.Close()
		return nil, fmt.Errorf("%w:\n%s", err, lastLines(g.Log(), 20))
	}
	return g, nil
}

// dial connects to a socket of QEMU as soon as it exists.
func (g *Guest) dial(ctx context.Context, path string) (net.Conn, error) {
	for {
		c, err := net.Dial("unix", path)
		if err == nil {
			return c, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-g.Done():
			return nil, fmt.Errorf("%s ended", g.Name)
		case <-ctx.Done():
			return nil, err
		}
	}
}

// listen reads what the agent says, and drops lines that are no answers.
func (g *Guest) listen() {
	defer close(g.answers)
	s := bufio.NewScanner(g.agent)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var a vmagent.Answer
		if json.Unmarshal(s.Bytes(), &a) == nil {
			g.answers <- a
		}
	}
}

// Close ends the machine.
func (g *Guest) Close() {
	g.Kill()
	if g.agent != nil {
		_ = g.agent.Close()
		for range g.answers { // until listen has ended
		}
	}
	if g.qmp != nil {
		_ = g.qmp.conn.Close()
	}
}

// Up waits until the guest has booted.
func (g *Guest) Up(ctx context.Context) (vmagent.State, error) {
	a, err := g.answer(ctx)
	if err != nil {
		return vmagent.State{}, fmt.Errorf("%s does not boot: %w:\n%s", g.Name, err, lastLines(g.Log(), 30))
	}
	if a.State == nil {
		return vmagent.State{}, fmt.Errorf("%s: not the answer of a guest that has booted", g.Name)
	}
	return *a.State, nil
}

func (g *Guest) answer(ctx context.Context) (vmagent.Answer, error) {
	select {
	case a, ok := <-g.answers:
		if !ok {
			return a, errors.New("QEMU ended")
		}
		return a, nil
	case <-ctx.Done():
		return vmagent.Answer{}, ctx.Err()
	}
}

// Do runs a command in the guest.
func (g *Guest) Do(ctx context.Context, r vmagent.Request) (vmagent.Answer, error) {
	if t, ok := ctx.Deadline(); ok && r.Limit == 0 {
		r.Limit = time.Until(t)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return vmagent.Answer{}, err
	}
	if _, err := g.agent.Write(append(b, '\n')); err != nil {
		return vmagent.Answer{}, fmt.Errorf("%s: %w", g.Name, err)
	}
	a, err := g.answer(ctx)
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	if err != nil {
		return a, fmt.Errorf("%s in %s: %w", r.Do, g.Name, err)
	}
	return a, nil
}

// State asks the guest for its state.
func (g *Guest) State(ctx context.Context) (vmagent.State, error) {
	a, err := g.Do(ctx, vmagent.Request{Do: "state"})
	if err != nil {
		return vmagent.State{}, err
	}
	return *a.State, nil
}

// Monitor runs a command of QEMU's machine protocol and returns its result.
func (g *Guest) Monitor(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	return g.qmp.do(ctx, command, arguments)
}
