// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Rate is the limit of traffic from the guest: bytes in an interval. The zero value is none.
type Rate struct {
	Bytes    uint64
	Interval time.Duration
}

// defaultInterval is that of xl for a rate without one.
const defaultInterval = 50 * time.Millisecond

// rateSyntax is that of rate= in xl-network-configuration(5).
var rateSyntax = regexp.MustCompile(`^([0-9]+)([GMKgmk]?)([Bb])/s(?:@([0-9]+)(ms|us|s))?$`)

// ErrRate: the text is no rate.
var ErrRate = errors.New("want a rate as in xl's rate=, such as 100Mb/s or 10MB/s@20ms")

// ParseRate parses a rate as in the configuration of a guest of xl: b is bits, B is bytes.
// An empty text is no limit.
func ParseRate(text string) (Rate, error) {
	if text == "" {
		return Rate{}, nil
	}
	m := rateSyntax.FindStringSubmatch(text)
	if m == nil {
		return Rate{}, fmt.Errorf("%q: %w", text, ErrRate)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return Rate{}, fmt.Errorf("%q: %w", text, ErrRate)
	}
	n *= map[string]float64{"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[strings.ToUpper(m[2])]
	if m[3] == "b" {
		n /= 8
	}
	r := Rate{Interval: defaultInterval}
	if m[4] != "" {
		if r.Interval, err = time.ParseDuration(m[4] + m[5]); err != nil || r.Interval <= 0 || r.Interval > time.Hour {
			return Rate{}, fmt.Errorf("%q: %w", text, ErrRate)
		}
	}
	n *= r.Interval.Seconds()
	if n < 1 || n > math.MaxUint32*1e3 {
		return Rate{}, fmt.Errorf("%q: %w", text, ErrRate)
	}
	r.Bytes = uint64(n)
	return r, nil
}

// String describes the rate as that of a vif is.
func (r Rate) String() string {
	if r.Bytes == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("%d B/%v", r.Bytes, r.Interval)
}
