// SPDX-License-Identifier: Apache-2.0

// Command blkbackd is a Xen block back end in userspace, with the commands that administer
// it. See `blkbackd help`.
package main

import (
	"github.com/netbackd/netbackd/internal/blkcli"
	"github.com/netbackd/netbackd/internal/blkcontrol"
	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/host/blkhost"
)

func main() {
	command.Main(blkcontrol.Program, blkcli.New(func(dir string) (blkcli.Host, error) { return blkhost.Open(dir) }, blkhost.Adopter{}, blkcli.Steps{}))
}
