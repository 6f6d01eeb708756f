// SPDX-License-Identifier: Apache-2.0
//
// A forwarder as with DPDK: a loop that polls the rings of a guest and a TAP queue. It does
// the ring's work and no more: it believes every word of the guest, keeps no journal and
// counts nothing. So it shows what checks and the rest cost, and what C would give.
//
// The guest is in the same process, as netbackd's is in the benchmark: fill_tx and fill_rx
// are its part and not timed. The layout of the rings is that of xen/interface/io/netif.h.

#include <sys/eventfd.h>

enum { SLOTS = 256, FIRST_REF = 16, CSUM_BLANK = 1, DATA_VALID = 2, MORE_TX = 4, EXTRA_TX = 8,
       EXTRA_RX = 8, MORE_RX = 4, GSO = 1 };

struct ring {
	uint32_t req_prod, req_event, rsp_prod, rsp_event, unused[12];
	uint32_t slot[];
};

static struct ring *tx, *rx;
static unsigned char *table[2 * GUEST]; // the page of each gref: first those to send from
static uint32_t tx_cons, rx_cons, tx_free, rx_posted;
static int event = -1;

static uint32_t load(uint32_t *w) { return __atomic_load_n(w, __ATOMIC_ACQUIRE); }
static void store(uint32_t *w, uint32_t v) { __atomic_store_n(w, v, __ATOMIC_SEQ_CST); }

static int forward_init(unsigned char *guest)
{
	tx = map(PAGE);
	rx = map(PAGE);
	for (int i = 0; i < 2 * GUEST; i++)
		table[i] = guest + (size_t)i * PAGE;
	event = eventfd(0, EFD_NONBLOCK);
	return event < 0 ? -1 : 0;
}

// Puts n packets into the tx ring.
static void fill_tx(size_t n)
{
	uint32_t p = tx->req_prod;
	size_t total = len - HDR;

	for (size_t k = 0; k < n; k++) {
		size_t off = total <= PAGE - spread(15) ? spread(k) : 0;
		int large = total > PAGE;
		const unsigned char *from = frame + HDR;
		for (size_t rest = total; rest > 0;) {
			size_t m = rest < PAGE - off ? rest : PAGE - off, page = tx_free++ % GUEST;
			uint32_t *s = tx->slot + p++ % SLOTS * 3, flags = 0;
			memcpy(table[page] + off, from, m);
			from += m;
			if (rest == total && large)
				flags = EXTRA_TX | CSUM_BLANK | DATA_VALID;
			if (rest > m)
				flags |= MORE_TX;
			s[0] = FIRST_REF + page;
			s[1] = (uint32_t)off | flags << 16;
			s[2] = (uint32_t)k | (uint32_t)(rest == total ? total : m) << 16;
			if (flags & EXTRA_TX) {
				uint16_t mss;
				memcpy(&mss, frame + 4, 2);
				s = tx->slot + p++ % SLOTS * 3;
				s[0] = GSO | (uint32_t)mss << 16;
				s[1] = 1; // TCP over IPv4
			}
			rest -= m;
		}
	}
	tx->rsp_event = p;
	store(&tx->req_prod, p);
}

