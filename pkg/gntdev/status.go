// SPDX-License-Identifier: Apache-2.0

package gntdev

import "strconv"

// Status is the outcome of one grant operation: GNTST_* of
// xen/include/public/grant_table.h. It is an error, comparable with errors.Is.
// Only [StatusOkay] is not a failure; see [Status.Err].
type Status int16

// The values of GNTST_*.
const (
	StatusOkay             Status = 0
	StatusGeneralError     Status = -1
	StatusBadDomain        Status = -2
	StatusBadGntref        Status = -3
	StatusBadHandle        Status = -4
	StatusBadVirtAddr      Status = -5
	StatusBadDevAddr       Status = -6
	StatusNoDeviceSpace    Status = -7
	StatusPermissionDenied Status = -8
	StatusBadPage          Status = -9
	StatusBadCopyArg       Status = -10
	StatusAddressTooBig    Status = -11
	StatusEagain           Status = -12
	StatusNoSpace          Status = -13
)

// statusNames holds the header's names, indexed by the negated value.
var statusNames = [...]string{
	"GNTST_okay",
	"GNTST_general_error",
	"GNTST_bad_domain",
	"GNTST_bad_gntref",
	"GNTST_bad_handle",
	"GNTST_bad_virt_addr",
	"GNTST_bad_dev_addr",
	"GNTST_no_device_space",
	"GNTST_permission_denied",
	"GNTST_bad_page",
	"GNTST_bad_copy_arg",
	"GNTST_address_too_big",
	"GNTST_eagain",
	"GNTST_no_space",
}

// String returns the header's name, so that a log line can be searched for in
// Xen's sources.
func (s Status) String() string {
	if i := -int(s); i >= 0 && i < len(statusNames) {
		return statusNames[i]
	}
	return "GNTST unknown(" + strconv.Itoa(int(s)) + ")"
}

// Error returns the same as String.
func (s Status) Error() string { return s.String() }

// Err returns nil for [StatusOkay] and s itself otherwise.
func (s Status) Err() error {
	if s == StatusOkay {
		return nil
	}
	return s
}
