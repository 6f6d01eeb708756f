// SPDX-License-Identifier: Apache-2.0

package toeplitz_test

import (
	"encoding/hex"
	"fmt"
	"log"

	"github.com/netbackd/netbackd/pkg/toeplitz"
)

func Example() {
	key, err := hex.DecodeString("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
	if err != nil {
		log.Fatal(err)
	}
	hasher, err := toeplitz.New(key)
	if err != nil {
		log.Fatal(err)
	}
	mapping := toeplitz.NewMapping(4)
	if err := mapping.SetSize(128); err != nil {
		log.Fatal(err)
	}
	if err := mapping.Set(0x78, []uint32{3}); err != nil {
		log.Fatal(err)
	}

	// A TCP segment from 66.9.149.187:2794 to 161.142.100.80:1766.
	frame, err := hex.DecodeString("0200000000020200000000010800" +
		"450000280000400040060000" + "420995bb" + "a18e6450" +
		"0aea06e6" + "00000000000000005010ffff00000000")
	if err != nil {
		log.Fatal(err)
	}
	var tuple toeplitz.Tuple
	if tuple.Extract(frame, toeplitz.AllTypes) {
		hash := hasher.Hash(tuple.Input())
		fmt.Printf("%s %08x queue %d\n", tuple.Type(), hash, mapping.Queue(hash))
	}
	// Output: ipv4+tcp 51ccc178 queue 3
}
