// SPDX-License-Identifier: Apache-2.0

package systrace

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// Kinds of files that have no name of their own.
const (
	hypercall = "hypercall" // a device below /dev/xen of the embedded Xen
	xenstore  = "xenstore"
	netlinkFd = "netlink"
)

// Kind says what the call is, so that calls of the same kind in two runs have the same
// name: "ioctl TUNSETIFF tun", "write hypercall copy", "openat ring-N.N-N". Numbers in
// names are N. It is "" for a call of Go's runtime for itself. It is for handlers.
func (c *Call) Kind() string {
	if !c.named && !c.Runtime() {
		c.kind = c.describe()
	}
	c.named = true
	return c.kind
}

func (c *Call) describe() string {
	name := c.Name()
	switch c.Nr {
	case unix.SYS_OPENAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_NEWFSTATAT, unix.SYS_READLINKAT, unix.SYS_STATX:
		return name + " " + plainPath(c.text(c.Args[1]))
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return name + " " + plainPath(c.text(c.Args[3]))
	case unix.SYS_SOCKET:
		return fmt.Sprintf("%s %s", name, families[int(c.Args[0])])
	case unix.SYS_CONNECT, unix.SYS_BIND:
		return name + " " + c.address()
	case unix.SYS_BPF:
		return fmt.Sprintf("%s %d", name, c.Args[0])
	case unix.SYS_MMAP:
		if c.Args[3]&unix.MAP_ANONYMOUS != 0 {
			return name + " anonymous"
		}
		return name + " " + c.file(int(int32(c.Args[4])))
	case unix.SYS_EPOLL_CTL:
		return fmt.Sprintf("%s %d %s", name, c.Args[1], c.file(int(int32(c.Args[2]))))
	case unix.SYS_IOCTL:
		return fmt.Sprintf("%s %s %s", name, request(uint32(c.Args[1])), c.file(int(int32(c.Args[0]))))
	case unix.SYS_FCNTL:
		return fmt.Sprintf("%s %d %s", name, c.Args[1], c.file(int(int32(c.Args[0]))))
	}
	if noFile[c.Nr] {
		return name
	}
	words := []string{name, c.file(int(int32(c.Args[0])))}
	if m := c.message(words[1]); m != "" {
		words = append(words, m)
	}
	return strings.Join(words, " ")
}

// file returns the kind of an open file.
func (c *Call) file(fd int) string {
	if fd == 1 || fd == 2 {
		return "log"
	}
	link := c.Link(fd)
	switch {
	case strings.HasPrefix(link, "socket:"):
		return c.socket(link)
	case strings.HasPrefix(link, "pipe:"):
		return "pipe"
	case strings.HasPrefix(link, "anon_inode:"):
		return strings.Trim(strings.TrimPrefix(link, "anon_inode:"), "[]")
	case link == "/dev/net/tun":
		return "tun"
	case strings.HasPrefix(link, "/memfd:"):
		return "memfd"
	}
	return plainPath(strings.TrimSuffix(link, " (deleted)"))
}

// socket returns the kind of a socket with this link.
func (c *Call) socket(link string) string {
	kind, known := c.t.sockets[link]
	if known {
		return kind
	}
	inode := strings.Trim(strings.TrimPrefix(link, "socket:"), "[]")
	kind = "socket"
	for _, table := range []string{"netlink", "unix", "udp", "tcp"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", c.TID, table))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
			f := strings.Fields(line)
			switch {
			case table == "unix" && len(f) > 7 && f[6] == inode:
				kind = "socket " + plainPath(f[7])
			case table == "unix" && len(f) == 7 && f[6] == inode:
				kind = "socket unix"
			case table != "unix" && len(f) > 9 && f[9] == inode:
				kind = table
			}
		}
	}
	if kind != "socket" {
		c.t.sockets[link] = kind
	}
	return kind
}

// note remembers what later calls need: the peer of a socket, and the last message that was
// sent to it. A descriptor's number and a socket's inode are used again.
func (c *Call) note() {
	fd := int(int32(c.Args[0]))
	switch c.Nr {
	case unix.SYS_CONNECT:
		kind := c.address()
		switch kind {
		case wire.HypercallSocket:
			kind = hypercall
		case wire.XenstoreSocket:
			kind = xenstore
		}
		c.t.sockets[c.Link(fd)] = kind
	case unix.SYS_CLOSE:
		link := c.Link(fd)
		if strings.HasPrefix(link, "socket:") {
			c.Kind()
			delete(c.t.sockets, link)
			delete(c.t.sent, link)
		}
	case unix.SYS_WRITE:
		link := c.Link(fd)
		if kind := c.t.sockets[link]; kind == hypercall {
			c.t.sent[link] = c.hypercallOp(c.Args[1])
		}
	}
}

// message names the message that a call sends, or whose answer it reads.
func (c *Call) message(file string) string {
	switch {
	case file == hypercall && c.Nr == unix.SYS_WRITE:
		return c.hypercallOp(c.Args[1])
	case file == hypercall:
		return c.t.sent[c.Link(int(int32(c.Args[0])))]
	case file == xenstore && c.Nr == unix.SYS_WRITE:
		if b := c.Read(c.Args[1], 4); len(b) == 4 {
			return storeOp(binary.NativeEndian.Uint32(b))
		}
	case file == netlinkFd && (c.Nr == unix.SYS_SENDTO):
		if b := c.Read(c.Args[1], 6); len(b) == 6 {
			return netlinkOp(binary.NativeEndian.Uint16(b[4:]))
		}
	}
	return ""
}

func (c *Call) hypercallOp(addr uint64) string {
	b := c.Read(addr, 4)
	if len(b) < 4 {
		return ""
	}
	op := wire.Op(binary.NativeEndian.Uint32(b))
	if op == wire.OpHello {
		if b = c.Read(addr, 12); len(b) == 12 {
			return "open " + wire.Kind(binary.NativeEndian.Uint32(b[8:])).String()
		}
	}
	if name := hypercalls[op]; name != "" {
		return name
	}
	return fmt.Sprintf("%#x", uint32(op))
}

// address names the address of a connect or bind.
func (c *Call) address() string {
	n := int(min(c.Args[2], 128))
	b := c.Read(c.Args[1], n)
	if len(b) < 2 {
		return "?"
	}
	family := int(binary.NativeEndian.Uint16(b))
	if family != unix.AF_UNIX {
		return families[family]
	}
	// The path may lead through a descriptor of its directory.
	return digits.ReplaceAllString(filepath.Base(strings.TrimRight(string(b[2:]), "\x00")), "N")
}

var digits = regexp.MustCompile(`[0-9]+`)

// plainPath returns a path as part of a kind: below /dev, /proc and /sys all of it, else its
// last part. Numbers become N, and random names too.
func plainPath(p string) string {
	for _, top := range []string{"/dev/", "/proc/", "/sys/"} {
		if strings.HasPrefix(p, top) {
			return digits.ReplaceAllString(p, "N")
		}
	}
	return digits.ReplaceAllString(filepath.Base(p), "N")
}
