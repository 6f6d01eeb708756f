// SPDX-License-Identifier: Apache-2.0
//
// The data path's peers: bare write, writev, read and readv on a TAP queue, a forwarder
// with rings, and the kernel's vhost-net, which measure their own time. The protocol and the layout of memory are described in
// internal/lab/bench (Child).
//
// In a process with threads each call takes some 30 ns more: the table of open
// files is shared, so the kernel takes a reference to the file and gives it back.
// netbackd has threads, and so has this process unless its argument is "single".

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { LOAD, WRITE, WRITEV, READ, READV, FORWARD_TX, FORWARD_RX, VHOST };
enum { BATCH = 128, GUEST = 256, PAGE = 4096, HDR = 12, PAGES = 17, ROOM = 18 * PAGE, TAP = 3,
       GUEST_AT = BATCH * (ROOM + PAGES * PAGE + 64) };

static unsigned char *private, *pages, (*headers)[64], *frame;
static struct iovec iov[BATCH][PAGES + 1];
static size_t len, stride, per, turn;

static void *map(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED)
		exit(1);
	return p;
}

static int get(void *p, size_t n)
{
	while (n > 0) {
		ssize_t k = read(0, p, n);
		if (k <= 0)
			return -1;
		p = (char *)p + k;
		n -= (size_t)k;
	}
	return 0;
}

// Spreads small frames over the sets of the cache.
static size_t spread(size_t k) { return k % 16 * 64; }

#include "forward.h"
#include "vhost.h"

// Writes the frames and lists the pieces. This is not timed.
static void prepare(uint32_t op, size_t n)
{
	if (op == FORWARD_TX)
		fill_tx(n);
	if (op == FORWARD_RX)
		fill_rx();
	if (op == FORWARD_TX || op == FORWARD_RX)
		return;
	for (size_t k = 0; k < n; k++) {
		if (op == WRITE)
			memcpy(private + k * stride, frame, len);
		if (op == WRITE || op == READ)
			continue;
		memcpy(headers[k], frame, HDR);
		iov[k][0] = (struct iovec){ headers[k], HDR };
		if (op == READV) {
			// One page after the other, as many as a guest has.
			for (size_t p = 0; p < per; p++)
				iov[k][1 + p] = (struct iovec){ pages + turn++ % GUEST * PAGE, PAGE };
			continue;
		}
		size_t rest = len - HDR, off = 0;
		if (per == 1 && rest <= PAGE - spread(15))
			off = spread(k);
		const unsigned char *from = frame + HDR;
		for (size_t p = 0; p < per; p++) {
			size_t m = rest < PAGE - off ? rest : PAGE - off;
			unsigned char *at = pages + (k * per + p) * PAGE + off;
			memcpy(at, from, m);
			iov[k][1 + p] = (struct iovec){ at, m };
			from += m;
			rest -= m;
		}
	}
	if (op == VHOST)
		vhost_list(n);
}

// Times the ring work of a forwarder, or vhost-net.
static int64_t forward(uint32_t op, size_t n)
{
	if (op == VHOST)
		return vhost_write(n);
	return op == FORWARD_TX ? drain_tx() : drain_rx();
}

static int64_t run(uint32_t op, size_t n, uint64_t *ns)
{
	struct timespec a, b;
	int64_t done = (int64_t)n;

	if (op == VHOST) {
		int err = vhost_open(private, GUEST_AT + 2 * (size_t)GUEST * PAGE);
		if (err < 0)
			return err;
	}
	prepare(op, n);
	clock_gettime(CLOCK_MONOTONIC, &a);
	if (op >= FORWARD_TX && op <= VHOST) {
		done = forward(op, n);
		n = 0;
	}
	for (size_t k = 0; k < n; k++) {
		ssize_t r;
		switch (op) {
		case WRITE:
			r = write(TAP, private + k * stride, len);
			break;
		case WRITEV:
			r = writev(TAP, iov[k], (int)per + 1);
			break;
		case READ:
			r = read(TAP, private, ROOM);
			break;
		case READV:
			r = readv(TAP, iov[k], (int)per + 1);
			break;
		default:
			r = -1;
			errno = ENOSYS;
		}
		if (r < 0)
			return -errno;
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	*ns = (uint64_t)((b.tv_sec - a.tv_sec) * 1000000000LL + (b.tv_nsec - a.tv_nsec));
	return done;
}

static void *idle(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	uint32_t cmd[3]; // operation, packets, bytes that follow

	pthread_t thread;

	if (!(argc > 1 && strcmp(argv[1], "single") == 0) &&
	    pthread_create(&thread, NULL, idle, NULL) != 0)
		return 1;
	// All that vhost-net reads is in one piece.
	private = map(GUEST_AT + 2 * (size_t)GUEST * PAGE);
	pages = private + (size_t)BATCH * ROOM;
	headers = (void *)(pages + (size_t)BATCH * PAGES * PAGE);
	frame = map(ROOM);
	if (forward_init(private + GUEST_AT) < 0)
		return 1;
	while (get(cmd, sizeof cmd) == 0) {
		struct { uint64_t ns; int64_t done; } answer = { 0, cmd[1] };
		if (cmd[2] > ROOM || get(frame, cmd[2]) < 0)
			return 1;
		if (cmd[0] == LOAD) {
			len = cmd[2];
			stride = (len + 63) & ~(size_t)63;
			per = (len - HDR + PAGE - 1) / PAGE;
		} else if (cmd[1] > BATCH) {
			answer.done = -EINVAL;
		} else {
			answer.done = run(cmd[0], cmd[1], &answer.ns);
		}
		if (write(1, &answer, sizeof answer) != sizeof answer)
			return 1;
	}
	return 0;
}
