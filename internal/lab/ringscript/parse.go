// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Bounds of a script. They are far above what a sensible one needs.
const (
	maxScript  = 1 << 20 // bytes
	maxFrames  = 256     // of one script
	maxIDs     = 1024    // ids named in one line
	maxRepeats = 4096    // of an injected frame
)

// Script is a parsed script.
type Script struct {
	Name   string
	lines  []line
	frames []*frame
}

// line is one directive.
type line struct {
	number int
	run    action
}

// action carries out a directive. It returns a line for the transcript, or "" for none.
type action func(p *player) (said string, err error)

// Parse reads a script. The error names the line.
func Parse(name, text string) (*Script, error) {
	if len(text) > maxScript {
		return nil, fmt.Errorf("%s: a script has at most %d bytes, not %d", name, maxScript, len(text))
	}
	s := &parser{Script: &Script{Name: name}, byName: map[string]*frame{}}
	number := 0
	for text := range strings.Lines(text) {
		number++
		words, err := split(text)
		if err == nil && len(words) > 0 {
			err = s.directive(number, words)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
	}
	return s.Script, nil
}

// split cuts a line into words. A word in double quotes is a Go string; # begins a
// comment.
func split(text string) (words []string, err error) {
	for {
		text = strings.TrimLeft(text, " \t\r\n")
		switch {
		case text == "", text[0] == '#':
			return words, nil
		case text[0] == '"':
			q, err := strconv.QuotedPrefix(text)
			if err != nil {
				return nil, fmt.Errorf("a word in quotes does not end, or is not as in Go: %.40s", text)
			}
			text = text[len(q):]
			w, err := strconv.Unquote(q)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", q, err)
			}
			if text != "" && !strings.ContainsRune(" \t\r\n", rune(text[0])) {
				return nil, fmt.Errorf("%s must be followed by a blank", q)
			}
			words = append(words, w)
		default:
			n := strings.IndexAny(text, " \t\r\n")
			if n < 0 {
				n = len(text)
			}
			words = append(words, text[:n])
			text = text[n:]
		}
	}
}

// parser is a script that is being read.
type parser struct {
	*Script
	byName map[string]*frame
}

// directive reads one line.
func (s *parser) directive(number int, words []string) error {
	d, known := directives[words[0]]
	if !known {
		return fmt.Errorf("no such directive: %.40q", words[0])
	}
	a := &args{parser: s, left: words[1:]}
	run := d(a)
	a.end()
	if a.err != nil {
		return fmt.Errorf("%s: %w", words[0], a.err)
	}
	if run != nil {
		s.lines = append(s.lines, line{number, run})
	}
	return nil
}

// directives is the language. A function reads the arguments and returns the action;
// args keeps errors.
var directives = map[string]func(*args) action{
	"case":  parseCase,
	"frame": parseFrame,

	"rings":   parseRings,
	"key":     parseKey,
	"offer":   plain((*player).offer),
	"connect": plain((*player).connect),
	"close":   plain((*player).close),
	"reopen":  plain((*player).reopen),
	"free":    plain((*player).freeRings),
	"state":   parseState,
	"write":   parseWrite,
	"remove":  parseRemove,
	"backend": parseBackend,

	"queue":     parseQueue,
	"tx":        parseTx,
	"extra":     parseExtra,
	"rx":        parseRx,
	"push":      plain((*player).push),
	"publish":   plain((*player).publish),
	"kick":      parseKick,
	"turn":      parseTurn,
	"req-prod":  parseReqProd,
	"rsp-event": parseRspEvent,
	"answers":   parseAnswers,
	"filled":    parseFilled,
	"content":   parseContent,
	"armed":     parseArmed,
	"event":     parseEvent,

	"control":  parseControl,
	"page":     parsePage,
	"call":     parseCall,
	"send":     parseSend,
	"replies":  parseReplies,
	"statuses": parseStatuses,
	"rsp-cons": parseRspCons,

	"out":         parseOut,
	"inject":      parseInject,
	"drops":       parseCounts("drops"),
	"counters":    parseCounts("counters"),
	"quarantined": parseText("quarantined"),
	"error":       parseText("error"),
	"carrier":     parseFact("carrier", "up", "down"),
	"stalled":     parseFact("stalled", "yes", "no"),
	"held":        parseFact("held", "yes", "no"),
	"served":      parseText("served"),
	"hashing":     parseWords("hashing"),
	"steered":     parseFact("steered", "hash", "host"),
	"static":      parseWords("static"),
	"grants":      parseNumberFact("grants"),
	"ports":       parseNumberFact("ports"),
	"headroom":    parseNumberFact("headroom"),
	"mcast":       parseMcast,
	"features":    parseWords("features"),
	"reset":       plain((*player).reset),
}

