// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

const (
	// patience limits the time that a player waits for an expected event. It is
	// long, so that an emulated machine under load does not fail, even if it has
	// to unmap four thousand pages.
	patience = time.Minute
	// pollInterval is the pause between two looks at a state without a notification.
	pollInterval = time.Millisecond
)

// Asker asks the umpire.
type Asker interface {
	Ask(ctx context.Context, question string) (answer string, err error)
}

// Failure is the error of a script with an unexpected result.
type Failure struct {
	Script, Case string
	Line         int
	Err          error
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%s:%d: %s: %v", f.Script, f.Line, f.Case, f.Err)
}

func (f *Failure) Unwrap() error { return f.Err }

// differs returns the error of an observation that the script did not expect.
func differs(what, got, want string) error {
	return fmt.Errorf("%s: got %q, want %q", what, got, want)
}

// Play plays scripts, one after the other, as the frontend at dir, and writes the
// transcript of each to the writer that out returns. It leaves the device in Initialising,
// with the backend in InitWait, as the toolstack does. After a failed script it plays the
// next one.
func Play(ctx context.Context, host netfront.Host, dir string, umpire Asker, scripts []*Script, out func(name string) (io.WriteCloser, error)) (err error) {
	p := &player{ctx: ctx, host: host, dir: dir, umpire: umpire, patience: patience}
	if err := p.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.shut()) }()
	var errs []error
	for _, s := range scripts {
		w, err := out(s.Name)
		if err != nil {
			return err
		}
		errs = append(errs, p.play(s, w), w.Close())
	}
	return errors.Join(errs...)
}

// player is a frontend that follows a script. It belongs to one goroutine.
type player struct {
	ctx      context.Context
	host     netfront.Host
	dir      string
	umpire   Asker
	patience time.Duration

	script  *Script
	title   string          // of the case
	backend string          // path of its directory
	peer    xen.Domid       // its domain
	watch   *xenstore.Watch // of the backend's state

	keys  []setKey          // for the next offer, beside those of the rings
	wrote []string          // keys of the last offer
	names map[string]string // of the grants and ports in it

	queues []*queue
	at     int      // the queue that directives act on
	past   []closer // rings that the backend may still have mapped

	ctrl *control // the control ring of the next offer, or of the last one
	msg  message  // the page that messages name

	inForce string // settings before the last messages, if all were refused; else empty

	tx, rx            pool
	foreign, readonly *gntalloc.Pages
	last              xen.Gref
	outside           netfront.Events // channels that belong to no queue
}

// closer is a set of rings to free.
type closer interface{ close() error }

// setKey is a node for the next offer; with the value "-" it is left out.
type setKey struct{ key, value string }

// pool is a set of pages granted to the backend, used in turn.
type pool struct {
	pages *gntalloc.Pages
	next  int
}

// poolPages is larger than the number of slots of a ring, so that a page is used again only
// after its request was answered. Both pools together have more pages than a queue's
// static grants in tests.
const poolPages = netif.TxRingSize + 304

func (p *pool) page() (mem []byte, ref xen.Gref) {
	i := p.next
	p.next = (p.next + 1) % poolPages
	return p.pages.Bytes()[i*netif.PageSize:][:netif.PageSize:netif.PageSize], p.pages.Refs()[i]
}

// pool returns the tx pool or the rx pool.
func (p *player) pool(name string) *pool {
	if name == "rx" {
		return &p.rx
	}
	return &p.tx
}

// stranger is a domain that is not the backend, and need not exist.
const stranger = 0x7fe0

// open finds the backend and makes the resources of all scripts.
func (p *player) open() (err error) {
	if p.backend, err = p.host.Store.Read(p.ctx, p.dir+"/backend"); err != nil {
		return fmt.Errorf("ringscript: find the backend of %s: %w", p.dir, err)
	}
	id, err := p.host.Store.Read(p.ctx, p.dir+"/backend-id")
	if err != nil {
		return fmt.Errorf("ringscript: find the backend of %s: %w", p.dir, err)
	}
	n, err := strconv.ParseUint(id, 10, 16)
	if err != nil {
		return fmt.Errorf("ringscript: backend-id of %s: %w", p.dir, err)
	}
	p.peer = xen.Domid(n)
	if p.watch, err = p.host.Store.Watch(p.ctx, p.backend+"/state"); err != nil {
		return err
	}
	if p.outside, err = p.host.Events(); err != nil {
		return err
	}
	for _, a := range []struct {
		to       **gntalloc.Pages
		domid    xen.Domid
		n        int
		writable bool
	}{
		{&p.tx.pages, p.peer, poolPages, false},
		{&p.rx.pages, p.peer, poolPages, true},
		{&p.foreign, stranger, 1, true},
		{&p.readonly, p.peer, 1, false},
		{&p.msg.page, p.peer, 1, true},
	} {
		if *a.to, err = p.host.Pages.Alloc(a.domid, a.n, a.writable); err != nil {
			return err
		}
	}
	return nil
}

// shut frees everything.
func (p *player) shut() error {
	p.watch.Close()
	errs := []error{p.freeRings(), p.forget(), p.outside.Close()}
	for _, g := range []*gntalloc.Pages{p.tx.pages, p.rx.pages, p.foreign, p.readonly, p.msg.page} {
		errs = append(errs, g.Free())
	}
	return errors.Join(errs...)
}

