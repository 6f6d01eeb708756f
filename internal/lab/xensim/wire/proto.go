// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Names of the sockets in the simulation's directory.
const (
	HypercallSocket = "hyp.sock"       // this package's messages
	XenstoreSocket  = "xenstored.sock" // dom0's connection to xenstored, the xenstore protocol
)

// Version is the version of the messages. Both ends come from one source tree,
// but a client may outlive the binary it was started from.
const Version = 3

// Limits.
const (
	// MaxMessage is the longest message in bytes: below the default size of a
	// socket buffer (net.core.wmem_default), which a packet has to fit in.
	MaxMessage = 128 * 1024

	// MaxRefs is the most grant references of one map or allocation: the
	// embedded Linux's xen_gntdev.limit. The kernel's default is 65536, which
	// no frontend comes near.
	MaxRefs = 15 * 1024

	// MaxSegments is the most segments of one copy message. Longer batches
	// are sent as several, as the kernel passes them on 16 at a time.
	MaxSegments = 4096

	// MaxUnmask is the most ports of one unmask message.
	MaxUnmask = 1024

	// MaxName is the longest name of a domain in bytes.
	MaxName = 64

	// MaxListed is the most domains of one reply to a list.
	MaxListed = 64
)

// Kind is the kind of file that a connection stands for.
type Kind uint32

// The kinds of connections.
const (
	KindDomain   Kind = 1 + iota // the domain itself: its memory and its lifetime
	KindGntdev                   // /dev/xen/gntdev
	KindEvtchn                   // /dev/xen/evtchn
	KindGntalloc                 // /dev/xen/gntalloc
	KindXenbus                   // /dev/xen/xenbus
	KindControl                  // the toolstack's domctl, for dom0 only
)

// String returns a word for errors.
func (k Kind) String() string {
	switch k {
	case KindDomain:
		return "domain"
	case KindGntdev:
		return "gntdev"
	case KindEvtchn:
		return "evtchn"
	case KindGntalloc:
		return "gntalloc"
	case KindXenbus:
		return "xenbus"
	case KindControl:
		return "control"
	}
	return fmt.Sprintf("unknown(%d)", uint32(k))
}

// Op is a call. The comments give the words after the operation in a request,
// and those after the errno in a reply. All are native-endian.
type Op uint32

// The calls of every kind of connection.
const (
	OpHello Op = iota // see Hello -> u32 file (and the fd of a pipe for KindEvtchn, of a stream for KindXenbus)
)

// The calls of KindDomain.
const (
	OpMemory     Op = 0x10 + iota // -> u32 pages, u32 max grant frames, fd
	OpSetupTable                  // u32 frames -> u32 frames now
)

// The calls of KindGntdev.
const (
	OpMap    Op = 0x20 + iota // u32 domid, u32 refs... -> u64 index
	OpMmap                    // u64 index, u32 count, u32 writable -> u32 frame..., u64 vma, fd; EINVAL: u32 ref's number, u32 status
	OpMunmap                  // u64 vma ->
	OpUnmap                   // u64 index, u32 count ->
	OpCopy                    // u32 count, 24-byte segments... -> u16 status...
	OpAdopt                   // u32 pid, u64 address, u32 word at it -> u32 file
	OpJoin                    // -> fd of one more connection for the file
)

// The calls of KindEvtchn.
const (
	OpBindInterdomain Op = 0x30 + iota // u32 domid, u32 remote port -> u32 port
	OpBindUnbound                      // u32 domid -> u32 port
	OpUnbind                           // u32 port ->
	OpNotify                           // u32 port; one-way
	OpUnmask                           // u32 port...; one-way
	OpRestrict                         // u32 domid ->
	OpReset                            // ->
)

// The calls of KindGntalloc.
const (
	OpAlloc   Op = 0x40 + iota // u32 domid, u32 count, u32 writable -> u64 index, {u32 ref, u32 frame}..., fd
	OpDealloc                  // u64 index, u32 count ->
)

// The calls of KindControl. Arguments and results are JSON.
const (
	OpCreateDomain Op = 0x50 + iota // DomainConfig -> u32 domid
	OpDestroy                       // u32 domid ->
	OpPause                         // u32 domid ->
	OpUnpause                       // u32 domid ->
	OpShutdown                      // u32 domid ->
	OpList                          // u32 first domid -> []DomainInfo, at most MaxListed, by domid
	OpAddFault                      // u32 domid, Fault ->
	OpClearFaults                   // u32 domid ->
	OpOverflow                      // u32 domid ->
)

// OneWay reports whether the call has no reply.
func (o Op) OneWay() bool { return o == OpNotify || o == OpUnmask }

// Overflow takes the place of a port in an event channel's pipe when the queue of ports
// has overflown. Nothing follows it until OpReset.
const Overflow = ^uint32(0)

// Hello opens a connection.
type Hello struct {
	Kind  Kind
	Domid xen.Domid
	// Probe is an address in the caller's memory that holds Probed. The
	// simulation reads it to check, before the first copy, that it may read the
	// caller's memory.
	Probe uint64
	// File is 0 to open a file, else the number of an open file of this process,
	// which the connection joins as one more thread: calls on one thread do not
	// wait for those on others. Only KindGntdev can be joined.
	File uint32
}

