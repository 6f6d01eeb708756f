// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
)

func TestVersion(t *testing.T) {
	defer func(v string) { version = v }(version)
	version = "v1.2.3"
	run := func(a ...string) (string, error) {
		var out bytes.Buffer
		c := NewRoot("netbackd", "", "", "")
		c.AddCommand(NewVersionCmd("netbackd"))
		c.SetArgs(a)
		c.SetOut(&out)
		err := c.Execute()
		return out.String(), err
	}
	platform := fmt.Sprintf("%s, %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if out, err := run("version"); err != nil || out != "netbackd v1.2.3 ("+platform+")\n" {
		t.Errorf("got %q, %v", out, err)
	}
	want := fmt.Sprintf("{\n  \"schema\": 1,\n  \"version\": \"v1.2.3\",\n  \"go\": %q,\n  \"os\": %q,\n  \"arch\": %q\n}\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if out, err := run("version", "--json"); err != nil || out != want {
		t.Errorf("got %q, %v; want %q", out, err, want)
	}
	version = ""
	if Version() == "" {
		t.Error("no version")
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "1.0k", 1049: "1.0k", 1050: "1.1k", 999_949: "999.9k", 999_950: "1.0M",
		1_000_000: "1.0M", 123_456_789_012: "123.5G", 1<<64 - 1: "18.4E",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}
