// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf/asm"

	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// Limits and protocols of toeplitz.Tuple.Extract.
const (
	maxTags       = 2
	maxExtensions = 8

	protoHopByHop    = 0
	protoTCP         = 6
	protoRouting     = 43
	protoDestOptions = 60
)

// Two bytes of a packet, as a load of 16 bits returns them.
var (
	etherIPv4  = twoBytes(0x08, 0x00)
	etherVLAN  = twoBytes(0x81, 0x00)
	etherIPv6  = twoBytes(0x86, 0xdd)
	etherQinQ  = twoBytes(0x88, 0xa8)
	isFragment = twoBytes(0x3f, 0xff) // more fragments, or an offset
)

func twoBytes(a, b byte) int32 { return int32(binary.NativeEndian.Uint16([]byte{a, b})) }

// Members of struct __sk_buff (linux/bpf.h).
const (
	skbLen         = 0
	skbVLANPresent = 20
	skbVLANProto   = 28
)

// Offsets from the frame pointer. Headers are copied to the stack since a program of this
// type has no direct access to the packet.
const (
	stackIP    = -48 // IP header and what follows: at most 44 bytes
	stackEther = stackIP - 2
	stackExt   = stackIP - 4 // start of an IPv6 extension header
	stackKey   = -4          // of map look-ups, before any header is read
)

// Registers that keep their values over calls.
const (
	ctx    = asm.R6 // struct __sk_buff
	config = asm.R7 // map value with the configuration
	offset = asm.R8 // offset of the next header in the frame
	tags   = asm.R9 // maximum of VLAN tags that may follow
	sum    = asm.R0 // hash so far; no calls are made while it is in use
)

// assembler appends instructions to a list.
type assembler struct {
	list  asm.Instructions
	label string // label of the next instruction
	meets int    // number of labels made by meet
}

// emit appends instructions.
func (a *assembler) emit(list ...asm.Instruction) {
	for _, ins := range list {
		if a.label != "" {
			ins = ins.WithSymbol(a.label)
			a.label = ""
		}
		a.list = append(a.list, ins)
	}
}

// at labels the next instruction. An instruction has one label at most.
func (a *assembler) at(label string) {
	if a.label != "" {
		a.emit(asm.Ja.Label(label))
	}
	a.label = label
}

// load copies n bytes of the frame from offset+delta to the stack. If the frame is too
// short it jumps to the label short.
func (a *assembler) load(delta, to, n int32, short string) {
	a.emit(
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Reg(asm.R2, offset),
	)
	if delta != 0 {
		a.emit(asm.Add.Imm(asm.R2, delta))
	}
	a.emit(
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, to),
		asm.Mov.Imm(asm.R4, n),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, short),
	)
}

// MaxMapping is a power of two, so that the program can mask an index of the table.
var _ = [1]struct{}{}[toeplitz.MaxMapping&(toeplitz.MaxMapping-1)]

// unless jumps to the label if a type is not enabled.
func (a *assembler) unless(t toeplitz.Type, label string) {
	a.emit(
		asm.LoadMem(asm.R1, config, offTypes, asm.Word),
		asm.And.Imm(asm.R1, 1<<t),
		asm.JEq.Imm(asm.R1, 0, label),
	)
}

// hash adds n bytes of the stack to the hash, as input bytes first and on.
func (a *assembler) hash(stack int16, first, n int) {
	for i := range n {
		a.emit(
			asm.LoadMem(asm.R1, asm.RFP, stack+int16(i), asm.Byte),
			asm.LSh.Imm(asm.R1, 2),
			asm.Add.Reg(asm.R1, asm.R5),
			asm.LoadMem(asm.R1, asm.R1, int16((first+i)*byteSize-byteBias), asm.Word),
			asm.Xor.Reg(sum, asm.R1),
		)
		if i%2 == 1 {
			a.meet()
		}
	}
}

// meet makes the verifier compare its state with earlier states at this place. Without
// CAP_PERFMON the verifier follows each look-up twice, the second time like a speculating
// processor. That makes 2^36 paths, unless it finds their states equal. The kernel removes
// these jumps after verification.
func (a *assembler) meet() {
	for range 2 { // the verifier records a prune point only after two jumps
		a.meets++
		label := fmt.Sprintf("meet %d", a.meets)
		a.emit(asm.Ja.Label(label))
		a.at(label)
	}
}

// byteBias is the offset in the byte table that hash's register points to: the table is
// larger than the offsets of an instruction reach.
const byteBias = toeplitz.MaxInput / 2 * byteSize

// startHash sets the registers that hash uses.
func (a *assembler) startHash() {
	a.emit(
		asm.Mov.Reg(asm.R5, config),
		asm.Add.Imm(asm.R5, offBytes+byteBias),
		asm.Mov.Imm(sum, 0),
	)
}

