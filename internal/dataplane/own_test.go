// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// ownPager is the device with which a worker of a test grants pages to itself.
type ownPager struct{ *xentest.Own }

func (p ownPager) AllocOwn(mem []byte) (*gntalloc.Pages, error) {
	return p.AllocAt(mem, xen.Dom0, true)
}

// startOwn opens the device for a test. It has as many pages as several workers want.
func startOwn(tb testing.TB) ownPager { return ownPager{xentest.StartOwn(tb, 1<<16)} }
