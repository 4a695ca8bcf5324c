/* nccl_twin.cc: NCCL's interface (dev/emu/include/nccl.h) between processes of this machine, for
 * the emulator. Sums are made in fp32 or fp64, in the order of the ranks. As strict as NCCL is
 * where it says so, and stricter where it would hang: calls that differ between ranks are refused.
 * A call whose peer is gone waits for ever, as a kernel of NCCL's does, and ncclCommGetAsyncError
 * tells.
 *
 * EMU_NCCL_FAULT=KIND:RANK:CALL goes wrong in that call of that rank, the first is 1: skip (it is
 * not made), fail (returns an error), lost (an error that comes later, and nothing moves any more),
 * flip (one bit of what it gives is wrong). */
#include <nccl.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/emu/emu.h"
#include "dev/emu/internal.h"
#include "dev/emu/nccl_mail.h"

typedef enum Kind { REDUCE_SCATTER, REDUCE, ALL_REDUCE, ALL_GATHER, BROADCAST, SEND, RECV } Kind;
static const char *const KIND_NAMES[] = {"ncclReduceScatter", "ncclReduce", "ncclAllReduce",
    "ncclAllGather", "ncclBroadcast", "ncclSend", "ncclRecv"};

typedef struct Call {
    Kind kind;
    const char *send;
    char *receive;
    size_t count;
    ncclDataType_t type;
    int root; /* or peer */
    ncclComm_t comm;
} Call;

struct ncclComm {
    uint64_t magic;
    Mail mail;
    int calls; /* so far */
    char fault[16];
    int fault_rank, fault_call;
    int lost; /* by a fault */
    char words[512];
};
struct ncclWindow {
    void *p;
};

static const uint64_t MAGIC = 0x6e63636c74776e21u;
static const unsigned CONFIG_MAGIC = 0x6e63636cu;

enum { MOST_CALLS = 256 };
typedef struct Group {
    int depth, count;
    Call calls[MOST_CALLS];
} Group;
static Group group;

/* ---- what it says ---------------------------------------------------------------------------- */

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error", "unhandled cuda error",
        "unhandled system error", "internal error", "invalid argument", "invalid usage",
        "remote process exited or there was a network error", "operation in progress"};
    return (size_t)result < sizeof texts / sizeof *texts ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm) {
    return comm ? comm->words : "";
}

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