// args reads the arguments of a directive and keeps the first error.
type args struct {
	*parser
	left []string
	err  error
}

func (a *args) fail(format string, v ...any) {
	if a.err == nil {
		a.err = fmt.Errorf(format, v...)
	}
}

// end checks that no word is left.
func (a *args) end() {
	if len(a.left) > 0 {
		a.fail("what is %.40q for?", a.left[0])
	}
}

// word takes the next word.
func (a *args) word(what string) string {
	if len(a.left) == 0 {
		a.fail("%s is missing", what)
		return ""
	}
	w := a.left[0]
	a.left = a.left[1:]
	return w
}

// rest takes all remaining words.
func (a *args) rest() []string {
	w := a.left
	a.left = nil
	return w
}

// is takes the next word if it is this one.
func (a *args) is(w string) bool {
	if len(a.left) == 0 || a.left[0] != w {
		return false
	}
	a.left = a.left[1:]
	return true
}

// value takes the next word if it is KEY=VALUE, and returns the value.
func (a *args) value(key string) (v string, ok bool) {
	if len(a.left) == 0 {
		return "", false
	}
	if v, ok = strings.CutPrefix(a.left[0], key+"="); ok {
		a.left = a.left[1:]
	}
	return v, ok
}

// number reads a number in Go's syntax.
func (a *args) number(what, w string, low, high int64) int64 {
	if a.err != nil {
		return low
	}
	n, err := strconv.ParseInt(w, 0, 64)
	if err != nil || n < low || n > high {
		a.fail("%s is %.40q, want a number from %d to %d", what, w, low, high)
		return low
	}
	return n
}

// oneOf takes a word that has to be one of words.
func (a *args) oneOf(what string, words ...string) string {
	w := a.word(what)
	for _, o := range words {
		if w == o {
			return w
		}
	}
	a.fail("%s is %.40q, want one of %v", what, w, words)
	return words[0]
}

// span is one id or a range of ids: 7 or 1..20.
type span struct{ from, to uint16 }

func (s span) len() int { return int(s.to) - int(s.from) + 1 }

// ids reads a span.
func (a *args) ids(w string) span {
	from, to, row := strings.Cut(w, "..")
	s := span{from: uint16(a.number("id", from, 0, 0xffff))}
	s.to = s.from
	if row {
		s.to = uint16(a.number("id", to, int64(s.from), 0xffff))
	}
	if s.len() > maxIDs {
		a.fail("%d ids in a row, at most %d are possible", s.len(), maxIDs)
		return span{}
	}
	return s
}

// piece is a part of a frame, or a frame cut into parts of equal length.
type piece struct {
	frame    *frame
	from, to int
	step     int // 0: all of it at once
}

// part returns the bytes of the piece that slot k takes.
func (p *piece) part(k int) []byte {
	b := p.frame.bytes[p.from:p.to]
	if p.step == 0 {
		return b
	}
	return b[min(k*p.step, len(b)):min((k+1)*p.step, len(b))]
}

// piece reads NAME, NAME[a:b], or either with /STEP behind it.
func (a *args) piece(w string) *piece {
	p := &piece{}
	whole := w
	w, step, cut := strings.Cut(w, "/")
	if cut {
		p.step = int(a.number("step", step, 1, netif.PageSize))
	}
	name, bounds, sliced := strings.Cut(w, "[")
	if p.frame = a.frame(name); p.frame == nil {
		return p
	}
	n := len(p.frame.bytes)
	p.to = n
	if sliced {
		from, to, ok := strings.Cut(strings.TrimSuffix(bounds, "]"), ":")
		if !ok || !strings.HasSuffix(bounds, "]") {
			a.fail("%.40q is no part of a frame, want NAME[FROM:TO]", whole)
			return p
		}
		if from != "" {
			p.from = int(a.number("begin of the part", from, 0, int64(n)))
		}
		if to != "" {
			p.to = int(a.number("end of the part", to, int64(p.from), int64(n)))
		}
	}
	return p
}

