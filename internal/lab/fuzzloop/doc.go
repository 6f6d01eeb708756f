// SPDX-License-Identifier: Apache-2.0

// Package fuzzloop runs a fuzz target many times in one process.
//
// Go's engine guides its mutations by coverage, starts a goroutine for each execution and
// keeps a second process in step: a cheap target runs 10,000 to 100,000 times per second.
// With a number in NETBACKD_FUZZ_COUNT, [Fuzz] executes the target that many times without
// guidance instead, ten times as fast. Each input is a seed of the target, or a file of
// its testdata/fuzz, with one to eight mutations. So the corpus should be that of a guided
// run. Without the variable Fuzz is f.Fuzz.
//
//	NETBACKD_FUZZ_COUNT=100000000 go test -run '^FuzzParse$' -v -timeout 0 ./internal/offload
//
// The last line says how many executions there were, and how long they took. NETBACKD_FUZZ_SEED
// repeats a run. An input that fails is written to testdata/fuzz, as Go's engine does.
package fuzzloop
