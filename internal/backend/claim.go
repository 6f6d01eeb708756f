// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Rival is another back end that may serve vifs of this domain, which is the
// kernel's. It takes every vif that appears while it is loaded, without asking; who
// wants one of them served here takes it away from the rival first.
type Rival interface {
	Loaded() bool
	Serves(domid xen.Domid, devid int) bool
}

// markKey is the key of a vif's directory that says who is to serve it. It is what
// makes a claim outlive the daemon, and it goes with the device.
const (
	markKey = "served-by"
	mark    = "netbackd"
)

var (
	// ErrRival: the kernel's driver has the vif.
	ErrRival = errors.New("the kernel's xen-netback serves it")
	// ErrNoRival: there is nobody to leave a vif to.
	ErrNoRival = errors.New("the kernel's xen-netback is not loaded")
)

// claimPatience bounds CanClaim, Claim and Release. Each makes some thirty requests to
// xenstored, which take seconds on a slow dom0 whose processors are busy with packets.
// libxl gives a hotplug script, which does two of the three, 40 s.
const claimPatience = 15 * time.Second

// request is something to be done by the goroutine in Run.
type request struct {
	do   func(context.Context) error
	done chan<- error
}

// ask has Run's goroutine do something.
func (b *Backend) ask(ctx context.Context, do func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case b.requests <- request{do, done}:
	case <-ctx.Done():
		return errors.New("netbackd has lost xenstore, or is about to end")
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("netbackd does not answer; is xenstored alive?")
	}
}

// rivals reports whether the rival has the vif.
func (b *Backend) rivals(k key) bool {
	return b.cfg.Rival != nil && b.cfg.Rival.Serves(k.domid, k.devid)
}

// claimed decides whether a vif is ours. Where there is a rival, only what was
// claimed is: an unclaimed vif that it does not serve is one that it is about to
// serve. Where there is none, all are, and are marked so that they stay ours if
// one comes.
func (b *Backend) claimed(k key) (bool, error) {
	switch {
	case b.cfg.Rival == nil:
		return true, nil
	case b.rivals(k):
		return false, nil
	case b.cfg.Rival.Loaded():
		got, err := b.store.Read(b.path(k) + "/" + markKey)
		if errors.Is(err, xenstore.ErrNotExist) {
			return false, nil
		}
		return got == mark, err
	}
	err := b.change(k, func(tx *xenstore.Tx) error { return tx.Write(b.path(k)+"/"+markKey, mark) })
	if errors.Is(err, ErrNoVif) {
		return false, nil // it went while we looked
	}
	return err == nil, err
}

// change changes a vif's directory, unless it is gone.
func (b *Backend) change(k key, f func(tx *xenstore.Tx) error) error {
	return b.store.Transaction(func(tx *xenstore.Tx) error {
		_, err := tx.Read(b.path(k) + "/state")
		if errors.Is(err, xenstore.ErrNotExist) {
			return fmt.Errorf("%v: %w", k, ErrNoVif)
		}
		if err != nil {
			return err
		}
		return f(tx)
	})
}

// leave leaves a vif to the rival. A mark from before it came is taken back.
func (b *Backend) leave(k key) error {
	b.mu.Lock()
	_, known := b.left[k]
	b.left[k] = struct{}{}
	b.mu.Unlock()
	if known {
		return nil
	}
	b.cfg.Log.Info("leaves a vif to the kernel's xen-netback", zap.Stringer("vif", k), zap.Uint16("domid", uint16(k.domid)))
	err := b.change(k, func(tx *xenstore.Tx) error { return b.unmark(tx, k) })
	if errors.Is(err, ErrNoVif) {
		return nil
	}
	return err
}

