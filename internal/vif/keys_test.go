// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestParseRate(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Rate
		ok   bool
	}{
		{"", Rate{}, true},
		{"10240,50000", Rate{10240, 50 * time.Millisecond}, true},
		{"1,1", Rate{1, time.Microsecond}, true},
		{"125000000,1000000", Rate{125000000, time.Second}, true},
		{"0,0", Rate{}, true},
		{"0,50000", Rate{}, true},
		{"4294967295,50000", Rate{}, true},
		{"4294967294,50000", Rate{4294967294, 50 * time.Millisecond}, true},
		{"9223372036854775807,50000", Rate{}, true},
		{"9223372036854775808,50000", Rate{}, false},
		{"10240,3600000000", Rate{10240, time.Hour}, true},
		{"10240,3600000001", Rate{}, false},
		{"10240", Rate{}, false},
		{"10240,", Rate{}, false},
		{",50000", Rate{}, false},
		{"10240,0", Rate{}, false},
		{"10240,50000,1", Rate{}, false},
		{"-1,50000", Rate{}, false},
		{"10240,-1", Rate{}, false},
		{"10Mb/s", Rate{}, false},
		{"0x10,50000", Rate{}, false},
		{"1e3,50000", Rate{}, false},
		{" 10240,50000", Rate{}, false},
		{"10240, 50000", Rate{}, false},
	} {
		got, err := parseRate(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("parseRate(%q) = %v, %v; want %v, ok %t", tt.in, got, err, tt.want, tt.ok)
		}
	}
}

func TestRateString(t *testing.T) {
	for r, want := range map[Rate]string{
		{}:                              "unlimited",
		{10240, 50 * time.Millisecond}:  "10240 B/50ms",
		{Bytes: 0, Interval: time.Hour}: "unlimited",
	} {
		if got := r.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestParseMAC(t *testing.T) {
	for in, ok := range map[string]bool{
		"00:16:3e:01:02:03":       true,
		"00:16:3E:AB:cd:EF":       true,
		"":                        false,
		"00:16:3e:01:02":          false,
		"00:16:3e:01:02:03:04:05": false,
		"00-16-3e-01-02-03":       false,
		"0016.3e01.0203":          false,
		"00163e010203":            false,
		"01:00:5e:00:00:01":       false,
		"ff:ff:ff:ff:ff:ff":       false,
		"00:16:3e:01:02:0g":       false,
		"00:16:3e:01:02:03 ":      false,
	} {
		if _, err := parseMAC(in); (err == nil) != ok {
			t.Errorf("parseMAC(%q): %v, want ok %t", in, err, ok)
		}
	}
}

func TestParseMTU(t *testing.T) {
	for in, want := range map[string]int{
		"": 0, "68": 68, "1500": 1500, "9000": 9000, "65521": 65521,
		"67": -1, "65522": -1, "0": -1, "-1": -1, "1500 ": -1, "jumbo": -1, "99999999999999999999": -1,
	} {
		got, err := parseMTU(in)
		if want < 0 {
			if err == nil {
				t.Errorf("parseMTU(%q) = %d, want an error", in, got)
			}
			continue
		}
		if got != want || err != nil {
			t.Errorf("parseMTU(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

func TestErrText(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("no sense"), "22 no sense"},
		{unix.EACCES, "13 permission denied"},
		{&xenbus.KeyError{Key: "mac", Value: "x", Want: "y"}, `22 key "mac" is "x", want y`},
		{frontendError(&xenbus.KeyError{Key: "tx-ring-ref", Missing: true, Want: "a number"}), `2 frontend key "tx-ring-ref" is missing, want a number`},
		{&xenbus.KeyError{Key: "rate", Value: strings.Repeat("9", 5000), Want: "y"}, `22 key "rate" is "` + strings.Repeat("9", 64) + `...", want y`},
		{&xenbus.KeyError{Key: "rate", Value: "\x1b[2J\n", Want: "y"}, `22 key "rate" is "\x1b[2J\n", want y`},
		{errors.New(strings.Repeat("x", 5000)), "22 " + strings.Repeat("x", 509)},
	} {
		if diff := cmp.Diff(tt.want, device.ErrorText(tt.err)); diff != "" {
			t.Errorf("unexpected text (-want +got):\n%s", diff)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"", "10240,50000", "0,0", "4294967295,50000", "1,", ",1", "-1,1", "9223372036854775807,1"} {
		f.Add(s)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, s string) {
		r, err := parseRate(s)
		checkKeyError(t, "rate", s, err)
		if err != nil {
			if r != (Rate{}) {
				t.Errorf("%v with an error", r)
			}
			return
		}
		if r.Bytes >= math.MaxUint32 || r.Interval < 0 || r.Interval > time.Hour || r.Bytes != 0 && r.Interval == 0 {
			t.Errorf("%+v", r)
		}
	})
}

func FuzzParseMAC(f *testing.F) {
	for _, s := range []string{"00:16:3e:01:02:03", "01:00:5e:00:00:01", "0016.3e01.0203", "", ":::::"} {
		f.Add(s)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, s string) {
		m, err := parseMAC(s)
		checkKeyError(t, "mac", s, err)
		if err == nil && (len(m) != 6 || !strings.EqualFold(m.String(), s)) {
			t.Errorf("%q is %v", s, m)
		}
	})
}

// FuzzParseNumbers parses the keys that are numbers.
func FuzzParseNumbers(f *testing.F) {
	for _, s := range []string{"", "0", "1", "4", "8", "9", "68", "1500", "65521", "-1", "+1", "0x10", " 1", "1\x00", "18446744073709551616"} {
		f.Add(s)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, s string) {
		if n, err := parseMTU(s); err == nil {
			if n != 0 && (n < minMTU || n > maxMTU) {
				t.Errorf("mtu %d", n)
			}
		} else {
			checkKeyError(t, "mtu", s, err)
		}
		st, err := xenbus.ParseState(s)
		checkKeyError(t, "state", s, err)
		if st < xenbus.Unknown || st > xenbus.Reconfigured {
			t.Errorf("state %v", st)
		}
	})
}

// checkKeyError checks the properties of every error about a key.
func checkKeyError(t *testing.T, key, value string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var k *xenbus.KeyError
	if !errors.As(err, &k) || k.Key != key || k.Value != value || k.Want == "" {
		t.Errorf("%q: %#v", value, err)
	}
	if text := device.ErrorText(err); len(text) > 512 || strings.ContainsAny(text, "\n\x00") {
		t.Errorf("%q: error node would be %q", value, text)
	}
}

func TestParseWeight(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int // 0: refused
	}{
		{"", 1}, {"1", 1}, {"2", 2}, {"16", 16}, {"016", 16},
		{"0", 0}, {"17", 0}, {"-1", 0}, {"1.5", 0}, {"256", 0}, {"257", 0}, {"a", 0}, {" 1", 0}, {"1 ", 0}, {strings.Repeat("1", 5000), 0},
	} {
		got, err := parseWeight(tt.in)
		if got != tt.want || (err != nil) != (tt.want == 0) {
			t.Errorf("%.20q: %d, %v; want %d", tt.in, got, err, tt.want)
		}
		if err != nil {
			checkKeyError(t, "weight", tt.in, err)
		}
	}
}
