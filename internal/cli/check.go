// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// answerTimeout bounds the time in which xenstored and the daemon must answer.
const answerTimeout = 2 * time.Second

func newCheckCmd() *cobra.Command {
	var asJSON, perVif bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell whether this host is ready for netbackd",
		Long: `Check checks everything that netbackd needs of a host. It also looks for the kernel's
xen-netback, which cannot serve the same vifs. It changes nothing. Each line is ok, a
note, or a problem. Below a note or a problem is the command that repairs it, if any.

With --per-vif the kernel's driver is expected, and netbackd is to serve only vifs with
script=vif-netbackd.

With --json it prints {"schema":1,"ready":true,"checks":[{"name","level","text",
"fix"}]}. The exit code is 0 if there is no problem, 1 otherwise.`,
		Example: "  netbackd check\n  netbackd check --per-vif --json",
		Args:    Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			h := thisHost(SocketPath(c))
			h.PerVif = perVif
			r := h.Run(c.Context())
			out := c.OutOrStdout()
			var err error
			if asJSON {
				err = writeJSON(out, r)
			} else {
				err = writeCheck(out, r, isTerminal(out))
			}
			if err == nil && !r.Ready {
				err = fmt.Errorf("this host is not ready: problems: %d", r.Problems())
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&perVif, "per-vif", false, "expect xen-netback to serve vifs without script=vif-netbackd")
	return c
}

// thisHost returns the machine that the command runs on.
func thisHost(socket string) *hostcheck.Host {
	return &hostcheck.Host{
		Root:     "/",
		Version:  buildVersion(),
		Modprobe: modprobe,
		Uring:    iouring.Supported,
		Steering: steer.Probe,
		MultiTAP: func() error { return tap.Probe(tap.MultiQueue) },
		Open: func(path string) error {
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		},
		Xenstore: askXenstore,
		Daemon: func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, answerTimeout)
			defer cancel()
			client := netcontrol.NewClient(socket)
			defer client.Close()
			d, err := client.Daemon(ctx)
			return d.Version, err
		},
	}
}

// askXenstore returns nil if xenstored answers.
func askXenstore(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errors.New("no answer in time"))
	defer cancel()
	c, err := xenstore.Open(ctx)
	if err == nil {
		err = errors.Join(askDomid(ctx, c), c.Close())
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// askDomid reads this domain's number, which every domain may read. A missing node also
// counts as an answer, because dom0 may have none.
func askDomid(ctx context.Context, c *xenstore.Client) error {
	_, err := c.Read(ctx, "domid")
	if errors.Is(err, xenstore.ErrNotExist) {
		return nil
	}
	return err
}

// modprobe runs modprobe and returns its output. It returns fs.ErrNotExist if there is
// none.
func modprobe(ctx context.Context, arguments ...string) (string, error) {
	path, err := exec.LookPath("modprobe")
	if err != nil {
		// Some users have no sbin directory in their path.
		if path = "/sbin/modprobe"; !errors.Is(err, exec.ErrNotFound) {
			return "", err
		}
		if _, err := os.Stat(path); err != nil {
			return "", fs.ErrNotExist
		}
	}
	var out bytes.Buffer
	c := exec.CommandContext(ctx, path, arguments...)
	c.Stdout = &out
	err = c.Run()
	return out.String(), err
}

// isTerminal reports whether w shows colours.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// writeCheck prints the report.
func writeCheck(w io.Writer, r hostcheck.Report, colour bool) error {
	colours := map[hostcheck.Level]string{hostcheck.OK: "32", hostcheck.Note: "33", hostcheck.Problem: "1;31"}
	var table bytes.Buffer
	t := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	for _, i := range r.Items {
		fmt.Fprintf(t, "%s\t%s\t%s\n", i.Level, i.Name, i.Text)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	lines := strings.SplitAfter(table.String(), "\n")
	for n, i := range r.Items {
		line := lines[n]
		if colour {
			level := string(i.Level)
			line = "\x1b[" + colours[i.Level] + "m" + level + "\x1b[0m" + strings.TrimPrefix(line, level)
		}
		if i.Fix != "" {
			line += "           -> " + i.Fix + "\n"
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}
