// SPDX-License-Identifier: Apache-2.0

package device

import "time"

// Alarm wakes the goroutine that owns a device at a time, or earlier.
type Alarm struct {
	timer *time.Timer
	at    time.Time // when the timer fires; zero: it does not
}

// NewAlarm makes an alarm that is not set.
func NewAlarm() Alarm { return Alarm{timer: time.NewTimer(time.Hour)} }

// C receives when the alarm goes off. Then the owner calls Rang.
func (a *Alarm) C() <-chan time.Time { return a.timer.C }

// Rang records that the alarm has gone off.
func (a *Alarm) Rang() { a.at = time.Time{} }

// In sets the alarm to d from now, unless it goes off earlier.
func (a *Alarm) In(d time.Duration) { a.Set(time.Now().Add(d)) }

// Set sets the alarm to a time, unless it goes off earlier.
func (a *Alarm) Set(at time.Time) {
	if a.at.IsZero() || at.Before(a.at) {
		a.at = at
		a.timer.Reset(time.Until(at))
	}
}

// At returns the time for which the alarm is set, zero if it is not.
func (a *Alarm) At() time.Time { return a.at }

// Stop stops the alarm for good.
func (a *Alarm) Stop() { a.timer.Stop() }
