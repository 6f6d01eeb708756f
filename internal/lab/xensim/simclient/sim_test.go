// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/xensim"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMain(m *testing.M) {
	runAsChild()
	goleak.VerifyTestMain(m)
}

// sim is a simulation that runs in this process, and dom0's toolstack.
type sim struct {
	t    testing.TB
	dir  string
	dom0 *simclient.Conn
	ctl  *simclient.Control
}

func startSim(t testing.TB) *sim {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- xensim.Run(ctx, dir, xensim.Options{Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("simulation did not start: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("simulation ended with %v", err)
		}
	})
	s := &sim{t: t, dir: dir}
	s.dom0 = s.join(0)
	s.ctl = must(s.dom0.Control())(t)
	t.Cleanup(func() { s.ctl.Close() })
	return s
}

// must returns the value of a call that cannot fail in the test.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// join makes this process part of a domain.
func (s *sim) join(domid xen.Domid) *simclient.Conn {
	s.t.Helper()
	c := must(simclient.Dial(s.dir, domid))(s.t)
	s.t.Cleanup(func() { c.Close() })
	return c
}

// guest makes a domain and joins it.
func (s *sim) guest(cfg simclient.DomainConfig) *simclient.Conn {
	s.t.Helper()
	return s.join(must(s.ctl.CreateDomain(cfg))(s.t))
}

func (s *sim) grants(c *simclient.Conn) *simclient.Grants {
	s.t.Helper()
	g := must(c.Grants())(s.t)
	s.t.Cleanup(func() { g.Close() })
	return g
}

func (s *sim) events(c *simclient.Conn) *simclient.Events {
	s.t.Helper()
	e := must(c.Events())(s.t)
	s.t.Cleanup(func() { e.Close() })
	return e
}

func (s *sim) pages(c *simclient.Conn) *simclient.Pages {
	s.t.Helper()
	p := must(c.Pages())(s.t)
	s.t.Cleanup(func() { p.Close() })
	return p
}

func (s *sim) memory(c *simclient.Conn) *simclient.Memory {
	s.t.Helper()
	m := must(c.Memory())(s.t)
	s.t.Cleanup(func() { m.Close() })
	return m
}

// until calls f until it returns true, for 10 s at most.
func (s *sim) until(what string, f func() bool) {
	s.t.Helper()
	for limit := time.Now().Add(10 * time.Second); !f(); {
		if time.Now().After(limit) {
			s.t.Fatalf("never came true: %s", what)
		}
	}
}

// info returns a domain as the toolstack sees it.
func (s *sim) info(domid xen.Domid) simclient.DomainInfo {
	s.t.Helper()
	return must(s.ctl.Domain(domid))(s.t)
}

// runAsChild runs this test binary as a child process with a role.
func runAsChild() {
	dir := os.Getenv("XENSIM_TEST_DIR")
	var err error
	switch role := os.Getenv("XENSIM_TEST_ROLE"); role {
	case "":
		return
	case "sim":
		err = simChild(dir)
	case "backend":
		err = backendChild(dir)
	case "guest":
		err = guestChild(dir)
	default:
		err = fmt.Errorf("no such role: %s", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child starts this binary in a role and waits for the line that it writes when it is
// ready. The child ends with the test at the latest.
func child(t testing.TB, dir, role string, env ...string) (cmd *exec.Cmd, line string) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, "XENSIM_TEST_ROLE="+role, "XENSIM_TEST_DIR="+dir)...)
	cmd.Stderr = os.Stderr
	out := must(cmd.StdoutPipe())(t)
	must(cmd.StdinPipe())(t) // children wait for it to end
	ok(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // may have ended already
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: no word from it: %v", role, err)
	}
	return cmd, strings.TrimSpace(line)
}

// wait writes a line and blocks until the process is killed.
func wait(line ...any) {
	fmt.Println(line...)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// simProcess is like startSim with the simulation in a process of its own.
func simProcess(t testing.TB) *sim {
	t.Helper()
	s := &sim{t: t, dir: t.TempDir()}
	child(t, s.dir, "sim")
	s.dom0 = s.join(0)
	s.ctl = must(s.dom0.Control())(t)
	t.Cleanup(func() { s.ctl.Close() })
	return s
}

// simChild serves until its standard input ends.
func simChild(dir string) error {
	ctx, cancel := context.WithCancel(context.Background())
	return xensim.Run(ctx, dir, xensim.Options{Ready: func() {
		go func() {
			wait("ready")
			cancel()
		}()
	}})
}
