// SPDX-License-Identifier: Apache-2.0

// Command netbackd is a Xen network back end in userspace, with the commands that
// administer it. See `netbackd help`.
package main

import (
	"github.com/netbackd/netbackd/internal/cli"
	"github.com/netbackd/netbackd/internal/host"
)

func main() {
	cli.Main(cli.New(func(dir string) (cli.Host, error) { return host.Open(dir) }))
}