// Sends what is in the tx ring.
static int64_t drain_tx(void)
{
	uint32_t prod = load(&tx->req_prod), was = tx->rsp_prod, cons = tx_cons, k = 0;
	uint64_t one = 1;
	int64_t done = 0;

	while (cons != prod) {
		uint32_t *s = tx->slot + cons++ % SLOTS * 3;
		uint32_t ref = s[0], b = s[1], c = s[2], size = c >> 16;
		unsigned char *at = private + k++ % BATCH * (2048 + 64);
		ssize_t r;
		if (!(b >> 16 & (MORE_TX | EXTRA_TX))) {
			memset(at, 0, HDR);
			memcpy(at + HDR, table[ref - FIRST_REF] + (b & 0xffff), size);
			s[0] = c & 0xffff; // the response
			r = write(TAP, at, HDR + size);
		} else {
			uint32_t first = cons - 1, rest = size, n = 1;
			memset(at, 0, HDR);
			if (b >> 16 & EXTRA_TX) {
				uint32_t *e = tx->slot + cons++ % SLOTS * 3;
				uint16_t mss = (uint16_t)(e[0] >> 16);
				memcpy(at, frame, HDR); // its fields follow from the headers
				memcpy(at + 4, &mss, 2);
			}
			iov[0][0] = (struct iovec){ at, HDR };
			iov[0][1].iov_base = table[ref - FIRST_REF] + (b & 0xffff);
			while (b >> 16 & MORE_TX) {
				s = tx->slot + cons++ % SLOTS * 3;
				b = s[1];
				n++;
				iov[0][n] = (struct iovec){ table[s[0] - FIRST_REF] + (b & 0xffff), s[2] >> 16 };
				rest -= s[2] >> 16;
			}
			iov[0][1].iov_len = rest;
			r = writev(TAP, iov[0], (int)n + 1);
			for (; first != cons; first++) {
				s = tx->slot + first % SLOTS * 3;
				s[0] = s[2] & 0xffff;
			}
		}
		if (r < 0)
			return -errno;
		done++;
	}
	tx_cons = cons;
	store(&tx->rsp_prod, cons);
	if (cons - load(&tx->rsp_event) < cons - was && write(event, &one, sizeof one) < 0)
		return -errno;
	return done;
}

// Takes what was delivered, and posts all slots of the rx ring.
static void fill_rx(void)
{
	while (rx_posted - rx->rsp_prod < SLOTS) {
		uint32_t *s = rx->slot + rx_posted % SLOTS * 2;
		s[0] = rx_posted % GUEST;
		s[1] = FIRST_REF + GUEST + rx_posted++ % GUEST;
	}
	rx->rsp_event = rx->rsp_prod + 1;
	store(&rx->req_prod, rx_posted);
}

// Delivers what the TAP has.
static int64_t drain_rx(void)
{
	uint32_t was = rx->rsp_prod, cons = rx_cons, prod = load(&rx->req_prod);
	uint64_t one = 1;
	int64_t done = 0;

	for (;; done++) {
		if (per == 1) {
			if (cons == prod)
				break;
			ssize_t n = read(TAP, private, ROOM);
			if (n < 0)
				break;
			uint32_t *s = rx->slot + cons++ % SLOTS * 2;
			memcpy(table[s[1] - FIRST_REF], private + HDR, (size_t)n - HDR);
			s[1] = (uint32_t)(n - HDR) << 16;
			continue;
		}
		if (prod - cons < PAGES + 1)
			break;
		iov[0][0] = (struct iovec){ private, HDR };
		for (uint32_t k = 0; k < PAGES; k++) {
			uint32_t *s = rx->slot + (cons + k + (k > 0)) % SLOTS * 2; // behind the first: an extra
			iov[0][1 + k] = (struct iovec){ table[s[1] - FIRST_REF], PAGE };
		}
		ssize_t n = readv(TAP, iov[0], PAGES + 1);
		if (n < 0)
			break;
		size_t rest = (size_t)n - HDR;
		for (uint32_t k = 0; rest > 0; k++) {
			size_t m = rest < PAGE ? rest : PAGE;
			uint32_t *s = rx->slot + cons++ % SLOTS * 2;
			rest -= m;
			s[1] = (uint32_t)m << 16 | (rest > 0 ? MORE_RX : 0) | (k == 0 ? EXTRA_RX : 0);
			if (k == 0) {
				uint16_t mss;
				memcpy(&mss, private + 4, 2);
				s = rx->slot + cons++ % SLOTS * 2;
				s[0] = GSO | (uint32_t)mss << 16;
				s[1] = 1;
			}
		}
	}
	rx_cons = cons;
	store(&rx->rsp_prod, cons);
	if (cons - load(&rx->rsp_event) < cons - was && write(event, &one, sizeof one) < 0)
		return -errno;
	return done;
}
