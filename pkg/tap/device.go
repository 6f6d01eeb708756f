// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// Device is a TAP device and its queues. The package documentation describes which
// goroutines may call its methods.
type Device struct {
	index   atomic.Int32
	name    atomic.Pointer[string] // as last seen, for errors
	vnetHdr bool
	adopted bool
	single  bool // no IFF_MULTI_QUEUE
	deaf    bool // single, and it rests
	offload Offload
	wish    *Offload // offloads that the host wanted when last asked; nil: unknown
	// queues[i] is queue i here and in the kernel, because queues are added and
	// removed at the end only. Empty when closed.
	queues []*Queue
	// The first active queues are given to the host, the others detached.
	active int
}

// Index returns the interface index as it was when the device was last looked for.
// It changes when the device is moved to a network namespace in which another device
// has it.
// It may be called from any goroutine.
func (d *Device) Index() int { return int(d.index.Load()) }

// Adopted reports whether the device existed before.
func (d *Device) Adopted() bool { return d.adopted }

// VnetHdr reports whether each frame has a VnetHdr before it.
func (d *Device) VnetHdr() bool { return d.vnetHdr }

// Queues returns the number of queues of the device.
func (d *Device) Queues() int { return len(d.queues) }

// MaxQueues returns the number of queues that the device can have: 1 if it was made with
// Config.Single, else MaxQueues.
func (d *Device) MaxQueues() int {
	if d.single {
		return 1
	}
	return MaxQueues
}

// Queue returns queue i, counted from 0. It panics if there is none. It returns the
// same *Queue for i until the queue is closed.
func (d *Device) Queue(i int) *Queue { return d.queues[i] }

// wrap makes err an *Error of this device.
func (d *Device) wrap(op string, err error) error {
	if isGone(err) {
		err = ErrGone
	}
	return fail(op, d.lastName(), err)
}

func (d *Device) lastName() string {
	if p := d.name.Load(); p != nil {
		return *p
	}
	return ""
}

// fd0 returns the descriptor of the queue through which the device is controlled. An
// open device always has it.
func (d *Device) fd0() (int, error) {
	if len(d.queues) == 0 {
		return -1, ErrClosed
	}
	return d.queues[0].fd, nil
}

// Name returns the interface's name as it is now. It fails with [ErrGone] when
// the device was deleted.
func (d *Device) Name() (string, error) {
	fd, err := d.fd0()
	if err != nil {
		return "", d.wrap("name", err)
	}
	name, err := ifName(fd)
	if err != nil {
		return "", d.wrap("name", err)
	}
	return name, nil
}

// SetCarrier turns the carrier on or off. Without carrier the host sends nothing and a
// bridge blocks the port. Frames can be written nevertheless.
func (d *Device) SetCarrier(on bool) error {
	fd, err := d.fd0()
	if err == nil {
		err = setCarrier(fd, on)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		err = ErrNotSupported // before 5.0
	}
	return d.wrap("set carrier", err)
}

// SetPersist says whether the device outlives this process: see [Config].Persist.
func (d *Device) SetPersist(on bool) error {
	fd, err := d.fd0()
	if err == nil {
		err = setPersist(fd, on)
	}
	return d.wrap("set persistent", err)
}

// SetMTU sets the MTU, the bytes of a frame behind its Ethernet header: 68 to
// 65521.
func (d *Device) SetMTU(mtu int) error {
	return d.setLink(fmt.Sprintf("set mtu %d", mtu), func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetMTU(l, mtu)
	})
}

// SetTxQueueLen sets the number of frames that may wait in each queue to be read. The
// host drops more, and frames that wait beyond the new length.
func (d *Device) SetTxQueueLen(frames int) error {
	return d.setLink(fmt.Sprintf("set txqueuelen %d", frames), func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetTxQLen(l, frames)
	})
}

// SetMAC sets the hardware address of the host's end.
func (d *Device) SetMAC(mac net.HardwareAddr) error {
	return d.setLink(fmt.Sprintf("set address %v", mac), func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetHardwareAddr(l, mac)
	})
}

// SetNoQueue gives the device the queueing discipline noqueue: the host puts frames
// into the queues at once. Any other discipline would hold no frames either, because
// the driver never reports a full queue; it drops. (The host can set another one at
// any time.) Call it before the device comes up. Otherwise the kernel makes one of
// net.core.default_qdisc for each of the MaxQueues queues that it has allocated: 3.3
// MiB with pfifo_fast, 16 MiB with fq_codel.
//
// A discipline that the host has set stays: noqueue replaces only the kernel's own. If
// the device is up and has a carrier, frames may be lost meanwhile.
//
// It fails with [ErrNotSupported] if the kernel has no queueing disciplines.
func (d *Device) SetNoQueue() error {
	return d.setLink("set noqueue", func(h *netlink.Handle, l netlink.Link) error {
		if set, err := hasDiscipline(l.Attrs().Index); set || err != nil {
			return err
		}
		err := h.QdiscReplace(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT},
			QdiscType:  "noqueue",
		})
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
			return ErrNotSupported // no CONFIG_NET_SCHED
		}
		return err
	})
}

// SetUp brings the device up.
func (d *Device) SetUp() error { return d.setLink("set up", (*netlink.Handle).LinkSetUp) }

// AddAltName gives the device one more name, which it keeps when it is renamed or
// moved to another network namespace.
func (d *Device) AddAltName(name string) error {
	return d.setLink("add name "+name, func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkAddAltName(l, name)
	})
}

