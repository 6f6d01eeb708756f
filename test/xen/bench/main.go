// SPDX-License-Identifier: Apache-2.0

// Bench compares two back ends of one guest on a real Xen, or two modes of one back end.
// It has several commands: "serve" runs in a guest with a network; "front" runs in a guest
// without one and is the frontend of its vif; "phase" runs in dom0 while one of the back
// ends serves the guest's vif, and starts "hog" and "load" beside it; and "report" reads the
// records of the phases.
//
// Each item is a fixed amount of work: bytes through a TCP connection, datagrams, pings or
// bare frames. Its cost is the run time of each domain, which the hypervisor reports; when
// QEMU counts instructions instead of time, it is the number of instructions that the
// whole machine has executed.
//
// It uses Xen's accounting and tracing. It must not depend on the back end, which is only
// a label.
//
// It has to run with GODEBUG=asyncpreemptoff=1, so that no signal interrupts the threads
// that wait in the kernel.
package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
)

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("want serve, front, phase, report or disks")
	}
	flags := flag.NewFlagSet("bench "+args[0], flag.ExitOnError)
	switch args[0] {
	case "serve":
		return serve()
	case "front":
		static := flags.Bool("static", false, "have the back end keep all pages mapped")
		_ = flags.Parse(args[1:]) // exits
		return serveFront(*static)
	case "phase":
		p := phase{}
		flags.StringVar(&p.Boot, "boot", "", "label of the boot")
		flags.StringVar(&p.Backend, "backend", "", "label of the back end")
		flags.IntVar(&p.Phase, "phase", 0, "number of the phase")
		flags.Float64Var(&p.scale, "scale", 1, "how much work, relative to the standard")
		flags.IntVar(&p.reps, "reps", 2, "how often each item is measured")
		flags.IntVar(&p.daemon, "daemon", 0, "process whose system calls are counted")
		flags.StringVar(&p.socket, "socket", "/run/netbackd/control.sock", "control socket of that process")
		flags.StringVar(&p.only, "only", "", "measure only items with this in their name")
		flags.BoolVar(&p.trace, "trace", false, "count hypercalls and system calls, too")
		flags.BoolVar(&p.beside, "latency", false, "measure pings beside other processes of dom0")
		flags.StringVar(&p.Setup, "setup", "", "label of the guest's setup")
		flags.StringVar(&p.Dom0, "dom0", "", "label of dom0's kernel")
		flags.StringVar(&p.vif, "vif", "", "the guest's vif")
		flags.StringVar(&p.addr, "address", "", "the guest's address, if it has a network")
		out := flags.String("out", "", "file to add the results to")
		_ = flags.Parse(args[1:])
		return p.run(*out)
	case "hog":
		return hog()
	case "load":
		if len(args) != 2 {
			return fmt.Errorf("load: want the guest's address")
		}
		addr, err := netip.ParseAddr(args[1])
		if err != nil {
			return err
		}
		return load(peer{addr: addr})
	case "report":
		asJSON := flags.String("json", "", "write the report to this file, too")
		_ = flags.Parse(args[1:])
		return reportMain(flags.Args(), *asJSON)
	case "disks":
		asJSON := flags.String("json", "", "write the report to this file, too")
		_ = flags.Parse(args[1:])
		return disksMain(flags.Args(), *asJSON)
	}
	return fmt.Errorf("unknown command %q", args[0])
}
