// SPDX-License-Identifier: Apache-2.0

// Bench measures two back ends of one guest against each other on a real Xen. It
// is three programs: "serve" runs in the guest, "phase" in dom0 while one of the
// back ends serves the guest's vif, and "report" reads what the phases wrote.
//
// Each item is the same fixed work: so many octets through a TCP connection, so
// many datagrams, so many pings. What it costs is read from the hypervisor, which
// knows how long each domain ran; when QEMU counts instructions instead of time,
// that is the number of instructions the whole machine has executed.
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
		return fmt.Errorf("want serve, phase or report")
	}
	flags := flag.NewFlagSet("bench "+args[0], flag.ExitOnError)
	switch args[0] {
	case "serve":
		return serve()
	case "phase":
		p := phase{}
		flags.StringVar(&p.Boot, "boot", "", "label of the boot")
		flags.StringVar(&p.Backend, "backend", "", "label of the back end")
		flags.IntVar(&p.Phase, "phase", 0, "number of the phase")
		flags.Float64Var(&p.scale, "scale", 1, "how much work, relative to the standard")
		flags.IntVar(&p.reps, "reps", 2, "how often each item is measured")
		flags.IntVar(&p.daemon, "daemon", 0, "process whose system calls are counted")
		flags.StringVar(&p.only, "only", "", "the one item to measure")
		flags.BoolVar(&p.trace, "trace", false, "count hypercalls and system calls, too")
		flags.StringVar(&p.peer, "peer", "10.0.0.2", "address of the guest")
		out := flags.String("out", "", "file to add the results to")
		_ = flags.Parse(args[1:]) // exits
		return p.run(*out)
	case "report":
		asJSON := flags.String("json", "", "write the report to this file, too")
		_ = flags.Parse(args[1:])
		return reportMain(flags.Args(), *asJSON)
	}
	return fmt.Errorf("unknown command %q", args[0])
}
