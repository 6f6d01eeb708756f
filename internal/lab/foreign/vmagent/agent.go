// SPDX-License-Identifier: Apache-2.0

package vmagent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
)

// The guest has one interface. Its address is on the kernel's command line.
const (
	ifname  = "eth0"
	address = "address="
)

// Main is the first process of the guest. It does not return.
func Main() {
	err := run()
	fmt.Fprintln(os.Stderr, "agent:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run() error {
	if err := prepare(); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	ctx := context.Background()
	tcp, err := traffic.ListenTCP(fmt.Sprintf(":%d", Port))
	if err != nil {
		return err
	}
	go func() { _ = tcp.Serve(ctx) }()
	udp, err := traffic.ListenUDP(fmt.Sprintf(":%d", Port))
	if err != nil {
		return err
	}
	go func() { _ = udp.Serve(ctx) }()
	return obey(ctx, port)
}

// prepare mounts what is needed, loads the modules and configures the interface.
func prepare() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		if err := loadModule(filepath.Join("/modules", name+".ko")); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if err := netns.Up("lo"); err != nil {
		return err
	}
	if _, err := netlink.LinkByName(ifname); err != nil {
		return nil // a machine without an interface
	}
	for _, word := range strings.Fields(string(line)) {
		if cidr, ok := strings.CutPrefix(word, address); ok {
			if err := netns.AddAddr(ifname, cidr); err != nil {
				return err
			}
		}
	}
	return netns.Up(ifname)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// openPort opens the serial port, which passes bytes unchanged.
func openPort() (*os.File, error) {
	f, err := os.OpenFile(Device, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("serial port: %w", err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("serial port: %w", err)
	}
	return f, nil
}

// obey sends the state and then runs one command after the other.
func obey(ctx context.Context, port io.ReadWriter) error {
	if err := say(port, Answer{State: state()}); err != nil {
		return err
	}
	s := bufio.NewScanner(port)
	for s.Scan() {
		var r Request
		if json.Unmarshal(s.Bytes(), &r) != nil {
			continue // noise of a host that has just connected
		}
		a, err := do(ctx, r)
		if err != nil {
			a.Err = err.Error()
		}
		if err := say(port, a); err != nil {
			return err
		}
	}
	return errors.Join(s.Err(), errors.New("the serial port ended"))
}

func say(port io.Writer, a Answer) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = port.Write(append(b, '\n'))
	return err
}

// do runs a command.
func do(ctx context.Context, r Request) (a Answer, err error) {
	if r.Limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Limit)
		defer cancel()
	}
	switch r.Do {
	case "state":
		a.State = state()
	case "ping":
		addr, err := netip.ParseAddr(r.Addr)
		if err != nil {
			return a, err
		}
		p, err := traffic.DialPing(addr)
		if err != nil {
			return a, err
		}
		a.Ping, err = p.Ping(ctx, r.Ping)
		return a, errors.Join(err, p.Close())
	case "tcp":
		c, err := traffic.DialTCP(ctx, r.Addr)
		if err != nil {
			return a, err
		}
		a.TCP, err = traffic.SendTCP(ctx, c, r.TCP)
		return a, err
	case "udp":
		c, err := traffic.DialUDP(ctx, r.Addr, "")
		if err != nil {
			return a, err
		}
		a.UDP, err = traffic.SendUDP(ctx, c, r.UDP)
		return a, err
	case "reboot":
		// The answer has to leave before the machine resets.
		time.AfterFunc(200*time.Millisecond, func() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) })
	default:
		return a, fmt.Errorf("unknown command %q", r.Do)
	}
	return a, nil
}

// state reads the state of the interface. What cannot be read is left out.
func state() *State {
	s := &State{Boot: read("/proc/sys/kernel/random/boot_id"), Kernel: read("/proc/sys/kernel/osrelease")}
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return s
	}
	s.MTU = link.Attrs().MTU
	if n := link.Attrs().Statistics; n != nil {
		s.RxPackets, s.TxPackets, s.RxBytes, s.TxBytes = n.RxPackets, n.TxPackets, n.RxBytes, n.TxBytes
	}
	s.Features = read("/sys/class/net/" + ifname + "/device/features")
	queues, _ := filepath.Glob("/sys/class/net/" + ifname + "/queues/tx-*")
	s.Queues = len(queues)
	return s
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}