// frame finds a frame by its name.
func (a *args) frame(name string) *frame {
	f := a.byName[name]
	if f == nil {
		a.fail("no frame %.40q was defined above", name)
	}
	return f
}

// plain returns a directive without arguments.
func plain(f func(*player) error) func(*args) action {
	return func(*args) action {
		return func(p *player) (string, error) { return "", f(p) }
	}
}

// quiet returns an action without a line for the transcript.
func quiet(f func(*player) error) action {
	return func(p *player) (string, error) { return "", f(p) }
}

func parseCase(a *args) action {
	title := strings.Join(a.rest(), " ")
	if title == "" {
		a.fail("its name is missing")
	}
	return func(p *player) (string, error) {
		p.title = title
		return "\n# " + title, p.settled()
	}
}

func parseFrame(a *args) action {
	name := a.word("name")
	if strings.ContainsAny(name, "[]/=+*.@:") || name == "" || isTarget(name) {
		a.fail("%.40q cannot be a name", name)
	}
	spec := frameSpec{name: name}
	for _, proto := range []string{"tcp", "udp"} {
		if a.is(proto) {
			spec.proto = proto
		}
	}
	spec.length = int(a.number("length", a.word("length"), int64(spec.lowest()), netif.MaxTxSize))
	for spec.proto != "" && a.err == nil {
		if v, ok := a.value("mss"); ok {
			if spec.proto != "tcp" {
				a.fail("what is %q for?", "mss="+v)
			}
			spec.mss = uint16(a.number("mss", v, 1, 0xffff))
		} else if v, ok := a.value("from"); ok {
			spec.from = a.address(v)
		} else if v, ok := a.value("to"); ok {
			spec.to = a.address(v)
		} else if v, ok := a.value("vlan"); ok {
			spec.vlan = uint16(a.number("vlan", v, 1, 0xfff))
		} else if a.is("fragment") {
			spec.fragment = true
		} else {
			break
		}
	}
	if v, ok := a.value("dst"); ok && spec.proto == "" {
		spec.dst = a.mac(v)
	}
	if a.err == nil {
		if err := spec.check(); err != nil {
			a.fail("%w", err)
		}
	}
	if a.byName[name] != nil || len(a.byName) >= maxFrames {
		a.fail("there is a frame %.40q already, or %d others", name, maxFrames)
	}
	if a.err == nil {
		f := spec.make()
		a.byName[name] = f
		a.frames = append(a.frames, f)
	}
	return nil
}

func parseRings(a *args) action {
	n := 1
	if len(a.left) > 0 && a.left[0] != "single" {
		n = int(a.number("number of queues", a.word(""), 1, netfront.MaxQueues))
	}
	single := a.is("single")
	return quiet(func(p *player) error { return p.newRings(n, single) })
}

func parseKey(a *args) action {
	key, value := a.word("name"), a.word("value")
	if strings.HasPrefix(value, "@") && special[value] == nil {
		a.fail("nothing is called %.40q", value)
	}
	return quiet(func(p *player) error {
		p.keys = append(p.keys, setKey{key, value})
		return nil
	})
}

func parseState(a *args) action {
	value := a.word("state")
	return quiet(func(p *player) error { return p.writeState(value) })
}

func parseWrite(a *args) action {
	key, value := a.word("name"), a.word("value")
	return quiet(func(p *player) error { return p.write(key, value) })
}

func parseRemove(a *args) action {
	key := a.word("name")
	return quiet(func(p *player) error { return p.remove(key) })
}

func parseBackend(a *args) action {
	s := xenbus.State(a.number("state", a.word("state"), 0, 8))
	return func(p *player) (string, error) {
		err := p.awaitBackend(s)
		return fmt.Sprintf("backend %v", s), err
	}
}

func parseQueue(a *args) action {
	n := int(a.number("queue", a.word("queue"), 0, netfront.MaxQueues-1))
	return quiet(func(p *player) error { return p.setQueue(n) })
}

var txFlags = map[string]netif.TxFlags{
	"csum": netif.TxCsumBlank, "valid": netif.TxDataValidated, "more": netif.TxMoreData, "extra": netif.TxExtraInfo,
}