// instructions returns the program. It chooses the same queue as Config.Choose; slot is
// the descriptor of the map of maps with the configuration.
//
// A steering program (tun_select_queue in drivers/net/tun.c, called from
// __dev_queue_xmit) sees the packet from its Ethernet header on, except for an outermost
// VLAN tag that the host keeps in the metadata: TAPs accept tags there
// (NETIF_F_HW_VLAN_CTAG_TX and _STAG_TX), and put them back in place when the packet is
// read (tun_put_user).
func instructions(slot int) asm.Instructions {
	a := new(assembler)
	a.emit(
		asm.Mov.Reg(ctx, asm.R1),
		asm.StoreImm(asm.RFP, stackKey, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, slot),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"), // impossible: the slot is never empty
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"), // impossible: element 0 of an array exists
		asm.Mov.Reg(config, asm.R0),
	)
	a.ethernet()
	a.ipv4()
	a.ipv6()
	a.queue()
	return a.list
}

// ethernet finds the IP header. Then offset is its offset, and the stack has 24 bytes
// from there for IPv4, 44 for IPv6.
func (a *assembler) ethernet() {
	a.emit(
		asm.Mov.Imm(offset, 14),
		asm.Mov.Imm(tags, maxTags),
		asm.LoadMem(asm.R1, ctx, skbVLANPresent, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "ethertype 0"),
		asm.Mov.Imm(tags, maxTags-1),
		asm.LoadMem(asm.R1, ctx, skbVLANProto, asm.Word),
		asm.JEq.Imm(asm.R1, etherVLAN, "ethertype 0"),
		asm.JNE.Imm(asm.R1, etherQinQ, "none"),
	)
	labels := [maxTags + 2]string{"ethertype 0", "ethertype 1", "ethertype 2", "none"}
	for i := range maxTags + 1 {
		tag, less := "tag "+labels[i], "less "+labels[i]
		isIP := func(ipv6 string) {
			a.emit(
				asm.LoadMem(asm.R1, asm.RFP, stackEther, asm.Half),
				asm.JEq.Imm(asm.R1, etherIPv4, "ipv4"),
				asm.JEq.Imm(asm.R1, etherIPv6, ipv6),
				asm.JEq.Imm(asm.R1, etherVLAN, tag),
				asm.JEq.Imm(asm.R1, etherQinQ, tag),
				asm.Ja.Label("none"),
			)
		}
		a.at(labels[i])
		// Calls are expensive, so the first one copies enough for most frames: an
		// IPv6 header and ports.
		a.emit(
			asm.Mov.Reg(asm.R1, offset),
			asm.Add.Imm(asm.R1, 44),
			asm.LoadMem(asm.R2, ctx, skbLen, asm.Word),
			asm.JGT.Reg(asm.R1, asm.R2, less),
		)
		a.load(-2, stackEther, 46, "none")
		isIP("ipv6")
		a.at(less)
		// Of frames too short for an IPv4 header and ports, also behind a tag,
		// only IPv4 can have a hash.
		a.load(-2, stackEther, 26, "short")
		isIP("ipv6 short")
		a.at(tag)
		a.emit(
			asm.JEq.Imm(tags, 0, "none"),
			asm.Sub.Imm(tags, 1),
			asm.Add.Imm(offset, 4),
		)
	}
	a.emit(asm.Ja.Label("none"))
}

func (a *assembler) ipv4() {
	const (
		fragment = stackIP + 6
		protocol = stackIP + 9
		address  = stackIP + 12
		ports    = stackIP + 20
	)
	// A header without options and less than 4 bytes behind it.
	a.at("short")
	a.load(-2, stackEther, 22, "none")
	a.emit(
		asm.LoadMem(asm.R1, asm.RFP, stackEther, asm.Half),
		asm.JNE.Imm(asm.R1, etherIPv4, "none"),
		asm.LoadMem(asm.R1, asm.RFP, stackIP, asm.Byte),
		asm.JNE.Imm(asm.R1, 0x45, "none"),
	)
	a.unless(toeplitz.IPv4TCP, "ipv4 addresses")
	a.emit(
		asm.LoadMem(asm.R1, asm.RFP, protocol, asm.Byte),
		asm.JNE.Imm(asm.R1, protoTCP, "ipv4 addresses"),
		asm.LoadMem(asm.R1, asm.RFP, fragment, asm.Half),
		asm.JSet.Imm(asm.R1, isFragment, "ipv4 addresses"),
		asm.Ja.Label("none"),
	)

	a.at("ipv4")
	a.emit(
		asm.LoadMem(asm.R1, asm.RFP, stackIP, asm.Byte),
		asm.Mov.Imm(asm.R2, 0),
		asm.JEq.Imm(asm.R1, 0x45, "ipv4 type"),
		// Options: the ports are elsewhere, and the header must end in the frame.
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.RSh.Imm(asm.R2, 4),
		asm.JNE.Imm(asm.R2, 4, "none"),
		asm.And.Imm(asm.R1, 15),
		asm.JLT.Imm(asm.R1, 5, "none"),
		asm.LSh.Imm(asm.R1, 2),
		asm.Add.Reg(offset, asm.R1),
		asm.LoadMem(asm.R1, ctx, skbLen, asm.Word),
		asm.JGT.Reg(offset, asm.R1, "none"),
	)
	a.at("ipv4 type") // R2 is 0 without options, 4 with
	a.unless(toeplitz.IPv4TCP, "ipv4 addresses")
	a.emit(
		asm.LoadMem(asm.R1, asm.RFP, protocol, asm.Byte),
		asm.JNE.Imm(asm.R1, protoTCP, "ipv4 addresses"),
		asm.LoadMem(asm.R1, asm.RFP, fragment, asm.Half),
		asm.JSet.Imm(asm.R1, isFragment, "ipv4 addresses"),
		asm.JEq.Imm(asm.R2, 0, "ipv4 ports"),
	)
	a.load(0, ports, 4, "none")
	a.at("ipv4 ports")
	a.startHash()
	a.hash(ports, 8, 4)
	a.emit(asm.Ja.Label("ipv4 hash"))

	a.at("ipv4 addresses")
	a.unless(toeplitz.IPv4, "none")
	a.startHash()
	a.at("ipv4 hash")
	a.hash(address, 0, 8)
	a.emit(asm.Ja.Label("queue"))
}