// HelloSize is the length of an OpHello message.
const HelloSize = 5*4 + 8

// Probed is the word that Hello.Probe points to.
const Probed uint32 = 0x6e657462

// ErrMessage is returned for a message with a wrong layout.
var ErrMessage = errors.New("malformed message")

// AppendHello appends the OpHello message.
func AppendHello(b []byte, h Hello) []byte {
	b = AppendU32(b, uint32(OpHello), Version, uint32(h.Kind), uint32(h.Domid), h.File)
	return AppendU64(b, h.Probe)
}

// ParseHello reads an OpHello message.
func ParseHello(msg []byte) (Hello, error) {
	r := Reader{b: msg}
	op, version := Op(r.U32()), r.U32()
	h := Hello{Kind: Kind(r.U32())}
	domid := r.U32()
	h.Domid, h.File = xen.Domid(domid), r.U32()
	h.Probe = r.U64()
	if err := r.Done(); err != nil {
		return Hello{}, err
	}
	if op != OpHello || domid > 0xffff {
		return Hello{}, ErrMessage
	}
	if version != Version {
		return Hello{}, fmt.Errorf("client speaks version %d, this is version %d: start both from one binary", version, Version)
	}
	return h, nil
}

// AppendU32 appends words to a message.
func AppendU32(b []byte, words ...uint32) []byte {
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

// AppendU64 appends a 64-bit word to a message.
func AppendU64(b []byte, w uint64) []byte { return binary.NativeEndian.AppendUint64(b, w) }

// AppendErrno appends the start of a reply: 0 or the errno of a failure.
func AppendErrno(b []byte, errno unix.Errno) []byte { return AppendU32(b, uint32(errno)) }

// Reader decodes a message. It returns zeros past the end; Done then returns an error.
type Reader struct {
	b     []byte
	short bool
}

// NewReader reads the message msg from its start.
func NewReader(msg []byte) *Reader { return &Reader{b: msg} }

// U32 returns the next word.
func (r *Reader) U32() uint32 {
	if len(r.b) < 4 {
		r.b, r.short = nil, true
		return 0
	}
	w := binary.NativeEndian.Uint32(r.b)
	r.b = r.b[4:]
	return w
}

// U64 returns the next 64-bit word.
func (r *Reader) U64() uint64 {
	if len(r.b) < 8 {
		r.b, r.short = nil, true
		return 0
	}
	w := binary.NativeEndian.Uint64(r.b)
	r.b = r.b[8:]
	return w
}

// Left returns the number of bytes left.
func (r *Reader) Left() int { return len(r.b) }

// Rest returns the remaining bytes.
func (r *Reader) Rest() []byte {
	b := r.b
	r.b = nil
	return b
}

// Done returns ErrMessage if the message was shorter or longer than the reads.
func (r *Reader) Done() error {
	if r.short || len(r.b) > 0 {
		return ErrMessage
	}
	return nil
}

// ParseCopyReply decodes the reply to an OpCopy of n segments. The statuses have two bytes
// each, low one first. There are none after an errno.
func ParseCopyReply(msg []byte, n int) (errno unix.Errno, status []byte, ok bool) {
	if len(msg) < 4 {
		return 0, nil, false
	}
	errno, status = unix.Errno(binary.NativeEndian.Uint32(msg)), msg[4:]
	return errno, status, errno != 0 || len(status) == 2*n
}

// Send writes one packet, with files attached when there are any. It returns
// io.EOF when the other end is gone.
func Send(fd int, msg []byte, files ...int) error {
	if len(msg) > MaxMessage {
		return unix.EMSGSIZE
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	for {
		var err error
		if len(files) > 0 {
			err = unix.Sendmsg(fd, msg, oob, nil, unix.MSG_NOSIGNAL)
		} else {
			// Allocates nothing. Go turns SIGPIPE into EPIPE.
			_, err = unix.Write(fd, msg)
		}
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EPIPE, unix.ECONNRESET, unix.ENOTCONN:
			return io.EOF
		default:
			return err
		}
	}
}

// Receive reads one packet into buf, which should have MaxMessage bytes. It
// returns io.EOF when the other end is gone.
func Receive(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
		case err == unix.ECONNRESET, err == nil && n == 0:
			return 0, io.EOF
		default:
			return n, err
		}
	}
}

// ReceiveFile is like Receive for a packet that may have a file attached; the file
// is -1 when it has none.
func ReceiveFile(fd int, buf []byte) (n, file int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	var oobn int
	for {
		n, oobn, _, _, err = unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECONNRESET || err == nil && n == 0 {
			return 0, -1, io.EOF
		}
		if err != nil {
			return 0, -1, err
		}
		break
	}
	file = -1
	cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, -1, err
	}
	for i := range cmsgs {
		if fds, err := unix.ParseUnixRights(&cmsgs[i]); err == nil && len(fds) == 1 {
			file = fds[0]
		}
	}
	return n, file, nil
}