func parseTx(a *args) action {
	t := txDirective{ids: a.ids(a.word("id"))}
	w := a.word("what to send")
	if isTarget(w) {
		t.target = a.target(w)
	} else {
		t.piece = a.piece(w)
	}
	for _, w := range a.rest() {
		switch key, v, _ := strings.Cut(w, "="); key {
		case "off":
			t.offset = uint16(a.number("off", v, 0, 0xffff))
		case "size":
			t.sized, t.size = true, uint16(a.number("size", v, 0, 0xffff))
		case "flags":
			t.flags |= netif.TxFlags(a.number("flags", v, 0, 0xffff))
		default:
			f, known := txFlags[w]
			if !known {
				a.fail("no such flag: %.40q", w)
			}
			t.flags |= f
		}
	}
	if t.piece != nil && a.err == nil {
		for k := range t.ids.len() {
			if int(t.offset)+len(t.piece.part(k)) > netif.PageSize {
				a.fail("%d bytes do not fit into a page from %d on", len(t.piece.part(k)), t.offset)
				break
			}
		}
	}
	return quiet(func(p *player) error { return p.putTx(&t) })
}

var gsoTypes = map[string]netif.GSOType{"none": netif.GSONone, "tcpv4": netif.GSOTCPv4, "tcpv6": netif.GSOTCPv6}

func parseExtra(a *args) action {
	var e netif.ExtraInfo
	switch w := a.word("type"); w {
	case "gso":
		name := a.word("type of segmentation")
		t, known := gsoTypes[name]
		if !known {
			t = netif.GSOType(a.number("type of segmentation", name, 0, 255))
		}
		e = netif.NewGSO(netif.GSOInfo{Type: t, Size: uint16(a.number("size", a.word("size"), 0, 0xffff))})
	case "mcast-add", "mcast-del":
		e = netif.NewMcast(w == "mcast-add", a.mac(a.word("address")))
	case "hash":
		e = netif.NewHash(netif.HashInfo{Type: netif.HashIPv4, Algorithm: netif.HashAlgorithmToeplitz, Value: 0x01020304})
	default:
		e = netif.ExtraInfo{Type: netif.ExtraType(a.number("type", w, 0, 255))}
	}
	if a.is("more") {
		e.Flags |= netif.ExtraMore
	}
	return quiet(func(p *player) error { return p.putExtra(e) })
}

func parseRx(a *args) action {
	ids := a.ids(a.word("id"))
	w := a.word("buffer")
	if !isTarget(w) {
		a.fail("%.40q is no buffer", w)
	}
	t := a.target(w)
	return quiet(func(p *player) error { return p.putRx(ids, t) })
}

func parseReqProd(a *args) action {
	ring := a.oneOf("ring", "tx", "rx", "control")
	by := a.number("by how much", a.word("by how much"), -1<<31, 1<<32-1)
	return quiet(func(p *player) error { return p.moveReqProd(ring, uint32(by)) })
}

func parseKick(a *args) action {
	if a.is("control") {
		return quiet((*player).kickControl)
	}
	return quiet((*player).kick)
}

func parseTurn(a *args) action {
	pool := a.oneOf("pool", "tx", "rx")
	n := int(a.number("page", a.word("page"), 0, poolPages-1))
	return quiet(func(p *player) error {
		p.pool(pool).next = n
		return nil
	})
}

func parseRspEvent(a *args) action {
	rx := a.oneOf("ring", "tx", "rx") == "rx"
	by := a.number("by how much", a.word("by how much"), -1<<31, 1<<31)
	return quiet(func(p *player) error { return p.setRspEvent(rx, netif.Index(uint32(by))) })
}

// rows expands words like 1..3=okay to one word for each id.
func (a *args) rows(words []string) (each []string) {
	for _, w := range words {
		ids, rest, ok := strings.Cut(w, "=")
		if !ok || ids == "extra" {
			each = append(each, w)
			continue
		}
		s := a.ids(ids)
		for k := range s.len() {
			each = append(each, fmt.Sprintf("%d=%s", int(s.from)+k, rest))
		}
		if len(each) > maxIDs {
			a.fail("more than %d answers", maxIDs)
			return nil
		}
	}
	return each
}

func parseAnswers(a *args) action {
	want := a.rows(a.rest())
	for _, w := range want {
		if _, s, ok := strings.Cut(w, "="); w != "null" && (!ok || s != "okay" && s != "error" && s != "dropped") {
			a.fail("%.40q is no answer, want ID=okay, ID=error, ID=dropped or null", w)
		}
	}
	return func(p *player) (string, error) { return p.answers(want) }
}

func parseFilled(a *args) action {
	want := a.rows(a.rest())
	return func(p *player) (string, error) { return p.filled(want) }
}

