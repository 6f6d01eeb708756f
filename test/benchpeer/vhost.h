// SPDX-License-Identifier: Apache-2.0
//
// The kernel's vhost-net as the writer of the TAP queue: a batch of packets is put into a
// virtqueue, its thread is kicked, and waited for. The thread belongs to this process and
// has its processors since Linux 6.4.

#include <fcntl.h>
#include <linux/vhost.h>
#include <linux/virtio_ring.h>
#include <sys/ioctl.h>

enum { QUEUE = 256, TX_QUEUE = 1 };

static struct vring ring_of;
static int vhost = -1, kick = -1, call = -1;
static uint16_t next_avail;

// Connects the TAP queue to vhost-net, once. It returns 0 or a negative errno.
static int vhost_open(void *mem, size_t size)
{
	if (vhost >= 0)
		return 0;
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	kick = eventfd(0, 0);
	call = eventfd(0, 0);
	unsigned char *rings = map(4 * PAGE);
	vring_init(&ring_of, QUEUE, rings, PAGE);
	struct {
		struct vhost_memory head;
		struct vhost_memory_region region[2];
	} table = { .head = { .nregions = 1 }, .region = { { (uintptr_t)mem, size, (uintptr_t)mem, 0 } } };
	uint64_t features = 1ULL << 32; // VIRTIO_F_VERSION_1: a header of 12 bytes
	struct vhost_vring_state num = { TX_QUEUE, QUEUE }, base = { TX_QUEUE, 0 };
	struct vhost_vring_addr addr = { .index = TX_QUEUE,
		.desc_user_addr = (uintptr_t)ring_of.desc, .avail_user_addr = (uintptr_t)ring_of.avail,
		.used_user_addr = (uintptr_t)ring_of.used };
	struct vhost_vring_file k = { TX_QUEUE, kick }, c = { TX_QUEUE, call }, tap = { TX_QUEUE, TAP };
	if (ioctl(fd, VHOST_SET_OWNER) < 0 || ioctl(fd, VHOST_SET_FEATURES, &features) < 0 ||
	    ioctl(fd, VHOST_SET_MEM_TABLE, &table) < 0 || ioctl(fd, VHOST_SET_VRING_NUM, &num) < 0 ||
	    ioctl(fd, VHOST_SET_VRING_BASE, &base) < 0 || ioctl(fd, VHOST_SET_VRING_ADDR, &addr) < 0 ||
	    ioctl(fd, VHOST_SET_VRING_KICK, &k) < 0 || ioctl(fd, VHOST_SET_VRING_CALL, &c) < 0 ||
	    ioctl(fd, VHOST_NET_SET_BACKEND, &tap) < 0) {
		int e = errno;
		close(fd);
		return -e;
	}
	vhost = fd;
	return 0;
}

// Lists n packets, whose pieces are in iov. This is not timed.
static void vhost_list(size_t n)
{
	uint16_t d = 0;

	for (size_t i = 0; i < n; i++) {
		ring_of.avail->ring[(uint16_t)(next_avail + i) % QUEUE] = d;
		for (size_t p = 0; p <= per; p++, d++) {
			ring_of.desc[d] = (struct vring_desc){ (uintptr_t)iov[i][p].iov_base,
				(uint32_t)iov[i][p].iov_len, p < per ? VRING_DESC_F_NEXT : 0, (uint16_t)(d + 1) };
		}
	}
}

// Has the n packets written.
static int64_t vhost_write(size_t n)
{
	uint64_t v = 1;

	next_avail = (uint16_t)(next_avail + n);
	__atomic_store_n(&ring_of.avail->idx, next_avail, __ATOMIC_SEQ_CST);
	if (write(kick, &v, sizeof v) < 0)
		return -errno;
	while (__atomic_load_n(&ring_of.used->idx, __ATOMIC_ACQUIRE) != next_avail)
		if (read(call, &v, sizeof v) < 0)
			return -errno;
	return (int64_t)n;
}