// play plays one script.
func (p *player) play(s *Script, out io.Writer) error {
	p.script, p.title = s, "before the first case"
	p.tx.next, p.rx.next = 0, 0
	fail := func(line int, err error) error {
		f := &Failure{Script: s.Name, Case: p.title, Line: line, Err: err}
		_, _ = fmt.Fprintf(out, "FAILED: %v\n", f)
		// Restore the state that the next script expects.
		return errors.Join(f, p.rewind())
	}
	if err := p.rewind(); err != nil {
		return fail(0, err)
	}
	if _, err := p.ask("begin"); err != nil {
		return fail(0, err)
	}
	for _, l := range s.lines {
		said, err := l.run(p)
		if err != nil {
			return fail(l.number, err)
		}
		if said != "" {
			if _, err := fmt.Fprintln(out, said); err != nil {
				return err
			}
		}
	}
	p.title = "after the last case"
	if err := errors.Join(p.settled(), p.rewind()); err != nil {
		return fail(0, err)
	}
	// Events that the script did not ask about must not have happened.
	if _, err := p.counted("drops", map[string]int64{}); err != nil {
		return fail(0, err)
	}
	if _, err := p.fact("grants", "0"); err != nil {
		return fail(0, err)
	}
	return nil
}

// numbers matches the numbers in the host's answers that differ between machines.
var numbers = regexp.MustCompile(`\b(domid|gref|port) ([0-9]+)`)

// anonymous replaces such numbers by the names under which they were published.
func (p *player) anonymous(text string) string {
	return numbers.ReplaceAllStringFunc(text, func(m string) string {
		what, n, _ := strings.Cut(m, " ")
		if what == "domid" {
			return "domid N"
		}
		if name, known := p.names[n]; known {
			n = name
		}
		return what + " " + n
	})
}

// until calls ok until it returns true, and returns an error after patience.
func (p *player) until(ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(p.ctx, p.patience)
	defer cancel()
	return poll(ctx, pollInterval, ok)
}

// errProgress is returned by a look that made progress: the next one follows soon.
var errProgress = errors.New("not yet done")

// poll calls ok until it returns true. It pauses for least between two calls, or for an
// eighth of the time that has passed if that is longer: on an emulated machine the calls
// take CPU time from the work that they wait for.
func poll(ctx context.Context, least time.Duration, ok func() (bool, error)) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for began := time.Now(); ; {
		yes, err := ok()
		switch {
		case errors.Is(err, errProgress):
			began = time.Now()
		case yes || err != nil:
			return err
		}
		pause.Reset(max(least, time.Since(began)/8))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
	}
}

func (p *player) ask(question string) (string, error) {
	ctx, cancel := context.WithTimeout(p.ctx, 2*p.patience)
	defer cancel()
	return p.umpire.Ask(ctx, question)
}

// fact waits until the host's answer about the vif is the wanted one.
func (p *player) fact(verb, want string) (string, error) {
	got, err := p.ask(verb + " " + strconv.Quote(want))
	if err == nil && got != want {
		err = differs(verb, got, want)
	}
	return verb + " " + got, err
}

// text waits until the host's answer contains want, or is empty if want is "no".
func (p *player) text(verb, want string) (string, error) {
	got, err := p.ask(verb + " " + strconv.Quote(want))
	if err == nil && !(want == got || want != "no" && strings.Contains(got, want)) {
		err = differs(verb, got, want)
	}
	return verb + " " + p.anonymous(got), err
}

// counted checks the increase of counters since the last call.
func (p *player) counted(verb string, want map[string]int64) (string, error) {
	said := formatCounts(want)
	got, err := p.ask(verb + " " + said)
	if err == nil && got != said {
		err = differs(verb, got, said)
	}
	return strings.TrimSpace(verb + " " + got), err
}

func (p *player) reset() error {
	_, err := p.ask("reset")
	return err
}

func (p *player) inject(f *frame, times int) error {
	_, err := p.ask(fmt.Sprintf("inject %d %s", times, f.words()))
	return err
}

// cameOut checks that exactly these frames came out of the vif at the host, with these
// offloads.
func (p *player) cameOut(want []string) (string, error) {
	answer, err := p.ask("out " + strconv.Itoa(len(want)))
	if err != nil {
		return "", err
	}
	var got []string
	for _, w := range strings.Fields(answer) {
		w, times, _ := strings.Cut(w, "*")
		m, undone, _ := strings.Cut(w, "+")
		for _, f := range p.script.frames {
			if mark(f.bytes) == m {
				m = f.name
				break
			}
		}
		if undone != "" {
			m += "+" + undone
		}
		n, _ := strconv.Atoi(times)
		got = append(got, slices.Repeat([]string{m}, max(n, 1))...)
	}
	said := repeats(got)
	if w := repeats(want); said != w {
		return "", differs("out", said, w)
	}
	return strings.TrimSpace("out " + said), nil
}

// repeats joins equal neighbours: M M becomes M*2.
func repeats(words []string) string {
	var b strings.Builder
	for i := 0; i < len(words); {
		n := 1
		for i+n < len(words) && words[i+n] == words[i] {
			n++
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(words[i])
		if n > 1 {
			fmt.Fprintf(&b, "*%d", n)
		}
		i += n
	}
	return b.String()
}
