// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/netbackd/netbackd/internal/blkplane"
)

// manPage returns the manual page as it is read: without escapes and font requests.
func manPage(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../packaging/blkbackd.8")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), `\-`, "-")
	return regexp.MustCompile(`\\f[A-Z]|"`).ReplaceAllString(text, "")
}

// TestManPageNamesEveryCommandAndFlag: the page names all commands and flags of the program,
// and no other flag, and has a paragraph for each flag of run.
func TestManPageNamesEveryCommandAndFlag(t *testing.T) {
	text := manPage(t)
	root := New(nil)
	root.InitDefaultCompletionCmd()
	known := map[string]bool{"--help": true}
	var run *cobra.Command
	for _, c := range root.Commands() {
		if !regexp.MustCompile(`(?m)^\.[BR]+ .*\b` + c.Name() + `\b`).MatchString(text) {
			t.Errorf("the command %s is missing", c.Name())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) { known["--"+f.Name] = true })
		c.InheritedFlags().VisitAll(func(f *pflag.Flag) { known["--"+f.Name] = true })
		if c.Name() == "run" {
			run = c
		}
	}
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { known["--"+f.Name] = true })
	for flag := range known {
		if !regexp.MustCompile(flag + `\b`).MatchString(text) {
			t.Errorf("the flag %s is missing", flag)
		}
	}
	for _, flag := range regexp.MustCompile(`--[a-z][a-z-]*`).FindAllString(text, -1) {
		if !known[flag] {
			t.Errorf("blkbackd has no flag %s", flag)
		}
	}
	_, options, _ := strings.Cut(text, ".SH OPTIONS OF RUN")
	options, _, _ = strings.Cut(options, ".SH ")
	run.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && !regexp.MustCompile(`(?m)^\.BI?R? --`+f.Name+`\b`).MatchString(options) {
			t.Errorf("run's flag --%s has no paragraph", f.Name)
		}
	})
}

// TestManPageExplainsEveryCounter: the page explains each counter under the name that show
// prints.
func TestManPageExplainsEveryCounter(t *testing.T) {
	_, section, _ := strings.Cut(manPage(t), ".SH COUNTERS")
	section, _, _ = strings.Cut(section, ".SH ")
	for _, c := range blkplane.Counters {
		if want := ".TP\n.B " + c.Name + "\n" + c.Help + ".\n"; !strings.Contains(section, want) {
			t.Errorf("want\n%s", want)
		}
	}
	if got, n := strings.Count(section, ".TP\n"), len(blkplane.Counters); got != n {
		t.Errorf("%d counters are explained, there are %d", got, n)
	}
}
