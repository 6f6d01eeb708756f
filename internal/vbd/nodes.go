// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// nodes holds the contents of the backend directory.
type nodes struct {
	present     bool         // there is a state, and so a device
	state       xenbus.State // Unknown if the node holds no state
	frontendDir string
	online      bool
	hotplug     string
	hasHotplug  bool
	scriptErr   string // error text of the hotplug script, if it has failed
	script      string
	weight      string
	group       string // of vbds that share a disk process
	target      target
	offered     offer
	shown       shown
}

// target names the disk that the toolstack wants to be served, and the way to serve it.
type target struct {
	params       string
	physicalPath string // physical-device-path, from a hotplug script; it counts before params
	mode         string // has a w if the guest may write
	deviceType   string // disk or cdrom
	removable    bool
	noDiscard    bool // discard-enable is 0
}

// readOnly reports whether the guest may not write.
func (t *target) readOnly() bool { return !strings.Contains(t.mode, "w") || t.cdrom() }

func (t *target) cdrom() bool { return t.deviceType == "cdrom" }

// path returns the value that names the disk.
func (t *target) path() string {
	if t.physicalPath != "" {
		return t.physicalPath
	}
	return t.params
}

// options returns the options for opening the disk.
func (t *target) options(cache disk.Cache) (disk.Options, error) {
	o, err := disk.ParseParams(t.path())
	if err != nil {
		return o, err
	}
	o.ReadOnly, o.CDROM, o.Cache = t.readOnly(), t.cdrom(), cache
	return o, nil
}

// plugged reports whether the disk can be opened: the hotplug script is done, or there is no
// hotplug-status and so no script.
func (n *nodes) plugged() bool {
	return n.hotplug == "connected" || !n.hasHotplug && n.script == ""
}

// readState reads the state. A directory without one has been removed.
func (n *nodes) readState(ctx context.Context, r xenbus.Store, path string) error {
	k := xenbus.NewReader(ctx, r, path)
	state, ok := k.Text("state")
	if n.present = ok; !ok {
		return k.Err()
	}
	var err error
	if n.state, err = xenbus.ParseState(state); err != nil {
		n.state = xenbus.Unknown
	}
	return nil
}

// readRest reads everything except the state.
func (n *nodes) readRest(ctx context.Context, r xenbus.Store, path string) error {
	k := xenbus.NewReader(ctx, r, path)
	text := func(key string) (v string) { v, _ = k.Text(key); return v }
	n.frontendDir = text("frontend")
	n.online = text("online") != "0"
	n.hotplug, n.hasHotplug = k.Text("hotplug-status")
	n.scriptErr = ""
	if n.hotplug == "error" {
		n.scriptErr = text("hotplug-error")
	}
	n.script, n.weight, n.group = text("script"), text("weight"), xenbus.Clip(text("isolate"))
	n.target = target{
		params:       text("params"),
		physicalPath: text("physical-device-path"),
		mode:         text("mode"),
		deviceType:   text("device-type"),
		removable:    text("removable") == "1",
		noDiscard:    text("discard-enable") == "0",
	}
	n.offered.readBack(text)
	n.shown.readBack(text)
	return k.Err()
}

// offer holds the bounds for the frontend's choices, which the backend publishes before it
// knows the frontend.
type offer struct {
	maxSegments, maxQueues, maxOrder int
}

// Keys of an offer.
const (
	segmentsKey = "feature-max-indirect-segments"
	queuesKey   = "multi-queue-max-queues"
	orderKey    = "max-ring-page-order"
)

// offer returns the offer of the vbd.
func (v *Vbd) offer() offer {
	o := offer{v.cfg.MaxSegments, v.cfg.MaxQueues, v.cfg.MaxOrder}
	if o.maxSegments <= blkif.MaxDirect {
		o.maxSegments = 0
	}
	return o
}

// raiseOffer offers more to a frontend that has not chosen yet, if another back end has
// offered less: the kernel's driver, from which the vbd was taken. Nothing is withdrawn,
// since the frontend may be about to choose it.
func (v *Vbd) raiseOffer(ctx context.Context) error {
	was, own := v.nodes.offered, v.offer()
	to := offer{max(was.maxSegments, own.maxSegments), max(was.maxQueues, own.maxQueues), max(was.maxOrder, own.maxOrder)}
	if to == was || v.own != xenbus.InitWait || v.guest.state != xenbus.Initialising {
		return nil
	}
	err := v.changeDir(ctx, func(tx *xenstore.Tx) error { return v.writeNodes(ctx, tx, to.nodes()) })
	if err == nil {
		v.nodes.offered = to
	}
	return err
}

// nodes returns the nodes of the offer, with the empty value for one to be removed: another
// back end may have left it.
func (o offer) nodes() []node {
	list := []node{{segmentsKey, ""}, {queuesKey, strconv.Itoa(o.maxQueues)}, {orderKey, strconv.Itoa(o.maxOrder)}}
	if o.maxSegments > 0 {
		list[0].value = strconv.Itoa(o.maxSegments)
	}
	return list
}

// readBack reads the offer that this back end or a predecessor has made.
func (o *offer) readBack(text func(key string) string) {
	number := func(key string, most uint64) int {
		n, _ := xenbus.ParseUint("", text(key), 0, most)
		return int(n)
	}
	*o = offer{number(segmentsKey, blkif.MaxIndirect), max(number(queuesKey, maxQueues), 1), number(orderKey, blkif.MaxOrder)}
}

// maxQueues bounds the queues that a predecessor can have offered.
const maxQueues = 256

// shown holds the nodes that describe the disk to a connected frontend.
type shown struct {
	sectors    string
	sectorSize int
	persistent bool
}

func (s *shown) readBack(text func(key string) string) {
	size, _ := xenbus.ParseUint("", text(sectorSizeKey), 0, blkif.PageSize)
	*s = shown{text(sectorsKey), int(size), text(persistentKey) == "1"}
}

// node is a key of the backend directory.
type node struct{ key, value string }

// isPublished reports whether only the backend writes a key.
func isPublished(key string) bool {
	switch key {
	case segmentsKey, queuesKey, orderKey:
		return true
	}
	for _, k := range diskKeys {
		if k == key {
			return true
		}
	}
	return false
}
