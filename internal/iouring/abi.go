// SPDX-License-Identifier: Apache-2.0

package iouring

import "structs"

// Opcodes (enum io_uring_op).
const (
	opNop         = 0  // IORING_OP_NOP
	opReadv       = 1  // IORING_OP_READV
	opWritev      = 2  // IORING_OP_WRITEV
	opFsync       = 3  // IORING_OP_FSYNC
	opReadFixed   = 4  // IORING_OP_READ_FIXED
	opWriteFixed  = 5  // IORING_OP_WRITE_FIXED
	opPollAdd     = 6  // IORING_OP_POLL_ADD
	opPollRemove  = 7  // IORING_OP_POLL_REMOVE
	opAsyncCancel = 14 // IORING_OP_ASYNC_CANCEL
	opFallocate   = 17 // IORING_OP_FALLOCATE
	opRead        = 22 // IORING_OP_READ
	opWrite       = 23 // IORING_OP_WRITE
)

const (
	sqeFixedFile      = 1 << 0 // IOSQE_FIXED_FILE
	sqeIOLink         = 1 << 2 // IOSQE_IO_LINK
	sqeCQESkipSuccess = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS

	cancelAll = 1 << 0 // IORING_ASYNC_CANCEL_ALL
	cancelAny = 1 << 2 // IORING_ASYNC_CANCEL_ANY

	fsyncDatasync = 1 << 0 // IORING_FSYNC_DATASYNC
	pollAddMulti  = 1 << 0 // IORING_POLL_ADD_MULTI

	cqeMore = 1 << 1 // IORING_CQE_F_MORE

	sqCQOverflow = 1 << 1 // IORING_SQ_CQ_OVERFLOW
	sqTaskrun    = 1 << 2 // IORING_SQ_TASKRUN

	setupDisabled     = 1 << 6  // IORING_SETUP_R_DISABLED
	setupSubmitAll    = 1 << 7  // IORING_SETUP_SUBMIT_ALL
	setupCoopTaskrun  = 1 << 8  // IORING_SETUP_COOP_TASKRUN
	setupTaskrunFlag  = 1 << 9  // IORING_SETUP_TASKRUN_FLAG
	setupSingleIssuer = 1 << 12 // IORING_SETUP_SINGLE_ISSUER
	setupDeferTaskrun = 1 << 13 // IORING_SETUP_DEFER_TASKRUN

	enterGetEvents = 1 << 0 // IORING_ENTER_GETEVENTS
	enterExtArg    = 1 << 3 // IORING_ENTER_EXT_ARG

	registerBuffers     = 0  // IORING_REGISTER_BUFFERS
	unregisterBuffers   = 1  // IORING_UNREGISTER_BUFFERS
	registerFiles       = 2  // IORING_REGISTER_FILES
	unregisterFiles     = 3  // IORING_UNREGISTER_FILES
	registerFilesUpdate = 6  // IORING_REGISTER_FILES_UPDATE
	registerProbe       = 8  // IORING_REGISTER_PROBE
	registerRestrict    = 11 // IORING_REGISTER_RESTRICTIONS
	registerEnable      = 12 // IORING_REGISTER_ENABLE_RINGS
	registerMaxWorkers  = 19 // IORING_REGISTER_IOWQ_MAX_WORKERS

	restrictRegister = 0 // IORING_RESTRICTION_REGISTER_OP
	restrictOp       = 1 // IORING_RESTRICTION_SQE_OP
	restrictFlags    = 2 // IORING_RESTRICTION_SQE_FLAGS_ALLOWED

	offSQRing = 0          // IORING_OFF_SQ_RING
	offSQEs   = 0x10000000 // IORING_OFF_SQES

	probeOpSupported = 1 << 0 // IO_URING_OP_SUPPORTED
)

// Features that this package relies on (io_uring_params.features). Together they need
// Linux 5.17; the probe in New needs 5.19.
const (
	featSingleMmap   = 1 << 0  // both rings in one mapping
	featNoDrop       = 1 << 1  // completions are never lost
	featSubmitStable = 1 << 2  // iovecs and SQEs may be reused after submission
	featExtArg       = 1 << 8  // waiting with a time limit
	featCQESkip      = 1 << 11 // the request that cancels needs no completion

	featuresNeeded = featSingleMmap | featNoDrop | featSubmitStable | featExtArg | featCQESkip
)

// sqe is struct io_uring_sqe as reads, writes and cancellations use it.
type sqe struct {
	_        structs.HostLayout
	opcode   uint8
	flags    uint8 // IOSQE_*
	ioprio   uint16
	fd       int32 // slot, with IOSQE_FIXED_FILE
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32 // rw_flags (RWF_*), cancel_flags, fsync_flags or poll32_events
	userData uint64
	bufIndex uint16
	_        uint16    // personality
	_        int32     // splice_fd_in
	_        [2]uint64 // addr3, pad
}

// cqe is struct io_uring_cqe.
type cqe struct {
	_        structs.HostLayout
	userData uint64
	res      int32 // bytes, or a negative errno
	flags    uint32
}

// sqOffsets is struct io_sqring_offsets: the offsets of the submission ring's words in
// its mapping.
type sqOffsets struct {
	_                                                        structs.HostLayout
	head, tail, ringMask, ringEntries, flags, dropped, array uint32
	_                                                        uint32
	_                                                        uint64
}

// cqOffsets is struct io_cqring_offsets.
type cqOffsets struct {
	_                                                        structs.HostLayout
	head, tail, ringMask, ringEntries, overflow, cqes, flags uint32
	_                                                        uint32
	_                                                        uint64
}

// params is struct io_uring_params.
type params struct {
	_            structs.HostLayout
	sqEntries    uint32
	cqEntries    uint32
	flags        uint32 // IORING_SETUP_*
	sqThreadCPU  uint32
	sqThreadIdle uint32
	features     uint32 // IORING_FEAT_*
	wqFD         uint32
	_            [3]uint32
	sqOff        sqOffsets
	cqOff        cqOffsets
}

// filesUpdate is struct io_uring_files_update.
type filesUpdate struct {
	_      structs.HostLayout
	offset uint32
	_      uint32
	fds    *int32
}

// restriction is struct io_uring_restriction: what it allows, and the operation or the flags.
type restriction struct {
	_    structs.HostLayout
	kind uint16
	arg  uint8
	_    uint8
	_    [3]uint32
}

// probeOp is struct io_uring_probe_op.
type probeOp struct {
	_     structs.HostLayout
	op    uint8
	_     uint8
	flags uint16
	_     uint32
}

// probe is struct io_uring_probe with room for all possible opcode numbers.
type probe struct {
	_      structs.HostLayout
	lastOp uint8
	opsLen uint8
	_      uint16
	_      [3]uint32
	ops    [256]probeOp
}

// timespec is struct __kernel_timespec.
type timespec struct {
	_    structs.HostLayout
	sec  int64
	nsec int64
}

// geteventsArg is struct io_uring_getevents_arg.
type geteventsArg struct {
	_         structs.HostLayout
	sigmask   uint64
	sigmaskSz uint32
	_         uint32
	ts        *timespec
}

// iovec is struct iovec with the address as a number: it never points to the Go heap, so
// the garbage collector must not see it.
type iovec struct {
	_    structs.HostLayout
	base uintptr
	len  uint64
}
