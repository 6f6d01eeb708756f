// SPDX-License-Identifier: Apache-2.0

package offload

// Error says why a packet cannot be handled. Every function of this package
// that fails returns one of the values below as its error, so it can be
// compared, or asserted and used as an index to count by.
type Error uint8

// Reasons to drop a packet.
const (
	// ErrTruncated: a header reaches beyond the end of the packet.
	ErrTruncated Error = iota + 1
	// ErrHeadShort: a header reaches beyond the octets that were given, but
	// not beyond the packet. [MaxHeader] octets are always enough.
	ErrHeadShort
	// ErrIPHeader: an IP header of a wrong version or of less than its
	// smallest length.
	ErrIPHeader
	// ErrExtHeaders: more IPv6 extension headers, or longer ones, than are
	// followed.
	ErrExtHeaders
	// ErrTCPHeader: a TCP header of less than its smallest length.
	ErrTCPHeader
	// ErrNotTCPUDP: a checksum is left open in something else than TCP or UDP.
	ErrNotTCPUDP
	// ErrFragment: a checksum or segmentation is asked for on a fragment,
	// which is not the whole of what a checksum covers.
	ErrFragment
	// ErrCsumRange: the checksum to finish is not within the packet.
	ErrCsumRange
	// ErrGSOType: a type of segmentation that does not exist or is not
	// supported.
	ErrGSOType
	// ErrGSOMismatch: the type of segmentation is not that of the packet.
	ErrGSOMismatch
	// ErrGSOSize: segments of no size, of the size 0xffff that Linux keeps for
	// itself (GSO_BY_FRAGS), or smaller than a guest may ask for.
	ErrGSOSize
	// ErrTooLong: more than an IP packet can hold.
	ErrTooLong

	// NumErrors is the size of a table indexed by Error.
	NumErrors
)

var errorText = [NumErrors]string{
	ErrTruncated:   "header reaches beyond the packet",
	ErrHeadShort:   "header reaches beyond the linear part",
	ErrIPHeader:    "bad IP header",
	ErrExtHeaders:  "too many IPv6 extension headers",
	ErrTCPHeader:   "bad TCP header",
	ErrNotTCPUDP:   "checksum offload on a packet that is not TCP or UDP",
	ErrFragment:    "offload on a fragment",
	ErrCsumRange:   "checksum field beyond the packet",
	ErrGSOType:     "unknown GSO type",
	ErrGSOMismatch: "GSO type does not match the packet",
	ErrGSOSize:     "bad GSO size",
	ErrTooLong:     "longer than an IP packet can be",
}

func (e Error) Error() string {
	if e == 0 || e >= NumErrors {
		return "unknown offload error"
	}
	return errorText[e]
}