func parseContent(a *args) action {
	f := a.frame(a.word("frame"))
	var ids []uint16
	for _, w := range a.rest() {
		s := a.ids(w)
		for k := range s.len() {
			ids = append(ids, s.from+uint16(k))
		}
		if len(ids) > maxIDs {
			a.fail("more than %d ids", maxIDs)
			break
		}
	}
	return func(p *player) (string, error) { return p.content(f, ids) }
}

func parseArmed(a *args) action {
	ring := a.oneOf("ring", "tx", "rx")
	ahead := netif.Index(1)
	if len(a.left) > 0 {
		ahead = netif.Index(a.number("number of slots", a.word(""), 1, netif.TxRingSize))
	}
	return func(p *player) (string, error) { return p.armed(ring, ahead) }
}

func parseEvent(a *args) action {
	want := a.oneOf("event", "tx", "rx", "none")
	return func(p *player) (string, error) { return p.event(want) }
}

// address reads an address of IP and a port.
func (a *args) address(w string) netip.AddrPort {
	ap, err := netip.ParseAddrPort(w)
	if err != nil {
		a.fail("%w", err)
	}
	return ap
}

// mac reads an Ethernet address.
func (a *args) mac(w string) (m [6]byte) {
	parts := strings.Split(w, ":")
	if len(parts) != len(m) {
		a.fail("%.40q is no Ethernet address", w)
		return m
	}
	for i, s := range parts {
		n, err := strconv.ParseUint(s, 16, 8)
		if err != nil || len(s) != 2 {
			a.fail("%.40q is no Ethernet address", w)
		}
		m[i] = byte(n)
	}
	return m
}

func parseOut(a *args) action {
	var want []string
	for _, w := range a.rest() {
		w, times, repeated := strings.Cut(w, "*")
		name, _, _ := strings.Cut(w, "+")
		a.frame(name)
		n := int64(1)
		if repeated {
			n = a.number("how often", times, 1, maxRepeats)
		}
		if want = append(want, slices.Repeat([]string{w}, int(n))...); len(want) > maxRepeats {
			a.fail("more than %d frames", maxRepeats)
			break
		}
	}
	return func(p *player) (string, error) { return p.cameOut(want) }
}

func parseInject(a *args) action {
	f := a.frame(a.word("frame"))
	times := 1
	if len(a.left) > 0 {
		times = int(a.number("how often", a.word(""), 1, maxRepeats))
	}
	return quiet(func(p *player) error { return p.inject(f, times) })
}

// parseCounts reads NAME=N... Without words nothing may have been counted.
func parseCounts(verb string) func(*args) action {
	return func(a *args) action {
		want := map[string]int64{}
		for _, w := range a.rest() {
			name, n, ok := strings.Cut(w, "=")
			if _, twice := want[name]; !ok || name == "" || twice {
				a.fail("%.40q is no count, or there twice, want NAME=N", w)
			}
			want[name] = a.number(name, n, 0, 1<<32)
		}
		if verb == "counters" && len(want) == 0 {
			a.fail("a counter is missing")
		}
		return func(p *player) (string, error) { return p.counted(verb, maps.Clone(want)) }
	}
}

// parseText reads a text that the host's answer has to contain, or "no".
func parseText(verb string) func(*args) action {
	return func(a *args) action {
		want := strings.Join(a.rest(), " ")
		if want == "" {
			a.fail("the text is missing, or no")
		}
		return func(p *player) (string, error) { return p.text(verb, want) }
	}
}

func parseFact(verb string, values ...string) func(*args) action {
	return func(a *args) action {
		want := a.oneOf(verb, values...)
		return func(p *player) (string, error) { return p.fact(verb, want) }
	}
}

func parseNumberFact(verb string) func(*args) action {
	return func(a *args) action {
		want := strconv.FormatInt(a.number(verb, a.word(verb), 0, 1<<20), 10)
		return func(p *player) (string, error) { return p.fact(verb, want) }
	}
}

func parseMcast(a *args) action {
	want := a.rest()
	for _, w := range want {
		a.mac(w)
	}
	return func(p *player) (string, error) { return p.fact("mcast", strings.Join(want, " ")) }
}

// parseWords reads words that have to equal the host's answer.
func parseWords(verb string) func(*args) action {
	return func(a *args) action {
		want := strings.Join(a.rest(), " ")
		return func(p *player) (string, error) { return p.fact(verb, want) }
	}
}
