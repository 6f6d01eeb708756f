// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// Program is a steering program in the kernel, for one TAP device, with its own
// configuration. Its methods belong to one goroutine at a time.
//
// A device keeps the program and its configuration when the Program is closed or the
// process ends. The configuration cannot be changed then; a successor makes a program of
// its own and gives it to the device, which switches between two frames.
type Program struct {
	prog *ebpf.Program
	slot *ebpf.Map // one entry: the map with the present configuration
}

// Layout of the configuration in the map, in the byte order of the machine.
const (
	offTypes   = 0  // u32
	offSize    = 4  // u32: entries of the mapping table
	offModulus = 8  // u32: Size, or the number of queues if that is 0
	offMapping = 16 // u16 each
	offBytes   = offMapping + 2*toeplitz.MaxMapping
	byteSize   = 256 * 4 // table of one input byte, u32 each
	valueSize  = offBytes + toeplitz.MaxInput*byteSize
)

// valueSpec describes a map with one configuration. It does not change once it is made.
func valueSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name:       "steer_config",
		Type:       ebpf.Array,
		KeySize:    4,
		ValueSize:  valueSize,
		MaxEntries: 1,
	}
}

// New loads a program that has the zero [Config]. If the kernel does not accept it, the
// error is an *[Error] with a hint.
func New() (*Program, error) {
	p, err := load()
	return p, fail("load", err)
}

func load() (_ *Program, err error) {
	value, err := newValue(new(Config))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, value.Close()) }()
	p := new(Program)
	p.slot, err = ebpf.NewMap(&ebpf.MapSpec{
		Name:       "steer",
		Type:       ebpf.ArrayOfMaps,
		KeySize:    4,
		ValueSize:  4,
		MaxEntries: 1,
		InnerMap:   valueSpec(),
		Contents:   []ebpf.MapKV{{Key: uint32(0), Value: value}},
	})
	if err != nil {
		return nil, err
	}
	p.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "steer",
		Type:         ebpf.SocketFilter,
		Instructions: instructions(p.slot.FD()),
		License:      "Apache-2.0",
	})
	if err != nil {
		return nil, errors.Join(err, p.slot.Close())
	}
	return p, nil
}

// FD returns the file descriptor for tap.Device.SetSteering. The device has its own
// reference to the program.
func (p *Program) FD() int { return p.prog.FD() }

// Set puts a configuration in force. Each frame is steered entirely by the old or by the
// new one. When Set returns, the last frame has been steered by the old one; it waits
// for that, some milliseconds, in a system call. On error the old one stays in force.
func (p *Program) Set(c *Config) error { return fail("set", p.set(c)) }

func (p *Program) set(c *Config) error {
	if p.slot == nil {
		return os.ErrClosed
	}
	value, err := newValue(c)
	if err != nil {
		return err
	}
	// The kernel waits for the readers of the old map.
	err = p.slot.Put(uint32(0), value)
	return errors.Join(err, value.Close())
}

// Close closes the program and its maps.
func (p *Program) Close() error {
	if p.slot == nil {
		return nil
	}
	err := errors.Join(p.prog.Close(), p.slot.Close())
	p.prog, p.slot = nil, nil
	return err
}

func newValue(c *Config) (*ebpf.Map, error) {
	value, err := ebpf.NewMap(valueSpec())
	if err != nil {
		return nil, err
	}
	if err := value.Put(uint32(0), c.encode()); err != nil {
		return nil, errors.Join(fmt.Errorf("fill table: %w", err), value.Close())
	}
	return value, nil
}

func (c *Config) encode() []byte {
	b := make([]byte, valueSize)
	ne := binary.NativeEndian
	ne.PutUint32(b[offTypes:], uint32(c.Types))
	mapping := c.Mapping.Table()
	ne.PutUint32(b[offSize:], uint32(len(mapping)))
	ne.PutUint32(b[offModulus:], uint32(c.Mapping.Queues()))
	if len(mapping) > 0 {
		ne.PutUint32(b[offModulus:], uint32(len(mapping)))
	}
	for i, queue := range mapping {
		ne.PutUint16(b[offMapping+2*i:], queue)
	}
	if c.Hasher == nil {
		return b
	}
	for i, values := range c.Hasher.ByteTable() {
		for v, hash := range values {
			ne.PutUint32(b[offBytes+i*byteSize+4*v:], hash)
		}
	}
	return b
}

// Probe loads the program to find out whether the kernel accepts it. The error is an
// *[Error] with the reason and a hint.
func Probe() error {
	p, err := New()
	if err != nil {
		return err
	}
	return p.Close()
}
