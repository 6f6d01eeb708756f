// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
)

// turnConn calls the data path outside of the goroutine's turn, because a call waits for
// workers, for up to a second. Its methods are those of [dataplane.Conn].
type turnConn struct {
	conn *dataplane.Conn
	turn *budget.Turn
}

func (c turnConn) SetHash(h *steer.Config) (err error) {
	c.turn.Aside(func() { err = c.conn.SetHash(h) })
	return err
}

func (c turnConn) SetSteering(to *steer.Config) (err error) {
	c.turn.Aside(func() { err = c.conn.SetSteering(to) })
	return err
}

// Resteer runs change, a system call, within the turn.
func (c turnConn) Resteer(from, to *steer.Config, change func() error) (err error) {
	c.turn.Aside(func() {
		err = c.conn.Resteer(from, to, func() (err error) {
			c.turn.Do(func() { err = change() })
			return err
		})
	})
	return err
}

func (c turnConn) AddGrants(queue int, p *staticgrant.Prepared) (now []netif.GrefEntry, err error) {
	c.turn.Aside(func() { now, err = c.conn.AddGrants(queue, p) })
	return now, err
}

func (c turnConn) RemoveGrants(queue int, list []netif.GrefEntry) (r *staticgrant.Removed, now []netif.GrefEntry, err error) {
	c.turn.Aside(func() { r, now, err = c.conn.RemoveGrants(queue, list) })
	return r, now, err
}
