// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// GuestConfig configures a driver.
type GuestConfig struct {
	// Foreign puts rings and buffers in pages that are not granted.
	Foreign bool
	// Features are added to those that the driver always uses.
	Features uint64
	// Size is the number of descriptors of a ring.
	Size int
	// MaxFrame bounds the frames, in bytes.
	MaxFrame int
}

func (c *GuestConfig) features() uint64 { return c.Features | required }

// RunGuest plays a guest with the devices of this domain, a guest of a real Xen. Commands
// come from in, a line each, and answers go to out.
func RunGuest(ctx context.Context, c GuestConfig, in io.Reader, out io.Writer) (err error) {
	store, err := xenstore.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	mem, free, err := c.memory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, free()) }()
	bell, err := newPortBell()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bell.close()) }()
	p, err := newPlayer(mem, bell, c.features(), c.Size, c.MaxFrame)
	if err != nil {
		return err
	}
	l := mem.layout(c.features(), c.Size)
	l.Ports = bell.ports
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := store.Write(ctx, Node, string(text)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Remove(context.WithoutCancel(ctx), Node)) }()
	return p.serve(ctx, in, out)
}

// memory makes the guest's memory.
func (c *GuestConfig) memory() (_ *Memory, free func() error, err error) {
	if c.Foreign {
		m, err := Foreign(c.features(), c.Size)
		if err != nil {
			return nil, nil, err
		}
		return m, m.Close, nil
	}
	dev, err := gntalloc.Open(gntalloc.DefaultPath)
	if err != nil {
		return nil, nil, err
	}
	m, err := Granted(dev, c.features(), c.Size)
	if err != nil {
		return nil, nil, errors.Join(err, dev.Close())
	}
	return m, func() error { return errors.Join(m.Close(), dev.Close()) }, nil
}

// serve plays. It reads commands from in and writes answers to out.
func (p *player) serve(ctx context.Context, in io.Reader, out io.Writer) error {
	fmt.Fprintln(out, "ready")
	commands := make(chan command)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(commands)
		answer := make(chan string, 1)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			select {
			case commands <- command{lines.Text(), answer}:
			case <-ctx.Done():
				return
			}
			select {
			case s := <-answer:
				fmt.Fprintln(out, s)
			case <-ctx.Done():
				return
			}
		}
	}()
	return p.run(ctx, commands)
}
