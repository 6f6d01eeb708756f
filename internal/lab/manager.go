// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Manager is a service manager as systemd is one for netbackd: it receives the daemon's
// notifications, keeps files for it, and passes them to the next daemon.
type Manager struct {
	l     *Lab
	conn  *net.UnixConn
	ended chan struct{}
	hung  chan struct{} // closed by Close

	mu    sync.Mutex // guards all below
	hangs bool
	said  []string
	names []string
	files []int
}

// NewManager makes a service manager for the lab's daemon. It is closed before the lab.
func (l *Lab) NewManager() (*Manager, error) {
	path := filepath.Join(l.opts.Dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		return nil, err
	}
	m := &Manager{l: l, conn: conn, ended: make(chan struct{}), hung: make(chan struct{})}
	go func() { defer close(m.ended); m.serve() }()
	return m, nil
}

// Close ends the manager and closes what it keeps.
func (m *Manager) Close() error {
	close(m.hung)
	err := m.conn.Close()
	<-m.ended
	m.drop(func(string) bool { return true })
	return err
}

// Start starts a daemon with the kept files, and waits until it is ready.
func (m *Manager) Start(ctx context.Context) error {
	if err := m.Launch(false); err != nil {
		return err
	}
	return m.l.AwaitDaemon(ctx)
}

// Launch is like Start, and does not wait. halted is as for [Lab.LaunchService].
func (m *Manager) Launch(halted bool) error {
	m.mu.Lock()
	env := []string{
		"NOTIFY_SOCKET=" + m.conn.LocalAddr().String(), "WATCHDOG_USEC=3000000",
		fmt.Sprintf("LISTEN_FDS=%d", len(m.files)), "LISTEN_FDNAMES=" + strings.Join(m.names, ":"),
	}
	var files []*os.File // copies; the daemon may have its own dropped at once
	var errs []error
	for _, fd := range m.files {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		files = append(files, os.NewFile(uintptr(own), "kept"))
	}
	m.mu.Unlock()
	if len(errs) == 0 {
		errs = append(errs, m.l.LaunchService(env, files, halted))
	}
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// serve receives notifications until the socket is closed.
func (m *Manager) serve() {
	text, rights := make([]byte, 4096), make([]byte, 64)
	for {
		m.mu.Lock()
		hangs := m.hangs
		m.mu.Unlock()
		if hangs {
			<-m.hung
			return
		}
		n, rn, _, _, err := m.conn.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		file := -1
		if c, err := unix.ParseSocketControlMessage(rights[:rn]); err == nil && len(c) == 1 {
			if fds, err := unix.ParseUnixRights(&c[0]); err == nil && len(fds) == 1 {
				unix.CloseOnExec(fds[0])
				file = fds[0]
			}
		}
		m.hear(string(text[:n]), file)
	}
}

// hear acts on one notification.
func (m *Manager) hear(text string, file int) {
	_, name, _ := strings.Cut(text, "FDNAME=")
	name, _, _ = strings.Cut(name, "\n")
	switch {
	case strings.HasPrefix(text, "FDSTORE=1"):
		m.mu.Lock()
		m.names, m.files = append(m.names, name), append(m.files, file)
		m.mu.Unlock()
		return
	case strings.HasPrefix(text, "FDSTOREREMOVE=1"):
		m.drop(func(n string) bool { return n == name })
	case file >= 0: // a barrier
		_ = unix.Close(file)
	}
	m.mu.Lock()
	m.said = append(m.said, text)
	m.mu.Unlock()
}

// drop closes kept files.
func (m *Manager) drop(which func(name string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	var files []int
	for i, n := range m.names {
		if which(n) {
			_ = unix.Close(m.files[i])
		} else {
			names, files = append(names, n), append(files, m.files[i])
		}
	}
	m.names, m.files = names, files
}

// Hang makes the manager read no more.
func (m *Manager) Hang() {
	m.mu.Lock()
	m.hangs = true
	m.mu.Unlock()
}

// Addr returns the address of its socket.
func (m *Manager) Addr() *net.UnixAddr { return m.conn.LocalAddr().(*net.UnixAddr) }

// Kept returns the names of the files that it keeps.
func (m *Manager) Kept() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.names...)
}

// Heard returns the other notifications.
func (m *Manager) Heard() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.said...)
}
