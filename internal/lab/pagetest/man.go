// SPDX-License-Identifier: Apache-2.0

// Package pagetest compares manual pages and units with the programs that they are of, for
// tests.
package pagetest

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Man is a manual page as it is read: without escapes and font requests.
type Man string

// ReadMan reads a manual page.
func ReadMan(t *testing.T, path string) Man {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), `\-`, "-")
	return Man(regexp.MustCompile(`\\f[A-Z]|"`).ReplaceAllString(text, ""))
}

// section returns the part below a heading.
func (m Man) section(heading string) string {
	_, part, _ := strings.Cut(string(m), ".SH "+heading)
	part, _, _ = strings.Cut(part, ".SH ")
	return part
}

// Commands checks that the page names all commands and flags of a program, and no other flag,
// and that it has a paragraph for each flag of run.
func (m Man) Commands(t *testing.T, root *cobra.Command) {
	t.Helper()
	root.InitDefaultCompletionCmd()
	known := map[string]bool{"--help": true}
	for _, c := range root.Commands() {
		if c.Hidden { // a part of another command
			continue
		}
		if !regexp.MustCompile(`(?m)^\.[BR]+ .*\b` + c.Name() + `\b`).MatchString(string(m)) {
			t.Errorf("the command %s is missing", c.Name())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) { known["--"+f.Name] = true })
		c.InheritedFlags().VisitAll(func(f *pflag.Flag) { known["--"+f.Name] = true })
	}
	for flag := range known {
		if !regexp.MustCompile(flag + `\b`).MatchString(string(m)) {
			t.Errorf("the flag %s is missing", flag)
		}
	}
	for _, flag := range regexp.MustCompile(`--[a-z][a-z-]*`).FindAllString(string(m), -1) {
		if !known[flag] {
			t.Errorf("%s has no flag %s", root.Name(), flag)
		}
	}
	options := m.section("OPTIONS OF RUN")
	for _, c := range root.Commands() {
		if c.Name() != "run" {
			continue
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !regexp.MustCompile(`(?m)^\.BI?R? --`+f.Name+`\b`).MatchString(options) {
				t.Errorf("run's flag --%s has no paragraph", f.Name)
			}
		})
	}
}

// Counters checks that the page explains each counter under the name that the program
// prints, and no other.
func (m Man) Counters(t *testing.T, help map[string]string) {
	t.Helper()
	section := m.section("COUNTERS")
	for name, text := range help {
		if want := ".TP\n.B " + name + "\n" + text + ".\n"; !strings.Contains(section, want) {
			t.Errorf("want\n%s", want)
		}
	}
	if got := strings.Count(section, ".TP\n"); got != len(help) {
		t.Errorf("%d counters are explained, there are %d", got, len(help))
	}
}
