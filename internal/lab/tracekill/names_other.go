// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package tracekill

import "fmt"

func otherName(nr int) string { return fmt.Sprintf("call %d", nr) }