func (a *assembler) ipv6() {
	const (
		next    = stackIP + 6
		address = stackIP + 8
		ports   = stackIP + 40
	)
	// extension jumps to the label if R1 is the number of a header to skip.
	extension := func(label string) {
		for _, proto := range []int32{protoHopByHop, protoRouting, protoDestOptions} {
			a.emit(asm.JEq.Imm(asm.R1, proto, label))
		}
	}
	version := func() {
		a.emit(
			asm.LoadMem(asm.R1, asm.RFP, stackIP, asm.Byte),
			asm.RSh.Imm(asm.R1, 4),
			asm.JNE.Imm(asm.R1, 6, "none"),
		)
	}

	// Less than 4 bytes behind the header: too few for ports and for extensions.
	a.at("ipv6 short")
	a.load(0, stackIP, 40, "none")
	version()
	a.unless(toeplitz.IPv6TCP, "ipv6 addresses")
	a.emit(
		asm.LoadMem(asm.R1, asm.RFP, next, asm.Byte),
		asm.JEq.Imm(asm.R1, protoTCP, "none"),
	)
	extension("none")
	a.emit(asm.Ja.Label("ipv6 addresses"))

	a.at("ipv6")
	version()
	a.unless(toeplitz.IPv6TCP, "ipv6 addresses")
	a.emit(
		asm.LoadMem(asm.R1, asm.RFP, next, asm.Byte),
		asm.JEq.Imm(asm.R1, protoTCP, "ipv6 ports"),
		asm.Add.Imm(offset, 40),
	)
	labels := [maxExtensions + 1]string{"extension 0", "extension 1", "extension 2", "extension 3",
		"extension 4", "extension 5", "extension 6", "extension 7", "none"}
	extension(labels[0])
	a.emit(asm.Ja.Label("ipv6 addresses"))
	for i := range maxExtensions {
		a.at(labels[i])
		a.load(0, stackExt, 2, "none")
		a.emit(
			asm.LoadMem(asm.R1, asm.RFP, stackExt+1, asm.Byte),
			asm.LSh.Imm(asm.R1, 3),
			asm.Add.Imm(asm.R1, 8),
			asm.Add.Reg(offset, asm.R1),
			asm.LoadMem(asm.R1, ctx, skbLen, asm.Word),
			asm.JGT.Reg(offset, asm.R1, "none"),
			asm.LoadMem(asm.R1, asm.RFP, stackExt, asm.Byte),
			asm.JEq.Imm(asm.R1, protoTCP, "ipv6 late ports"),
		)
		extension(labels[i+1])
		a.emit(asm.Ja.Label("ipv6 addresses"))
	}

	a.at("ipv6 late ports")
	a.load(0, ports, 4, "none")
	a.at("ipv6 ports")
	a.startHash()
	a.hash(ports, 32, 4)
	a.emit(asm.Ja.Label("ipv6 hash"))

	a.at("ipv6 addresses")
	a.unless(toeplitz.IPv6, "none")
	a.startHash()
	a.at("ipv6 hash")
	a.hash(address, 0, 32)
	a.emit(asm.Ja.Label("queue"))
}

// queue maps the hash to a queue and ends the program.
func (a *assembler) queue() {
	a.at("none")
	a.emit(asm.Mov.Imm(sum, 0))
	a.at("queue")
	a.emit(
		asm.LoadMem(asm.R1, config, offModulus, asm.Word),
		asm.Mod.Reg32(sum, asm.R1),
		asm.LoadMem(asm.R1, config, offSize, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "exit"),
		asm.And.Imm(sum, toeplitz.MaxMapping-1), // it is less already, for the verifier
		asm.LSh.Imm(sum, 1),
		asm.Add.Reg(config, sum),
		asm.LoadMem(sum, config, offMapping, asm.Half),
	)
	a.at("exit")
	a.emit(asm.Return())
}
