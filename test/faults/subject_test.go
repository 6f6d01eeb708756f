// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
)

// subject is a daemon with two guests. The one, whose device goes through the phases, is to
// be hit by the failures; the other one looks on.
type subject interface {
	// perform carries out a phase on the device. It does not check that the guest is served.
	perform(ctx context.Context, p phase) error
	// serves checks that packets or requests of the device's guest are served.
	serves(ctx context.Context) error
	// bystander checks the same for the other guest.
	bystander(ctx context.Context) error
	// told returns what the daemon tells of a device that is not served; "" if nothing.
	told(ctx context.Context) string
	// mend does what an administrator and the guest can do: a reset, and a new connection.
	mend(ctx context.Context) error
	// gone checks that nothing is left of a device that was detached.
	gone(ctx context.Context) error
	// daemon is the process; restart starts another one if it has ended.
	daemon() *lab.Process
	restart(ctx context.Context) error
	// books are the resources that the daemon has while only the other device exists.
	books(ctx context.Context) (books, error)
	close() error
}

// maxNetlinks is the number of sockets of netlink that a process may keep: pkg/nlsock keeps
// four for interfaces, and four for ethtool.
const maxNetlinks = 8

// books counts the resources of a daemon. Sockets other than those of netlink are not
// counted: there is one for each client of the control socket, and for each call that the
// embedded Xen has at the same time.
type books struct {
	Files, Journals, RunFiles int
	Rings, Programs           int            // of Files
	Links                     map[string]int // Files by the target of their links
	Maps, Interdomain         int            // as the hypervisor sees them
}

// processBooks counts the resources that the kernel has for a process and its children.
func processBooks(pid int, runDir string) (b books, err error) {
	pids := []int{pid}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return b, err
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		for _, f := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	for _, pid := range pids {
		if err := b.count(pid); err != nil {
			return b, err
		}
	}
	files, err := filepath.Glob(filepath.Join(runDir, "*-*"))
	b.RunFiles = len(files)
	return b, err
}

// count adds the resources of one process.
func (b *books) count(pid int) error {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return err
	}
	routes, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil {
		return err
	}
	kept, netlinks := 0, map[string]bool{}
	for line := range strings.Lines(string(routes)) {
		if f := strings.Fields(line); len(f) > 9 {
			netlinks["socket:["+f[9]+"]"] = true
		}
	}
	for _, fd := range fds {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err != nil {
			continue
		}
		switch {
		case strings.HasPrefix(link, "/proc/"):
			continue // a worker's own times, which it may look at at any time
		case netlinks[link]:
			kept++
			continue
		case strings.HasPrefix(link, "socket:"):
			continue
		case strings.Contains(link, "io_uring"):
			b.Rings++
		case strings.Contains(link, "bpf"):
			b.Programs++
		}
		b.Files++
		if b.Links == nil {
			b.Links = map[string]int{}
		}
		b.Links[link]++
	}
	b.Files += max(kept-maxNetlinks, 0)
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	b.Journals += bytes.Count(maps, []byte("/ring-"))
	return err
}

func (b *books) hypervisor(info simclient.DomainInfo) {
	b.Maps, b.Interdomain = info.Maps, info.Interdomain
}

// maxLanes is the number of threads that slow guests may have got for themselves. Each has an
// epoll instance, an eventfd and an io_uring.
const maxLanes = 2

// more reports whether b has more of anything than o, except for those of slow guests' threads.
func (b books) more(o books) bool {
	const epoll = "anon_inode:[eventpoll]"
	lanes := min(max(b.Links[epoll]-o.Links[epoll], 0), maxLanes)
	files, rings := o.Files+3*lanes, o.Rings+lanes
	return b.Files > files || b.Journals > o.Journals || b.RunFiles > o.RunFiles || b.Rings > rings ||
		b.Programs > o.Programs || b.Maps > o.Maps || b.Interdomain > o.Interdomain
}

// settled waits until the books have no more than wanted, and returns the difference if they do
// not become so: closing may take a moment.
func settled(ctx context.Context, s subject, want books) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var got books
	err := until(ctx, "", func() (err error) {
		if got, err = s.books(ctx); err == nil && got.more(want) {
			err = errors.New("something is left")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the daemon has %+v, had %+v: %w", got, want, err)
	}
	return nil
}

// until repeats f until it succeeds or ctx ends.
func until(ctx context.Context, what string, f func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-tick.C:
		}
	}
}
