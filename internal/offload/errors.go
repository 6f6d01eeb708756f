// SPDX-License-Identifier: Apache-2.0

package offload

// Error is the reason why a packet cannot be handled. Every function of this
// package that fails returns one of the values below as its error; it can be
// compared, or asserted and used as the index of a counter.
type Error uint8

// Reasons to drop a packet.
const (
	// ErrTruncated: a header reaches beyond the end of the packet.
	ErrTruncated Error = iota + 1
	// ErrHeadShort: a header reaches beyond the bytes that were given, but
	// not beyond the packet. [MaxHeader] bytes are always enough.
	ErrHeadShort
	// ErrIPHeader: an IP header of a wrong version or of less than its
	// smallest length.
	ErrIPHeader
	// ErrExtHeaders: more IPv6 extension headers, or longer ones, than [Parse]
	// follows.
	ErrExtHeaders
	// ErrTCPHeader: a TCP header of less than its smallest length.
	ErrTCPHeader
	// ErrNotTCPUDP: a partial checksum in a packet that is not TCP or UDP.
	ErrNotTCPUDP
	// ErrFragment: a checksum or segmentation is requested for a fragment,
	// which has only a part of the bytes that a checksum covers.
	ErrFragment
	// ErrCsumRange: the checksum field is not within the packet.
	ErrCsumRange
	// ErrGSOType: a GSO type that does not exist or is not supported.
	ErrGSOType
	// ErrGSOMismatch: the GSO type does not fit the packet's protocols.
	ErrGSOMismatch
	// ErrGSOSize: a segment size of 0, of 0xffff (reserved, GSO_BY_FRAGS), or
	// below [MinGSOSize].
	ErrGSOSize
	// ErrTooLong: longer than an IP packet can be.
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
