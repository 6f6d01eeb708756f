// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/ringscript"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// newGuestScriptCmd returns the command that plays scripts as a guest's frontend, inside
// that guest.
func newGuestScriptCmd() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "script FILE...",
		Short: "Play scripts as a guest's frontend, watched by an umpire on the host",
		Args:  command.Args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) (err error) {
			var scripts []*ringscript.Script
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				s, err := ringscript.Parse(filepath.Base(f), string(text))
				if err != nil {
					return err
				}
				scripts = append(scripts, s)
			}
			host, leave, err := xenfront.Open(c.Context(), "", 0)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, leave()) }()
			umpire, err := ringscript.Call(c.Context(), host.Store)
			if err != nil {
				return err
			}
			defer umpire.Close()
			return ringscript.Play(c.Context(), host, netfront.DefaultDir, umpire, scripts, func(name string) (io.WriteCloser, error) {
				f, err := os.Create(filepath.Join(out, name+".said"))
				return &timed{WriteCloser: f, name: name, to: c.OutOrStdout(), began: time.Now()}, err
			})
		},
	}
	c.Flags().StringVarP(&out, "out", "o", ".", "`directory` for the transcripts, FILE.said")
	return c
}

// timed is the transcript of a script. Close prints how long the script took.
type timed struct {
	io.WriteCloser
	name  string
	to    io.Writer
	began time.Time
}

func (t *timed) Close() error {
	_, err := fmt.Fprintf(t.to, "%s: %d ms\n", t.name, time.Since(t.began).Milliseconds())
	return errors.Join(err, t.WriteCloser.Close())
}

// newGuestUmpireCmd returns the command that runs beside netbackd and reports the effects
// of a script to its player in the guest.
func newGuestUmpireCmd() *cobra.Command {
	var domid xen.Domid
	c := &cobra.Command{
		Use:   "umpire --domid N",
		Short: "Watch a guest's vif for the scripts that are played in that guest",
		Args:  command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			store, err := xenstore.Open(c.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, store.Close()) }()
			ctl := netcontrol.NewClient(command.SocketPath(c))
			defer ctl.Close()
			u := ringscript.NewUmpire(ringscript.UmpireConfig{Domid: domid, Store: store, Daemon: ctl})
			defer func() { err = errors.Join(err, u.Close()) }()
			return u.Serve(c.Context())
		},
	}
	c.Flags().Uint16Var((*uint16)(&domid), "domid", 0, "`number` of the guest's domain")
	return c
}
