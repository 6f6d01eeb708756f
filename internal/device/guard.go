// SPDX-License-Identifier: Apache-2.0

package device

import (
	"fmt"
	"runtime/debug"

	"go.uber.org/zap"
)

// Guard runs f. It turns a panic in f into an error and passes that to then. If then panics
// as well, it is given up.
func Guard(log *zap.Logger, f func(), then func(error)) {
	defer recovered(log, then)
	f()
}

// recovered must be deferred.
func recovered(log *zap.Logger, then func(error)) {
	r := recover()
	if r == nil {
		return
	}
	log.Error("internal error", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
	defer recovered(log, func(error) {})
	then(fmt.Errorf("internal error: %v", r))
}
