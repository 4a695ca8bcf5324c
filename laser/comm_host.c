/* comm_host.c: collectives on the backend's memory through the host's. They have run when they
 * return; where the backend's memory is the host's there is no copy of it. */
#include <stdlib.h>
#include <string.h>

#include "laser/backend.h"
#include "laser/base.h"
#include "laser/comm.h"
#include "laser/devices.h"

enum { PIECE = 1 << 16 }; /* elements of a rank's share that are summed at a time */

struct CommDevice {
    Backend *be;
    char *stage;     /* (most floats) the backend's array here; NULL: it is here */
    float *received; /* (world, PIECE) of each rank */
    double *doubles; /* (room) the backend's here, in comm_add_double */
    size_t room;
};

size_t comm_device_bytes(int world, size_t most, CommWire wire) {
    (void)most, (void)wire;
    return world > 1 && backend_memory_is_host() ? (size_t)world * PIECE * sizeof(float) : 0;
}

void comm_attach(Comm *c, Backend *be, size_t most, CommWire wire, bool share_gpu) {
    (void)wire;
    if (c->world == 1) return;
    devices_require_own(
        c, be, share_gpu, "start one process a GPU, or let several share one with --share-gpu");
    c->device = (struct CommDevice *)xcalloc(1, sizeof *c->device);
    c->device->be = be;
    c->device->received = (float *)xcalloc(size_mul((size_t)c->world, PIECE), sizeof(float));
    if (!backend_memory_is_host()) c->device->stage = (char *)xcalloc(most, sizeof(float));
}

void comm_detach(Comm *c) {
    if (!c->device) return;
    free(c->device->stage);
    free(c->device->received);
    free(c->device->doubles);
    free(c->device);
    c->device = NULL;
}

void *comm_alloc(Comm *c, Backend *be, size_t bytes) {
    (void)c;
    return backend_alloc(be, bytes);
}

void comm_free(Comm *c, Backend *be, void *p) {
    (void)c;
    backend_free(be, p);
}

/* The array where collectives of the host can work on it, after all operations called so far. */
static void *fetch(const Comm *c, void *x, size_t bytes) {
    struct CommDevice *d = c->device;
    if (!d->stage) return x;
    backend_download(d->be, d->stage, x, bytes);
    return d->stage;
}

static void put_back(const Comm *c, void *x, size_t begin, size_t bytes) {
    struct CommDevice *d = c->device;
    if (d->stage) backend_upload(d->be, (char *)x + begin, d->stage + begin, bytes);
}

/* To nearest even, as the bits of a float; a NaN stays one. */
static void round_bf16(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, sizeof u);
        u = x[i] != x[i] ? u | 0x400000 : u + 0x7fff + (u >> 16 & 1);
        u &= 0xffff0000;
        memcpy(x + i, &u, sizeof u);
    }
}

/* rows[0] becomes the sum of all, in the order of a binary tree. */
static void sum_rows(float *rows /* (count, PIECE) */, int count, size_t n) {
    for (int step = 1; step < count; step *= 2)
        for (int r = 0; r + step < count; r += 2 * step) {
            float *restrict to = rows + (size_t)r * PIECE;
            const float *restrict from = to + (size_t)step * PIECE;
            for (size_t i = 0; i < n; i++) to[i] += from[i];
        }
}

CommTicket comm_reduce_scatter(const Comm *c, float *x, CommShare s, CommWire wire) {
    if (c->world == 1) return 0;
    float *host = (float *)fetch(c, x, s.n * sizeof *x), *received = c->device->received;
    const size_t first = (size_t)c->rank * s.each, longest = s.n - (size_t)(c->world - 1) * s.each;
    size_t mine = 0;
    if (wire == COMM_BF16) round_bf16(host, s.n);
    for (size_t from = 0; from < longest; from += PIECE) {
        const size_t n = comm_exchange(c, host, s, from, PIECE, received);
        sum_rows(received, c->world, n);
        memcpy(host + first + from, received, n * sizeof *host);
        mine += n;
    }
    put_back(c, x, first * sizeof *x, mine * sizeof *x);
    return 0;
}

CommTicket comm_all_gather(const Comm *c, void *x, CommShare s, size_t elem) {
    if (c->world == 1) return 0;
    comm_collect(c, fetch(c, x, s.n * elem), s, elem);
    put_back(c, x, 0, s.n * elem);
    return 0;
}

CommTicket comm_add_double(const Comm *c, double *x, size_t n) {
    struct CommDevice *d = c->device;
    if (c->world == 1) return 0;
    if (!d->stage) {
        comm_sum_double(c, x, n);
        return 0;
    }
    if (d->room < n) { /* in the first step */
        free(d->doubles);
        d->doubles = (double *)xcalloc(n, sizeof *d->doubles);
        d->room = n;
    }
    backend_download(d->be, d->doubles, x, n * sizeof *x);
    comm_sum_double(c, d->doubles, n);
    backend_upload(d->be, x, d->doubles, n * sizeof *x);
    return 0;
}

void comm_wait(const Comm *c, CommTicket t) {
    (void)c, (void)t;
}

const char *comm_device_name(void) {
    return "host";
}
