// SPDX-License-Identifier: Apache-2.0

package steer

// Kernel steers the packets of one TAP device by a [Program] in the host's kernel. Its
// methods belong to one goroutine at a time.
type Kernel struct {
	attach   func(program int) error
	program  *Program
	attached bool
}

// NewKernel returns a Kernel that has no program yet. attach gives the TAP device the
// program with this descriptor, or with -1 takes away the one it has
// (tap.Device.SetSteering).
func NewKernel(attach func(program int) error) *Kernel { return &Kernel{attach: attach} }

// Set makes the kernel steer by c, or with nil leaves the choice of the queue to the
// host. When it returns, the last packet has been steered the old way. On error the
// old configuration stays in force.
func (k *Kernel) Set(c *Config) (err error) {
	if k.program == nil {
		if k.program, err = New(); err != nil {
			return err
		}
	}
	if c != nil && k.attached {
		return k.program.Set(c)
	}
	fd := -1
	if c != nil {
		if err := k.program.Set(c); err != nil {
			return err
		}
		fd = k.program.FD()
	}
	if err := k.attach(fd); err != nil {
		return err
	}
	k.attached = c != nil
	if c == nil {
		c = new(Config)
	}
	// attach does not wait for packets that are being steered; Program.Set does. The
	// change has been made even if Program.Set fails for want of memory.
	_ = k.program.Set(c)
	return nil
}

// Close closes the program. The TAP device keeps it, until it gets another one.
func (k *Kernel) Close() error {
	if k.program == nil {
		return nil
	}
	err := k.program.Close()
	k.program = nil
	return err
}
