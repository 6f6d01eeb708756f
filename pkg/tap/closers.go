// SPDX-License-Identifier: Apache-2.0

package tap

// Closers bounds how many devices are being closed at a time.
//
// Removing a device takes the kernel some 15 ms, nearly all of it waiting for
// other CPUs to let go of it. Closing many one after the other adds that up: 16 s
// for 1000. Closing them all at once waits only once, but costs a thread each
// while it lasts. Between the two, with 32 at a time, 1000 devices take
// about a second:
//
//	closers := tap.NewClosers(32)
//	// every device is created with Config.Closers = closers
//	for _, d := range devices {
//		go d.Close()
//	}
//
// The goroutines that wait for their turn cost no thread.
type Closers struct{ slots chan struct{} }

// NewClosers returns a bound of n devices, at least 1.
func NewClosers(n int) *Closers {
	return &Closers{slots: make(chan struct{}, max(n, 1))}
}

// do runs f when its turn comes. A nil *Closers has no bound.
func (c *Closers) do(f func()) {
	if c == nil {
		f()
		return
	}
	c.slots <- struct{}{}
	defer func() { <-c.slots }()
	f()
}