// hasDiscipline reports whether an interface of the calling thread's network namespace has
// a queueing discipline that was set. A discipline that the kernel makes by itself has
// no handle; others have.
func hasDiscipline(index int) (bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETQDISC, unix.NLM_F_ACK|unix.NLM_F_ECHO)
	req.AddData(&nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(index), Parent: netlink.HANDLE_ROOT})
	msgs, err := nlsock.Execute(req, unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil // none at all: it was never up
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, ErrNotSupported
	case err != nil || len(msgs) == 0:
		return false, err
	}
	return nl.DeserializeTcMsg(msgs[0]).Handle != 0, nil
}

// setLink changes the interface in the network namespace in which it is.
func (d *Device) setLink(op string, set func(*netlink.Handle, netlink.Link) error) error {
	p, link, err := d.look()
	if err == nil {
		err = p.in(func() error {
			return nlsock.Do(func(h *netlink.Handle) error { return set(h, link) })
		})
		p.close()
	}
	return d.wrap(op, err)
}

// SetSteering gives the device an eBPF program (BPF_PROG_TYPE_SOCKET_FILTER). Its
// result, modulo the number of queues, is the queue for a frame from the host. With a
// descriptor of -1 the kernel chooses again: it takes the queue on which frames of the
// same flow were last written.
func (d *Device) SetSteering(prog int) error {
	fd, err := d.fd0()
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETSTEERINGEBPF, prog)
	}
	return d.wrap("set steering", err)
}

// Info holds the host's data of a device.
type Info struct {
	Name string
	// Up: the device was brought up, which scripts do.
	Up bool
	// Carrier: there is a carrier. The host reports it only of a device that is up.
	Carrier bool
	// Operational: the host has acted on the carrier.
	Operational bool
	// Namespace identifies the network namespace in which the device is, "" if that
	// is the one of the calling thread.
	Namespace string
	AltNames  []string
	// MTU is in bytes, TxQueueLen in frames per queue.
	MTU, TxQueueLen int
	MAC             net.HardwareAddr
	// Master is the interface index of the bridge, 0 if there is none.
	Master int
	// XDP: an XDP program is attached, of the driver or a generic one.
	XDP   bool
	Stats Stats
}

// Stats are the host's counters of a device. The directions are the host's: it
// receives the frames that are written to the queues.
type Stats struct {
	RxPackets, RxBytes uint64
	RxDropped          uint64 // written while down, or without memory
	RxFrameErrors      uint64 // written with a bad VnetHdr
	TxPackets, TxBytes uint64
	TxDropped          uint64 // not read in time: the queue was full
}

// Info asks the host about the device. It fails with [ErrGone] when the device
// was deleted.
func (d *Device) Info() (Info, error) {
	p, link, err := d.look()
	if err != nil {
		return Info{}, d.wrap("info", err)
	}
	defer p.close()
	a := link.Attrs()
	info := Info{
		Name:       a.Name,
		Up:         a.RawFlags&unix.IFF_UP != 0,
		Carrier:    a.RawFlags&unix.IFF_LOWER_UP != 0,
		AltNames:   a.AltNames,
		MTU:        a.MTU,
		TxQueueLen: a.TxQLen,
		MAC:        a.HardwareAddr,
		Master:     a.MasterIndex,
		XDP:        a.Xdp != nil && a.Xdp.Attached,
	}
	info.Operational = a.OperState == netlink.OperUp
	if p.id != here {
		info.Namespace = p.ns.UniqueId()
	}
	if s := a.Statistics; s != nil {
		info.Stats = Stats{
			RxPackets: s.RxPackets, RxBytes: s.RxBytes,
			RxDropped: s.RxDropped, RxFrameErrors: s.RxFrameErrors,
			TxPackets: s.TxPackets, TxBytes: s.TxBytes,
			TxDropped: s.TxDropped,
		}
	}
	return info, nil
}

// Close removes the device from the host and closes its queues, even if it is
// persistent or another process has queues open. It takes some 15 ms, nearly all of it
// to wait for other CPUs. Each Close takes a thread, so close a bounded number of
// devices at a time. A closed device may be closed again.
func (d *Device) Close() error { return d.close("close", false) }

// CloseKeep closes the queues and leaves the device to a successor, which adopts it
// with [Create]. Until then it has no carrier, and frames that the host sends to it are
// lost. No frames are lost in a queue that another process keeps open for the
// successor: see [Adopt].
func (d *Device) CloseKeep() error { return d.close("close, keeping", true) }

func (d *Device) close(op string, keep bool) (err error) {
	if len(d.queues) == 0 {
		return nil
	}
	// The device may have been deleted already.
	perr := setPersist(d.queues[0].fd, keep)
	if perr != nil && (keep || !isGone(perr)) {
		err = perr
	}
	if keep || isGone(perr) {
		return d.wrap(op, errors.Join(err, d.closeQueues(0)))
	}
	p, link, lerr := d.look()
	err = errors.Join(err, d.closeQueues(0))
	if lerr == nil {
		// It still exists if another process has queues of it open.
		lerr = DeleteIn(p.id, link)
		p.close()
	}
	if !isGone(lerr) {
		err = errors.Join(err, lerr)
	}
	return d.wrap(op, err)
}

// closeQueues closes queue n and those above, the last first, so that none changes
// its number on the way: the kernel gives that of a closed queue to the last one.
func (d *Device) closeQueues(n int) error {
	var errs []error
	for i := len(d.queues) - 1; i >= n; i-- {
		errs = append(errs, d.queues[i].close())
	}
	clear(d.queues[n:])
	d.queues = d.queues[:n]
	d.active = min(d.active, n)
	return errors.Join(errs...)
}