func (b *Backend) unmark(tx *xenstore.Tx, k key) error {
	for _, node := range [...]string{markKey, vif.ClaimedKey} {
		err := tx.Remove(b.path(k) + "/" + node)
		if err != nil && !errors.Is(err, xenstore.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (b *Backend) forgetLeft(k key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.left, k)
}

// listLeft is what is shown of the vifs that are not ours.
func (b *Backend) listLeft() []vif.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []vif.Status{}
	for k := range b.left {
		s := vif.Status{
			Name: k.String(), Domid: k.domid, Devid: k.devid, ServedBy: "nobody",
			Features: []string{}, Mcast: []string{}, Queues: []vif.QueueStatus{},
			Counters: map[string]uint64{},
		}
		if b.rivals(k) {
			s.ServedBy = "kernel"
		}
		list = append(list, s)
	}
	return list
}

// parseName reads the name of a vif.
func parseName(name string) (key, error) {
	id, _ := strings.CutPrefix(name, "vif")
	dom, dev, _ := strings.Cut(id, ".")
	k, ok := parseKey(dom, dev)
	if !ok || k.String() != name {
		return key{}, fmt.Errorf("%s: %w: vifs have names like vif1.0", name, ErrNoVif)
	}
	return k, nil
}

// CanClaim reports whether Claim would get a vif that the rival has now: nil, or
// what stands against it.
func (b *Backend) CanClaim(name string) error {
	k, err := parseName(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), claimPatience)
	defer cancel()
	return b.ask(ctx, func(context.Context) error {
		if b.vifs[k] != nil {
			return nil
		}
		there, err := b.store.Exists(b.path(k) + "/state")
		if err == nil && !there {
			err = fmt.Errorf("%v: %w", k, ErrNoVif)
		}
		if err != nil {
			return err
		}
		return vif.CanTakeOver(b.store, b.path(k), b.cfg.MaxQueues)
	})
}

// Claim makes a vif ours that the rival served until now, and returns when it has
// its TAP. What the rival's hotplug script has done is to be done again for that;
// a guest that is connected waits until it is. Claiming what is ours already only
// waits for the TAP.
func (b *Backend) Claim(name string) error {
	k, err := parseName(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), claimPatience)
	defer cancel()
	if err := b.ask(ctx, func(ctx context.Context) error { return b.claim(ctx, k) }); err != nil {
		return err
	}
	for {
		s, ok := b.statusOf(ctx, k)
		switch {
		case ok && s.Interface != "":
			return nil
		case ok && s.Error != "":
			return fmt.Errorf("%v: %s", k, s.Error)
		case ctx.Err() != nil:
			return fmt.Errorf("%v does not get its TAP", k)
		case !ok:
			return fmt.Errorf("%v: %w", k, ErrNoVif)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// statusOf is the status of one of our vifs, not ok if it is none.
func (b *Backend) statusOf(ctx context.Context, k key) (s vif.Status, ok bool) {
	b.mu.Lock()
	v := b.vifs[k]
	b.mu.Unlock()
	if v == nil {
		return s, false
	}
	return v.Status(ctx)
}

func (b *Backend) claim(ctx context.Context, k key) error {
	if b.vifs[k] != nil {
		return nil
	}
	if b.rivals(k) {
		return fmt.Errorf("%v: %w", k, ErrRival)
	}
	err := b.change(k, func(tx *xenstore.Tx) error {
		if there, err := tx.Exists(b.path(k) + "/hotplug-status"); err != nil {
			return err
		} else if !there { // the rival takes it away
			if err := tx.Write(b.path(k)+"/hotplug-status", ""); err != nil {
				return err
			}
		}
		if err := tx.Write(b.path(k)+"/"+vif.ClaimedKey, "1"); err != nil {
			return err
		}
		return tx.Write(b.path(k)+"/"+markKey, mark)
	})
	if err != nil {
		return err
	}
	b.cfg.Log.Info("claims a vif from the kernel's xen-netback", zap.Stringer("vif", k), zap.Uint16("domid", uint16(k.domid)))
	b.start(ctx, k)
	return nil
}

// Release is the way back: the vif is nobody's, for the rival to be bound to it.
// Lost is how many packets to the guest were on the way.
func (b *Backend) Release(name string) (lost int, err error) {
	k, err := parseName(name)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), claimPatience)
	defer cancel()
	err = b.ask(ctx, func(context.Context) error {
		v := b.vifs[k]
		switch {
		case v == nil:
			return fmt.Errorf("%v: %w", k, ErrNoVif)
		case b.cfg.Rival == nil || !b.cfg.Rival.Loaded():
			return ErrNoRival
		}
		if lost, err = v.Release(ctx); err != nil {
			return err
		}
		return b.change(k, func(tx *xenstore.Tx) error {
			if err := b.unmark(tx, k); err != nil {
				return err
			}
			return tx.Write(b.path(k)+"/hotplug-status", "")
		})
	})
	return lost, err
}
