// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/netbackd/netbackd/internal/lab"
)

// ErrMissing: this machine cannot have a program.
var ErrMissing = errors.New("program missing")

// The programs that test/vhost/build fetches.
const (
	testpmd = "testpmd"
	// Passt is that of Debian 13.
	Passt = "passt"
	// OldQEMU and NewQEMU are those of Debian 12 and of its backports.
	OldQEMU = "qemu"
	NewQEMU = "qemu-backports"
)

// Programs are the programs of others, unpacked in a folder.
type Programs struct{ dir string }

// Fetch runs test/vhost/build, whose path is given, and returns what it fetched. An error of
// a program that is not there comes when that is started. If there is nothing at all the
// error wraps ErrMissing.
func Fetch(build string) (Programs, error) {
	said, err := exec.Command(build).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 77) {
		return Programs{}, fmt.Errorf("%s: %w\n%s", build, err, said)
	}
	dir, printed := exec.Command(build, "--print").Output()
	if printed != nil {
		return Programs{}, fmt.Errorf("%s --print: %w", build, printed)
	}
	p := Programs{strings.TrimSpace(string(dir))}
	if _, missing := p.path(testpmd); err != nil && missing != nil {
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		return Programs{}, fmt.Errorf("%w: %s", ErrMissing, lines[len(lines)-1])
	}
	return p, nil
}

// path returns the path of a program, or why it is not there.
func (p Programs) path(name string) (string, error) {
	path := filepath.Join(p.dir, "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	why, err := os.ReadFile(filepath.Join(p.dir, "bin", "no-"+name))
	if err != nil {
		why = []byte("it was not fetched")
	}
	return "", fmt.Errorf("%w: %s: %s", ErrMissing, name, strings.TrimSpace(string(why)))
}

// Version returns what a program says about its version, in one line.
func (p Programs) Version(name string) (string, error) {
	path, err := p.path(name)
	if err != nil {
		return "", err
	}
	said, err := exec.Command(path, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("version of %s: %w", name, err)
	}
	line, _, _ := strings.Cut(string(said), "\n")
	return line, nil
}

// start starts a program of these with a low priority: they poll, or emulate a machine.
func (p Programs) start(title, name string, args ...string) (*lab.Process, error) {
	path, err := p.path(name)
	if err != nil {
		return nil, err
	}
	return lab.Start(title, "nice", append([]string{"-n", "10", path}, args...)...)
}

// Dir returns the folder of the programs.
func (p Programs) Dir() string { return p.dir }

// At returns the programs in a folder, for a process that has no network to fetch them.
func At(dir string) Programs { return Programs{dir} }
