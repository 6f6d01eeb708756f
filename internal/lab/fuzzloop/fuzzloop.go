// SPDX-License-Identifier: Apache-2.0

package fuzzloop

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Environment of a run without guidance: the executions of each target, and the seed of
// the mutations.
const (
	EnvCount = "NETBACKD_FUZZ_COUNT"
	EnvSeed  = "NETBACKD_FUZZ_SEED"
)

// chunk is the number of executions that share a subtest: what a target leaves to t.Cleanup
// is done after so many.
const chunk = 500

// Fuzz runs a target, as f.Fuzz does. With a number in the environment it runs the target
// that often in this process.
func Fuzz(f *testing.F, target any) {
	f.Helper()
	total, err := strconv.ParseUint(os.Getenv(EnvCount), 10, 64)
	if err != nil || total == 0 {
		f.Fuzz(target)
		return
	}
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv(EnvSeed), 10, 64); err == nil {
		seed = s
	}
	l := &loop{
		name: f.Name(), fn: reflect.ValueOf(target), began: time.Now(),
		m: mutator{rng: rand.New(rand.NewPCG(seed, 0))},
	}
	seeds := uint64(seedsOf(f))
	left, share := total, total/seeds+1
	f.Fuzz(reflect.MakeFunc(l.fn.Type(), func(args []reflect.Value) []reflect.Value {
		n := min(share, left)
		left -= n
		l.from(args[0].Interface().(*testing.T), args[1:], n)
		return nil
	}).Interface())
	fmt.Printf("%s: %d executions without guidance in %.1f s, seed %d, %d inputs to begin with\n",
		l.name, l.done, time.Since(l.began).Seconds(), seed, seeds)
}

// seedsOf returns the number of inputs with which f.Fuzz calls a target.
func seedsOf(f *testing.F) int {
	files, _ := os.ReadDir(filepath.Join("testdata", "fuzz", f.Name()))
	return max(1, len(files)+reflect.ValueOf(f).Elem().FieldByName("corpus").Len())
}

// loop executes a target.
type loop struct {
	name  string
	fn    reflect.Value
	m     mutator
	done  uint64
	bad   bool // an input has failed
	began time.Time
}

// from executes the target n times with mutations of an input, the first time with the
// input itself.
func (l *loop) from(t *testing.T, input []reflect.Value, n uint64) {
	args := append([]reflect.Value{reflect.ValueOf(t)}, input...)
	l.m.learn(input)
	l.fn.Call(args)
	l.done++
	for n--; n > 0 && !l.bad; {
		part := min(n, chunk)
		n -= part
		t.Run("", func(t *testing.T) {
			args[0] = reflect.ValueOf(t)
			defer func() {
				if r := recover(); r != nil {
					l.keep(t, args[1:])
					panic(r)
				}
				if t.Failed() {
					l.keep(t, args[1:])
				}
			}()
			for ; part > 0 && !t.Failed(); part-- {
				for i, v := range input {
					args[1+i] = l.m.mutate(v)
				}
				l.fn.Call(args)
				l.done++
			}
		})
	}
}

// keep writes an input to testdata/fuzz.
func (l *loop) keep(t *testing.T, input []reflect.Value) {
	l.bad = true
	text := encode(input)
	dir := filepath.Join("testdata", "fuzz", l.name)
	file := filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:16])
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		t.Errorf("keep the input: %v\n%s", err, text)
	}
	t.Logf("the input is in %s", file)
}

// encode returns an input in the format of Go's corpora.
func encode(input []reflect.Value) string {
	var b strings.Builder
	b.WriteString("go test fuzz v1\n")
	for _, v := range input {
		switch v.Kind() {
		case reflect.Slice:
			fmt.Fprintf(&b, "[]byte(%q)\n", v.Bytes())
		case reflect.String:
			fmt.Fprintf(&b, "string(%q)\n", v.String())
		default:
			fmt.Fprintf(&b, "%s(%v)\n", v.Type(), v.Interface())
		}
	}
	return b.String()
}
