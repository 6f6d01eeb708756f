// SPDX-License-Identifier: Apache-2.0

// Guest is the first process of a guest under QEMU.
package main

import "github.com/netbackd/netbackd/internal/lab/foreign/vmagent"

func main() { vmagent.Main() }
