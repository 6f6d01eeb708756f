// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"errors"
	"time"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Errors, to be used with errors.Is.
var (
	// ErrTimeout: the backend, or the script, took longer than libxl waits.
	ErrTimeout = errors.New("timed out")
	// ErrRemoved: the backend's state node went away while libxl waited.
	ErrRemoved = errors.New("the backend's directory was removed")
	// ErrExists: the domain has a device of that number.
	ErrExists = errors.New("device already exists")
	// ErrNoDevice: the domain has no device of that number.
	ErrNoDevice = errors.New("no such device")
	// ErrScript: the hotplug script failed.
	ErrScript = errors.New("hotplug script failed")
)

// Timeouts are libxl's limits. Zero values stand for libxl's own.
type Timeouts struct {
	Init    time.Duration // LIBXL_INIT_TIMEOUT, 10 s: attach, until state 2
	Destroy time.Duration // LIBXL_DESTROY_TIMEOUT, 10 s: detach, until state 6, each of two tries
	Script  time.Duration // LIBXL_HOTPLUG_TIMEOUT, 40 s: one run of the script
}

func (t Timeouts) withDefaults() Timeouts {
	for _, f := range []struct {
		d     *time.Duration
		libxl time.Duration
	}{{&t.Init, 10 * time.Second}, {&t.Destroy, 10 * time.Second}, {&t.Script, 40 * time.Second}} {
		if *f.d == 0 {
			*f.d = f.libxl
		}
	}
	return t
}

// Options are the settings of a Toolstack.
type Options struct {
	// Script runs in place of /etc/xen/scripts/vif-bridge; see
	// BridgeScript. Nil runs nothing, like a vif without a script.
	Script Script
	// Block runs in place of the script of a vbd. Nil runs nothing.
	Block Script
	// Timeouts are libxl's limits, for tests.
	Timeouts Timeouts
}

// Toolstack is a toolstack in dom0. Its methods may be called from several
// goroutines at once.
type Toolstack struct {
	ctl      *simclient.Control
	xs       *xenstore.Client
	script   Script
	block    Script
	timeouts Timeouts
}

// New starts a toolstack. dom0 is only needed until New returns.
func New(dom0 *simclient.Conn, opts Options) (*Toolstack, error) {
	ctl, err := dom0.Control()
	if err != nil {
		return nil, err
	}
	xs, err := dom0.Xenstore()
	if err != nil {
		_ = ctl.Close()
		return nil, err
	}
	return &Toolstack{ctl: ctl, xs: xs, script: opts.Script, block: opts.Block, timeouts: opts.Timeouts.withDefaults()}, nil
}

// Close ends the toolstack. Domains stay as they are.
func (t *Toolstack) Close() error { return errors.Join(t.xs.Close(), t.ctl.Close()) }

// Control returns the hypervisor's control interface, for operations that the toolstack
// does not offer.
func (t *Toolstack) Control() *simclient.Control { return t.ctl }

// Xenstore returns dom0's xenstore.
func (t *Toolstack) Xenstore() *xenstore.Client { return t.xs }
