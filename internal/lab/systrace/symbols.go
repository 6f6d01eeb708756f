// SPDX-License-Identifier: Apache-2.0

package systrace

import (
	"debug/elf"
	"debug/gosym"
)

// symbols are the functions of a program in Go, which also a stripped one has.
type symbols struct{ table *gosym.Table }

// readSymbols reads them. A program without has none.
func readSymbols(exe string) *symbols {
	f, err := elf.Open(exe)
	if err != nil {
		return &symbols{}
	}
	defer func() { _ = f.Close() }()
	lines, text := f.Section(".gopclntab"), f.Section(".text")
	if lines == nil || text == nil {
		return &symbols{}
	}
	data, err := lines.Data()
	if err != nil {
		return &symbols{}
	}
	start := text.Addr
	if all, err := f.Symbols(); err == nil {
		for _, s := range all {
			if s.Name == "runtime.text" {
				start = s.Value // C code may precede it
			}
		}
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, start))
	if err != nil {
		return &symbols{}
	}
	return &symbols{table}
}

// function returns the name of the function at an address, "" if it is not one in Go.
func (s *symbols) function(pc uint64) string {
	if s.table == nil {
		return ""
	}
	if f := s.table.PCToFunc(pc); f != nil {
		return f.Name
	}
	return ""
}
