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
	// patience is the time a player waits for an expected event. It is long,
	// so that an emulated machine under load is no failure, also where it has
	// four thousand pages to unmap.
	patience = time.Minute
	// glance is between two looks at what cannot tell that it has changed.
	glance = time.Millisecond
)

// Asker puts questions to the umpire.
type Asker interface {
	Ask(ctx context.Context, question string) (answer string, err error)
}

// Failure is a script that did not go as it says.
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
// transcript of each to what out returns. The device is left in Initialising,
// with the backend in InitWait, as the toolstack leaves it. A script that fails
// ends with that; the next one is played all the same.
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

// player is a frontend that does what a script says. It belongs to one goroutine.
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
	at     int      // the queue that directives are about
	past   []closer // what the backend may still have mapped

	ctrl *control // what is offered next, or was last
	msg  message  // what messages name

	inForce string // what was before the last messages, which all were refused; empty: they were not

	tx, rx            pool
	foreign, readonly *gntalloc.Pages
	last              xen.Gref
	outside           netfront.Events // channels that are no queue's
}

// closer is rings that are given back.
type closer interface{ close() error }

// setKey is a node for the next offer; with the value "-" it is left out.
type setKey struct{ key, value string }

// pool is pages granted to the backend, used in turn.
type pool struct {
	pages *gntalloc.Pages
	next  int
}

// poolPages is more than a ring has slots, so that a page comes back only when
// its request was answered; and both pools together are more than a queue's static
// grants are in tests.
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

// open finds the backend and makes what all scripts need.
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

// shut gives everything back.
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
		// What the next script finds does not depend on this one.
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

// numbers are those in what the host says that are others on each machine.
var numbers = regexp.MustCompile(`\b(domid|gref|port) ([0-9]+)`)

// anonymous puts names in the place of such numbers: those that were published.
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

// until looks again and again until ok, and returns an error when patience has run out.
func (p *player) until(ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(p.ctx, p.patience)
	defer cancel()
	return poll(ctx, glance, ok)
}

// errProgress is returned by a look that has moved something: the next one comes soon.
var errProgress = errors.New("not yet done")

// poll looks again and again until ok. It pauses for least between two looks, and for an
// eighth of the time that has passed once that is more: on an emulated machine looks take
// the processor from what they wait for.
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

// fact checks something that the host says of the vif. It waits until the host
// says so.
func (p *player) fact(verb, want string) (string, error) {
	got, err := p.ask(verb + " " + strconv.Quote(want))
	if err == nil && got != want {
		err = differs(verb, got, want)
	}
	return verb + " " + got, err
}

// text checks that the host says something with want in it, or nothing if that
// is "no".
func (p *player) text(verb, want string) (string, error) {
	got, err := p.ask(verb + " " + strconv.Quote(want))
	if err == nil && !(want == got || want != "no" && strings.Contains(got, want)) {
		err = differs(verb, got, want)
	}
	return verb + " " + p.anonymous(got), err
}

// counted checks how much was counted since the last time.
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

// cameOut checks that just these frames came out of the vif at the host, with
// what was left undone of them.
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

// repeats puts equal neighbours together: M M becomes M*2.
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
