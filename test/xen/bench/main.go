// SPDX-License-Identifier: Apache-2.0

// Bench measures two back ends of one guest against each other on a real Xen, or two
// ways of one back end. It is several programs: "serve" runs in a guest with a
// network and "front" in one without, for whose vif it is the frontend; "phase" runs
// in dom0 while one of the back ends serves the guest's vif; and "report" reads what
// the phases wrote.
//
// Each item is the same fixed work: so many bytes through a TCP connection, so
// many datagrams, pings or bare frames. What it costs is read from the hypervisor,
// which knows how long each domain ran; when QEMU counts instructions instead of
// time, that is the number of instructions the whole machine has executed.
//
// It knows Xen's accounting and tracing. It must not know which back end serves:
// that is a label.
//
// It is to be run with GODEBUG=asyncpreemptoff=1, so that nothing interrupts the
// threads that wait in the kernel.
package main

import (
	"flag"
	"fmt"
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
		return fmt.Errorf("want serve, front, phase or report")
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
		flags.StringVar(&p.vif, "vif", "", "the guest's vif")
		flags.StringVar(&p.addr, "address", "", "the guest's address, if it has a network")
		out := flags.String("out", "", "file to add the results to")
		_ = flags.Parse(args[1:])
		return p.run(*out)
	case "report":
		asJSON := flags.String("json", "", "write the report to this file, too")
		_ = flags.Parse(args[1:])
		return reportMain(flags.Args(), *asJSON)
	}
	return fmt.Errorf("unknown command %q", args[0])
}
