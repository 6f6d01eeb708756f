// SPDX-License-Identifier: Apache-2.0

package diskcheck

import (
	"encoding/binary"
	"fmt"
)

// SectorSize is the unit of the model in bytes.
const SectorSize = 512

// magic begins every sector that was written.
const magic = 0x6469736b67656e31

// Words of a sector: magic, seed, sector, generation, and 60 words that follow from them.
const (
	sectorWords = SectorSize / 8
	headerWords = 4
)

var le = binary.LittleEndian

// mix is a step of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fill writes the pattern of a sector to b, of 512 bytes.
func fill(b []byte, seed, sector uint64, gen uint32) {
	le.PutUint64(b, magic)
	le.PutUint64(b[8:], seed)
	le.PutUint64(b[16:], sector)
	le.PutUint64(b[24:], uint64(gen))
	x := mix(seed ^ mix(sector) ^ uint64(gen)<<32)
	for i := headerWords; i < sectorWords; i++ {
		x += 0x9e3779b97f4a7c15
		le.PutUint64(b[8*i:], x^x>>29)
	}
}

// read returns the generation of the sector in b. Zeros are generation 0. The error says what
// else there is.
func read(b []byte, seed, sector uint64) (gen uint32, err error) {
	if le.Uint64(b) == 0 {
		for i := range sectorWords {
			if le.Uint64(b[8*i:]) != 0 {
				return 0, fmt.Errorf("byte %d is not zero behind a start of zeros", 8*i)
			}
		}
		return 0, nil
	}
	gen = uint32(le.Uint64(b[24:]))
	if le.Uint64(b) != magic || le.Uint64(b[8:]) != seed {
		return 0, fmt.Errorf("no pattern of this disk: % x", b[:32])
	}
	if at := le.Uint64(b[16:]); at != sector {
		return 0, fmt.Errorf("the data of sector %d, generation %d", at, gen)
	}
	x := mix(seed ^ mix(sector) ^ uint64(gen)<<32)
	for i := headerWords; i < sectorWords; i++ {
		x += 0x9e3779b97f4a7c15
		if le.Uint64(b[8*i:]) != x^x>>29 {
			return gen, fmt.Errorf("generation %d, torn at byte %d", gen, 8*i)
		}
	}
	return gen, nil
}
