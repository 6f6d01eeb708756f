// SPDX-License-Identifier: Apache-2.0

// Command netbackd is a Xen network back end in userspace, with the commands that
// administer it. See `netbackd help`.
package main

import (
	"github.com/netbackd/netbackd/internal/cli"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/host/nethost"
	"github.com/netbackd/netbackd/internal/netcontrol"
)

func main() {
	command.Main(netcontrol.Program, cli.New(func(dir string) (cli.Host, error) { return nethost.Open(dir) }, nethost.Adopter{}))
}
