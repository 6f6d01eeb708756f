// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"fmt"
	"slices"
)

// This file has the agent's commands for virtio devices, and the methods that send them.

func (a *agent) virtAttach(ctx context.Context, cfg VirtConfig) (VirtInfo, error) {
	cfg = cfg.withDefaults()
	a.mu.Lock()
	n := len(a.virts)
	known := slices.ContainsFunc(a.virts, func(v *virt) bool { return v.cfg.Name == cfg.Name })
	a.mu.Unlock()
	if known || n >= maxVifs {
		return VirtInfo{}, fmt.Errorf("%s: there is one already, or %d others", cfg.Name, maxVifs)
	}
	v, err := newVirt(ctx, cfg)
	if err != nil {
		return VirtInfo{}, err
	}
	info := v.info()
	a.mu.Lock()
	a.virts = append(a.virts, v)
	a.mu.Unlock()
	a.wg.Go(func() {
		v.serve(a.ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.virts = slices.DeleteFunc(a.virts, func(o *virt) bool { return o == v })
	})
	return info, nil
}

// onVirt runs f on the goroutine of a virtio device; an empty name means the first one.
func (a *agent) onVirt(ctx context.Context, args VifArgs, f func(*virt) error) error {
	a.mu.Lock()
	i := slices.IndexFunc(a.virts, func(v *virt) bool { return args.Vif == "" || v.cfg.Name == args.Vif })
	if i < 0 {
		a.mu.Unlock()
		return fmt.Errorf("no virtio device %q is attached", args.Vif)
	}
	v := a.virts[i]
	a.mu.Unlock()
	return v.do(ctx, func() error { return f(v) })
}

func (a *agent) virtDetach(ctx context.Context, args VifArgs) (none, error) {
	a.mu.Lock()
	i := slices.IndexFunc(a.virts, func(v *virt) bool { return args.Vif == "" || v.cfg.Name == args.Vif })
	if i < 0 {
		a.mu.Unlock()
		return none{}, fmt.Errorf("no virtio device %q is attached", args.Vif)
	}
	v := a.virts[i]
	a.mu.Unlock()
	return none{}, v.detach(ctx)
}

func (a *agent) virtInfo(ctx context.Context, args VifArgs) (info VirtInfo, err error) {
	err = a.onVirt(ctx, args, func(v *virt) error { info = v.info(); return nil })
	return info, err
}

func (a *agent) virtStats(ctx context.Context, args VifArgs) (s VirtStats, err error) {
	err = a.onVirt(ctx, args, func(v *virt) (err error) { s, err = v.stats(); return err })
	return s, err
}

func (a *agent) virtOp(ctx context.Context, args VirtArgs) (n int, err error) {
	err = a.onVirt(ctx, args.VifArgs, func(v *virt) (err error) { n, err = v.op(ctx, args); return err })
	return n, err
}

// VirtAttach waits for the back end of a virtio device, connects the device and makes its
// network card.
func (c *Client) VirtAttach(ctx context.Context, v VirtConfig) (VirtInfo, error) {
	return ask[VirtInfo](ctx, c, "virt-attach", v)
}

// VirtDetach stops the rings of a virtio device and removes it and its card.
func (c *Client) VirtDetach(ctx context.Context, name string) error {
	return c.Call(ctx, "virt-detach", VifArgs{name}, nil)
}

// VirtInfo describes a virtio device.
func (c *Client) VirtInfo(ctx context.Context, name string) (VirtInfo, error) {
	return ask[VirtInfo](ctx, c, "virt-info", VifArgs{name})
}

// VirtStats returns the counters of a virtio device and its back end's violations.
func (c *Client) VirtStats(ctx context.Context, name string) (VirtStats, error) {
	return ask[VirtStats](ctx, c, "virt-stats", VifArgs{name})
}

// Virt carries out an operation on a virtio device.
func (c *Client) Virt(ctx context.Context, args VirtArgs) (int, error) {
	return ask[int](ctx, c, "virt", args)
}
