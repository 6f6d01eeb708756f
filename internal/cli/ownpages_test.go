// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// pagesHost is a Host with a device for own pages, or without.
type pagesHost struct {
	Host
	pages *host.OwnPages
	err   error
}

func (h pagesHost) OpenOwnPages() (*host.OwnPages, error) { return h.pages, h.err }

// ownStore is a xenstore that has the number of this domain, or fails.
type ownStore struct{ err error }

func (s ownStore) Read(context.Context, string) (string, error) { return "0", s.err }

func TestOwnPagesStatus(t *testing.T) {
	missing := errors.New("there is no such device")
	failed := errors.New("xenstored fails")
	for _, c := range []struct {
		name  string
		flag  string
		open  error
		store []error // of each connection
		data  dataplane.OwnPages
		want  netcontrol.OwnPages
		text  string
		logs  []string
	}{
		{"switched off", "none", nil, []error{nil}, dataplane.OwnPages{},
			netcontrol.OwnPages{Reason: "switched off by --own-pages=none"},
			"none, packets are copied by address: switched off by --own-pages=none", nil},
		{"no device", "auto", missing, []error{nil}, dataplane.OwnPages{},
			netcontrol.OwnPages{Reason: "there is no such device"},
			"none, packets are copied by address: there is no such device", nil},
		{"no xenstored yet", "auto", nil, nil, dataplane.OwnPages{},
			netcontrol.OwnPages{Reason: "xenstored has not told the number of this domain yet"},
			"none, packets are copied by address: xenstored has not told the number of this domain yet", nil},
		{"xenstored fails, three times", "auto", nil, []error{failed, failed, fs.ErrPermission}, dataplane.OwnPages{Wanted: 704},
			netcontrol.OwnPages{Wanted: 704, Reason: "permission denied"},
			"none, packets are copied by address: permission denied",
			[]string{"xenstored fails", "permission denied"}},
		{"no vif", "auto", nil, []error{failed, nil}, dataplane.OwnPages{},
			netcontrol.OwnPages{}, "none yet, a worker takes them with its first vif", []string{"xenstored fails"}},
		{"all", "auto", nil, []error{nil}, dataplane.OwnPages{Wanted: 704, Granted: 704},
			netcontrol.OwnPages{Wanted: 704, Granted: 704}, "704 of 704", nil},
		{"some", "auto", nil, []error{nil}, dataplane.OwnPages{Wanted: 704, Granted: 96},
			netcontrol.OwnPages{Wanted: 704, Granted: 96}, "96 of 704, other packets are copied by address", nil},
		{"lost", "auto", nil, []error{nil}, dataplane.OwnPages{Wanted: 704, Granted: 704, Lost: true},
			netcontrol.OwnPages{Wanted: 704, Reason: "Xen refused them"},
			"none, packets are copied by address: Xen refused them", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := pagesHost{err: c.open}
			if c.open == nil {
				h.pages = host.NewOwnPages(xentest.StartOwn(t, 10), xentest.Start(t, 7).Gntdev(), nil)
			}
			core, logs := observer.New(zapcore.InfoLevel)
			var o ownPages
			o.open(h, c.flag)
			if (o.pager() == nil) != (c.flag == "none" || c.open != nil) {
				t.Errorf("pager: %v", o.pager())
			}
			for _, err := range c.store {
				o.learn(t.Context(), ownStore{err}, zap.New(core))
			}
			got := o.status(c.data)
			if diff := cmp.Diff(&c.want, got); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if text := ownPagesText(got); text != c.text {
				t.Errorf("show: %q, want %q", text, c.text)
			}
			var said []string
			for _, e := range logs.All() {
				text, _ := e.ContextMap()["error"].(string)
				_, text, _ = cutLast(text, ": ")
				said = append(said, text)
			}
			if diff := cmp.Diff(c.logs, said); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
			if err := o.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// cutLast returns what is behind the last sep, or all of s.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// TestShowOwnPages: show has a line for vifs, and none for a device of vhost-user.
func TestShowOwnPages(t *testing.T) {
	d := testDaemon
	for _, c := range []struct {
		own  *netcontrol.OwnPages
		want bool
	}{{nil, false}, {&netcontrol.OwnPages{Granted: 1, Wanted: 2}, true}} {
		d.OwnPages = c.own
		var b bytes.Buffer
		if err := writeDaemon(&b, &d, time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(b.String(), "\nown pages  1 of 2, "); got != c.want {
			t.Errorf("show prints %q", b.String())
		}
	}
}

// pager must be a source of own pages for the data path.
var _ dataplane.OwnPager = (*host.OwnPages)(nil)
