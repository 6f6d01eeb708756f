// SPDX-License-Identifier: Apache-2.0

// Package procs supervises the processes of a broker, which serve the rings of its devices. It
// starts them when devices need them, ends them when no device does, pings them, kills those
// that do not answer, and starts others in the place of those that have ended. Guests whose
// process dies again and again are separated, so that the one that causes it is alone in the
// end.
//
// The package knows neither the devices nor what a process does for them: an engine gives it the
// rules of its messages ([Wire]), and is told of messages and deaths ([Link]).
package procs