static void require_comm(const char *what, ncclComm_t comm) {
    if (!comm || comm->magic != MAGIC) emu_fail("%s: %p is no communicator", what, (void *)comm);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void read_fault(ncclComm_t comm) {
    const char *fault = getenv("EMU_NCCL_FAULT");
    if (!fault) return;
    if (sscanf(fault, "%15[a-z]:%d:%d", comm->fault, &comm->fault_rank, &comm->fault_call) != 3)
        emu_fail("EMU_NCCL_FAULT=%s is not KIND:RANK:CALL", fault);
}

static bool fault_is(const ncclComm_t comm, const char *kind) {
    return strcmp(comm->fault, kind) == 0 && comm->fault_rank == comm->mail.rank &&
           comm->fault_call == comm->calls;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    mail_make(id->internal);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(
    ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    int device;
    char place[MAIL_PLACE];
    const char *sharing = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    emu_host_call("ncclCommInitRankConfig");
    if (config->magic != CONFIG_MAGIC || config->maxCTAs < config->minCTAs || rank < 0 ||
        rank >= ranks)
        return ncclInvalidArgument;
    if (config->blocking != 1) emu_fail("%s", "communicators that do not block are not here");
    ncclComm_t c = (ncclComm_t)calloc(1, sizeof *c);
    if (!c) return ncclSystemError;
    c->magic = MAGIC;
    read_fault(c);
    cudaGetDevice(&device);
    snprintf(place, sizeof place, "device %d", device);
    *comm = c;
    const bool alone = mail_open(&c->mail, id.internal, rank, ranks, place);
    if (alone || (sharing && strcmp(sharing, "1") == 0)) return ncclSuccess;
    snprintf(c->words, sizeof c->words, "multiple ranks are using the same GPU: %s", place);
    return ncclInvalidUsage;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    require_comm("ncclCommDestroy", comm);
    mail_close(&comm->mail);
    comm->magic = 0;
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    const int lost = mail_lost(&comm->mail);
    *error = ncclSuccess;
    if (lost >= 0) snprintf(comm->words, sizeof comm->words, "rank %d is gone", lost);
    if (lost >= 0 || __atomic_load_n(&comm->lost, __ATOMIC_ACQUIRE)) *error = ncclRemoteError;
    return ncclSuccess;
}

/* ---- memory ---------------------------------------------------------------------------------- */

ncclResult_t ncclMemAlloc(void **p, size_t bytes) {
    return cudaMalloc(p, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclMemFree(void *p) {
    return cudaFree(p) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclCommWindowRegister(
    ncclComm_t comm, void *p, size_t bytes, ncclWindow_t *window, int flags) {
    (void)flags;
    require_comm("ncclCommWindowRegister", comm);
    if (!emu_is_device(p, bytes)) emu_fail("ncclCommWindowRegister: %p is no device memory", p);
    *window = (ncclWindow_t)calloc(1, sizeof **window);
    if (!*window) return ncclSystemError;
    (*window)->p = p;
    return ncclSuccess;
}

ncclResult_t ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window) {
    require_comm("ncclCommWindowDeregister", comm);
    if (!emu_is_device(window->p, 1))
        emu_fail("ncclCommWindowDeregister: %p was freed before", window->p);
    free(window);
    return ncclSuccess;
}

/* ---- moving ---------------------------------------------------------------------------------- */

static size_t size_of(ncclDataType_t type) {
    return type == ncclInt8 ? 1 : type == ncclFloat ? sizeof(float) : sizeof(double);
}

static MailItem item(const Call *c, bool out, int peer, const void *p, size_t bytes) {
    MailItem i = {};
    i.out = out;
    i.peer = peer;
    i.p = (char *)p;
    i.bytes = bytes;
    i.stamp.kind = c->kind == RECV ? SEND : c->kind;
    i.stamp.type = c->type;
    i.stamp.root = c->kind == SEND || c->kind == RECV ? 0 : c->root;
    i.stamp.number = c->comm->calls;
    i.stamp.count = c->count;
    return i;
}

static ncclResult_t move(ncclComm_t comm, MailItem *items, int count, const char *name) {
    char differs[MAIL_DIFFERS];
    if (mail_move(&comm->mail, items, count, differs)) return ncclSuccess;
    snprintf(comm->words, sizeof comm->words, "%s: %s", name, differs);
    return ncclInvalidUsage;
}

static void add(char *to, const char *x, size_t bytes, ncclDataType_t type) {
    for (size_t i = 0; i < bytes / size_of(type); i++)
        if (type == ncclFloat)
            ((float *)to)[i] += ((const float *)x)[i];
        else
            ((double *)to)[i] += ((const double *)x)[i];
}

/* Each rank sends the part of a peer that takes one, and sums the parts that it got, its own among
 * them, in the order of the ranks. part: bytes from one to the next, 0: all have the whole. */
static ncclResult_t reduce(const Call *c, int only /* rank that takes, -1: all */, size_t part) {
    const Mail *m = &c->comm->mail;
    const size_t bytes = c->count * size_of(c->type);
    const bool takes = only < 0 || only == m->rank;
    MailItem items[2 * MAIL_MOST_RANKS];
    int n = 0;
    char *rows = (char *)malloc(bytes * (size_t)m->world + 1);
    if (c->type == ncclInt8 || !rows) {
        free(rows);
        return c->type == ncclInt8 ? ncclInvalidArgument : ncclSystemError;
    }
    for (int r = 0; r < m->world; r++) {
        if (r == m->rank) continue;
        if (only < 0 || only == r) items[n++] = item(c, true, r, c->send + part * (size_t)r, bytes);
        if (takes) items[n++] = item(c, false, r, rows + bytes * (size_t)r, bytes);
    }
    memcpy(rows + bytes * (size_t)m->rank, c->send + part * (size_t)m->rank, bytes);
    const ncclResult_t status = move(c->comm, items, n, KIND_NAMES[c->kind]);
    if (takes && status == ncclSuccess) {
        memcpy(c->receive, rows, bytes);
        for (int r = 1; r < m->world; r++)
            add(c->receive, rows + bytes * (size_t)r, bytes, c->type);
    }
    free(rows);
    return status;
}

static ncclResult_t all_gather(const Call *c) {
    const Mail *m = &c->comm->mail;
    const size_t bytes = c->count * size_of(c->type);
    MailItem items[2 * MAIL_MOST_RANKS];
    int n = 0;
    memmove(c->receive + bytes * (size_t)m->rank, c->send, bytes);
    for (int r = 0; r < m->world; r++) {
        if (r == m->rank) continue;
        items[n++] = item(c, true, r, c->receive + bytes * (size_t)m->rank, bytes);
        items[n++] = item(c, false, r, c->receive + bytes * (size_t)r, bytes);
    }
    return move(c->comm, items, n, KIND_NAMES[c->kind]);
}

static ncclResult_t broadcast(const Call *c) {
    const Mail *m = &c->comm->mail;
    const size_t bytes = c->count * size_of(c->type);
    MailItem items[MAIL_MOST_RANKS];
    int n = 0;
    if (m->rank == c->root) memmove(c->receive, c->send, bytes);
    if (m->rank != c->root) items[n++] = item(c, false, c->root, c->receive, bytes);
    for (int r = 0; r < m->world && m->rank == c->root; r++)
        if (r != c->root) items[n++] = item(c, true, r, c->receive, bytes);
    return move(c->comm, items, n, KIND_NAMES[c->kind]);
}

/* All of a group at once. */
static ncclResult_t exchange(const Call *calls, size_t count) {
    MailItem *items = (MailItem *)calloc(count, sizeof *items);
    const Call *own = NULL; /* what is sent to itself waits for who receives it */
    int n = 0;
    if (!items) return ncclSystemError;
    for (size_t i = 0; i < count; i++) {
        const Call *c = &calls[i];
        const Mail *m = &c->comm->mail;
        if (c->kind != SEND && c->kind != RECV) continue;
        const size_t bytes = c->count * size_of(c->type);
        if (c->root != m->rank) {
            items[n++] =
                item(c, c->kind == SEND, c->root, c->kind == SEND ? c->send : c->receive, bytes);
        } else if (!own) {
            own = c;
        } else {
            const Call *from = own->kind == SEND ? own : c, *to = own->kind == SEND ? c : own;
            if (own->kind == c->kind || own->count != c->count)
                emu_fail("ncclSend of %zu and ncclRecv of %zu, to itself", own->count, c->count);
            memmove(to->receive, from->send, bytes);
            own = NULL;
        }
    }
    if (own) emu_fail("%s", "ncclSend or ncclRecv to itself has no counterpart in its group");
    const ncclResult_t status =
        n ? move(calls[0].comm, items, n, "ncclSend, ncclRecv") : ncclSuccess;
    free(items);
    return status;
}

/* ---- calls ----------------------------------------------------------------------------------- */

static size_t parts(const Call *c, bool out) {
    const bool many = c->kind == (out ? REDUCE_SCATTER : ALL_GATHER);
    return many ? (size_t)c->comm->mail.world : 1;
}

static void require_memory(const Call *c) {
    const size_t bytes = c->count * size_of(c->type);
    const bool root = c->root == c->comm->mail.rank;
    const bool reads = c->kind != RECV && (c->kind != BROADCAST || root);
    const bool writes = c->kind != SEND && (c->kind != REDUCE || root);
    if (reads && !emu_is_device(c->send, bytes * parts(c, true)))
        emu_fail("%s: %zu bytes at %p to send are no device memory", KIND_NAMES[c->kind], bytes,
            (const void *)c->send);
    if (writes && !emu_is_device(c->receive, bytes * parts(c, false)))
        emu_fail("%s: %zu bytes at %p to receive are no device memory", KIND_NAMES[c->kind], bytes,
            (void *)c->receive);
}

static ncclResult_t run(const Call *c) {
    switch (c->kind) {
    case REDUCE_SCATTER:
        return reduce(c, -1, c->count * size_of(c->type));
    case REDUCE:
        return reduce(c, c->root, 0);
    case ALL_REDUCE:
        return reduce(c, -1, 0);
    case ALL_GATHER:
        return all_gather(c);
    case BROADCAST:
        return broadcast(c);
    case SEND:
    case RECV:
        break;
    }
    return ncclSuccess;
}

/* A high bit of the mantissa, of floats and of bfloat16. */
static void flip(const Call *c) {
    const size_t at = c->count * size_of(c->type) / 2 | 2;
    if (c->receive && at < c->count * size_of(c->type)) c->receive[at] ^= 0x10;
}

static ncclResult_t run_group(void) {
    ncclResult_t status = ncclSuccess;
    emu_device_begin();
    for (int i = 0; i < group.count && status == ncclSuccess; i++) {
        const Call *c = &group.calls[i];
        const bool alone = c->kind != SEND && c->kind != RECV;
        if (alone || i == 0) c->comm->calls++;
        if (alone && fault_is(c->comm, "skip")) continue;
        if (fault_is(c->comm, "lost")) {
            __atomic_store_n(&c->comm->lost, 1, __ATOMIC_RELEASE);
            for (;;) pause();
        }
        status = fault_is(c->comm, "fail") ? ncclInternalError : run(c);
        if (fault_is(c->comm, "flip")) flip(c);
    }
    if (status == ncclSuccess) status = exchange(group.calls, (size_t)group.count);
    emu_device_end();
    group.count = 0;
    return status;
}

static ncclResult_t add_call(const Call *c, cudaStream_t stream) {
    emu_host_call(KIND_NAMES[c->kind]);
    require_comm(KIND_NAMES[c->kind], c->comm);
    emu_require_stream(stream);
    if (c->root < 0 || c->root >= c->comm->mail.world) return ncclInvalidArgument;
    require_memory(c);
    if (group.count == MOST_CALLS) emu_fail("more than %d calls in a group", (int)MOST_CALLS);
    group.calls[group.count++] = *c;
    return group.depth ? ncclSuccess : run_group();
}

ncclResult_t ncclGroupStart(void) {
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (group.depth == 0) return ncclInvalidUsage;
    return --group.depth || group.count == 0 ? ncclSuccess : run_group();
}

ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t receive_count,
    ncclDataType_t type, ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
    const Call c = {
        REDUCE_SCATTER, (const char *)send, (char *)receive, receive_count, type, 0, comm};
    return add_call(&c, stream);
}

ncclResult_t ncclReduce(const void *send, void *receive, size_t count, ncclDataType_t type,
    ncclRedOp_t, int root, ncclComm_t comm, cudaStream_t stream) {
    const Call c = {REDUCE, (const char *)send, (char *)receive, count, type, root, comm};
    return add_call(&c, stream);
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type,
    ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
    const Call c = {ALL_REDUCE, (const char *)send, (char *)receive, count, type, 0, comm};
    return add_call(&c, stream);
}

ncclResult_t ncclAllGather(const void *send, void *receive, size_t send_count, ncclDataType_t type,
    ncclComm_t comm, cudaStream_t stream) {
    const Call c = {ALL_GATHER, (const char *)send, (char *)receive, send_count, type, 0, comm};
    return add_call(&c, stream);
}

ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type,
    int root, ncclComm_t comm, cudaStream_t stream) {
    const Call c = {BROADCAST, (const char *)send, (char *)receive, count, type, root, comm};
    return add_call(&c, stream);
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
    ncclComm_t comm, cudaStream_t stream) {
    const Call c = {SEND, (const char *)send, NULL, count, type, peer, comm};
    return add_call(&c, stream);
}

ncclResult_t ncclRecv(void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
    cudaStream_t stream) {
    const Call c = {RECV, NULL, (char *)receive, count, type, peer, comm};
    return add_call(&c, stream);
}
