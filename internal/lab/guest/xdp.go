// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Verdicts of an XDP program (linux/bpf.h).
const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3
)

// AttachXDP attaches an XDP program to an interface of this machine, in its driver, until
// the Closer is closed or the process ends. Programs are
//
//	pass       passes everything
//	drop       drops everything
//	ip         passes ARP and IPv4, so that it has to find the Ethernet header
//	echo       answers pings itself (XDP_TX); passes everything else
//	redirect   redirects pings to the interface to; passes everything else
func AttachXDP(ifname, program, to string) (io.Closer, error) {
	p, err := newXDP(program, to)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	in, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", ifname, err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: in.Index, Flags: link.XDPDriverMode})
	if err != nil {
		return nil, fmt.Errorf("attach the program to %s: %w", ifname, err)
	}
	return l, nil
}

// newXDP loads a program.
func newXDP(program, to string) (*ebpf.Program, error) {
	var insns asm.Instructions
	switch program {
	case "pass":
		insns = verdict("", xdpPass)
	case "drop":
		insns = verdict("", xdpDrop)
	case "ip":
		insns = ipOnly()
	case "echo":
		insns = onPing(echo()...)
	case "redirect":
		out, err := net.InterfaceByName(to)
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w", to, err)
		}
		insns = onPing(
			asm.Mov.Imm(asm.R1, int32(out.Index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
		)
	default:
		return nil, fmt.Errorf("no such program: %.40q", program)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: program, Type: ebpf.XDP, Instructions: insns, License: "Apache-2.0"})
	if err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	return p, nil
}

// verdict ends a program, at a label if there is one.
func verdict(label string, v int32) asm.Instructions {
	first := asm.Mov.Imm(asm.R0, v)
	if label != "" {
		first = first.WithSymbol(label)
	}
	return asm.Instructions{first, asm.Return()}
}

// header sets R2 to the packet, and jumps to label if it is shorter than n bytes.
func header(n int32, label string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, n),
		asm.JGT.Reg(asm.R4, asm.R3, label),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
	}
}

// network returns a 16-bit number in the byte order of a load from a packet.
func network(n uint16) int32 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return int32(binary.NativeEndian.Uint16(b[:]))
}

const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
)

func ipOnly() asm.Instructions {
	insns := append(header(14, "drop"),
		asm.JEq.Imm(asm.R5, network(typeIPv4), "pass"),
		asm.JEq.Imm(asm.R5, network(typeARP), "pass"),
	)
	insns = append(insns, verdict("drop", xdpDrop)...)
	return append(insns, verdict("pass", xdpPass)...)
}

// onPing runs then for ICMP echo requests in IPv4 without options, and passes everything
// else.
func onPing(then ...asm.Instruction) asm.Instructions {
	insns := append(header(42, "pass"),
		asm.JNE.Imm(asm.R5, network(typeIPv4), "pass"),
		asm.LoadMem(asm.R5, asm.R2, 14, asm.Byte),
		asm.JNE.Imm(asm.R5, 0x45, "pass"), // version and length of the header
		asm.LoadMem(asm.R5, asm.R2, 23, asm.Byte),
		asm.JNE.Imm(asm.R5, 1, "pass"), // ICMP
		asm.LoadMem(asm.R5, asm.R2, 34, asm.Byte),
		asm.JNE.Imm(asm.R5, 8, "pass"), // echo
	)
	insns = append(insns, then...)
	return append(insns, verdict("pass", xdpPass)...)
}

// echo makes the answer of an ICMP echo request and sends it back.
func echo() asm.Instructions {
	var insns asm.Instructions
	swap := func(a, b int16, size asm.Size) {
		insns = append(insns,
			asm.LoadMem(asm.R5, asm.R2, a, size),
			asm.LoadMem(asm.R6, asm.R2, b, size),
			asm.StoreMem(asm.R2, a, asm.R6, size),
			asm.StoreMem(asm.R2, b, asm.R5, size),
		)
	}
	swap(0, 6, asm.Word) // Ethernet addresses
	swap(4, 10, asm.Half)
	swap(26, 30, asm.Word) // IP addresses
	insns = append(insns,
		asm.StoreImm(asm.R2, 34, 0, asm.Byte), // echo reply; the checksum increases by the decrease of the type
		asm.LoadMem(asm.R5, asm.R2, 36, asm.Half),
		asm.Add.Imm(asm.R5, network(8<<8)),
		asm.Mov.Reg(asm.R6, asm.R5),
		asm.RSh.Imm(asm.R6, 16),
		asm.Add.Reg(asm.R5, asm.R6),
		asm.StoreMem(asm.R2, 36, asm.R5, asm.Half),
	)
	return append(insns, verdict("", xdpTX)...)
}
