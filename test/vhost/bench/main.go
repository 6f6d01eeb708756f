// SPDX-License-Identifier: Apache-2.0

// Bench compares netbackd's vhost-user devices with other back ends, under the same front
// ends, in one run: see test/bench-vhost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// envDir names the folder with the programs of others, in the process with a network of its
// own, which cannot fetch them.
const envDir = "NETBACKD_VHOST_FETCHED"

// options are the flags.
type options struct {
	netbackd, bare, agent, build string
	json                         string
	rounds                       int
	only                         string
}

func main() {
	var o options
	flag.StringVar(&o.netbackd, "netbackd", "bin/netbackd", "`path` of netbackd")
	flag.StringVar(&o.bare, "bare", "", "`path` of the bare loop")
	flag.StringVar(&o.agent, "agent", "", "`path` of the guest's agent")
	flag.StringVar(&o.build, "build", "test/vhost/build", "`path` of the script that fetches the programs of others")
	flag.StringVar(&o.json, "json", "", "write the report to a `file`, too")
	flag.IntVar(&o.rounds, "rounds", 8, "`number` of runs of each peer")
	flag.StringVar(&o.only, "only", "", "measure only this: flood, receive, echo, wakes or guest")
	flag.Parse()
	code, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-vhost:", err)
		os.Exit(2)
	}
	os.Exit(code)
}

// run measures in namespaces of its own. The exit code is 1 if a goal was missed.
func run(o options) (int, error) {
	programs := foreign.At(os.Getenv(envDir))
	if programs.Dir() == "" {
		var err error
		if programs, err = foreign.Fetch(o.build); err == nil {
			err = os.Setenv(envDir, programs.Dir())
		}
		if err != nil {
			return 0, err
		}
	}
	if code, done := netns.Enter(); done {
		return code, nil
	}
	if err := errors.Join(netns.Available(), netns.CheckTUN()); err != nil {
		return 0, err
	}
	if err := netns.NoIPv6(); err != nil {
		return 0, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "nbb")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bed{options: o, ctx: ctx, programs: programs, dir: dir, report: &bench.Report{Host: host(programs)}}
	defer b.close()
	began := time.Now()
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"flood", b.flood}, {"receive", b.receive}, {"echo", b.echo}, {"wakes", b.wakes}, {"guest", b.guests},
	} {
		if o.only != "" && !strings.Contains(o.only, part.name) {
			continue
		}
		err := part.run()
		b.close()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	b.report.Seconds = time.Since(began).Seconds()
	if err := b.report.Print(os.Stdout); err != nil {
		return 0, err
	}
	if o.json != "" {
		if err := b.report.WriteJSON(o.json); err != nil {
			return 0, err
		}
	}
	if b.report.Missed() > 0 {
		return 1, nil
	}
	return 0, nil
}

// host describes this machine and the programs.
func host(p foreign.Programs) string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	s := fmt.Sprintf("Linux %s, %d CPUs, %s", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.Version())
	for _, name := range []string{foreign.OldQEMU, foreign.NewQEMU} {
		if v, err := p.Version(name); err == nil {
			s += ", " + v
		}
	}
	return s
}

func (b *bed) path(name string) string { return filepath.Join(b.dir, name) }
