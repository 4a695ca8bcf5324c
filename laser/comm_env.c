/* comm_env.c: processes that meet by RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR
 * and MASTER_PORT, without MPI. What moves in the host's memory goes through rank 0, over TCP: it
 * is little, often (each step asks whether to stop), and waits neither for the GPU nor for what
 * moves in its memory, which cuda/comm_nccl.cu does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/comm.h"
#include "laser/launch.h"
#include "laser/meet.h"
#include "laser/watch.h"

enum { PIECE = 1 << 16 }; /* bytes that rank 0 takes from each at a time */

struct CommHost { /* lives as long as the process, for end_early() */
    Meeting meeting;
    Watch *watch;
    bool open;
};

/* Until the options say otherwise: start-up may hang too. */
static const double DEFAULT_TIMEOUT = 600;

/* --timeout, before the options are read: how long to wait for the others is the first question. */
static double find_timeout(int argc, char **argv) {
    double seconds = DEFAULT_TIMEOUT;
    for (int i = 1; i < argc; i++) {
        const char *value = NULL;
        if (strncmp(argv[i], "--timeout=", 10) == 0) value = argv[i] + 10;
        if (strcmp(argv[i], "--timeout") == 0 && i + 1 < argc) value = argv[i + 1];
        if (value) seconds = atof(value);
    }
    return seconds;
}

static void abort_none(int code) { /* there is no launcher to be told */
    (void)code;
}

/* An exit() before comm_close: --help, which is said by all of them, or something that went wrong.
 */
static void end_early(int status, void *user) {
    Comm c = {.host = (struct CommHost *)user};
    if (!c.host->open) return;
    if (status) watch_fail(c.host->watch, status, "exited");
    comm_close(&c);
}

static void open_watch(Comm *c) {
    LinkInvitation invitation = {.port = 0};
    const bool first = c->rank == 0;
    if (first) files_expect(c->world);
    const int listener = first ? link_listen(&invitation, c->local_world == c->world) : -1;
    comm_broadcast(c, &invitation, sizeof invitation, 0);
    const WatchOptions o = {c->rank, c->world, DEFAULT_TIMEOUT, abort_none};
    c->watch = c->host->watch = watch_open(&o, &invitation, listener);
    c->host->open = true;
    on_exit(end_early, c->host);
    if (!first && !freopen("/dev/null", "w", stdout))
        die(EXIT_IO, "/dev/null cannot be opened for writing");
}

void comm_open(Comm *c, int *argc, char ***argv) {
    LaunchEnv e;
    *c = (Comm){.world = 1, .local_world = 1};
    const bool by_environment = launch_env(&e);
    const Launch launch = launch_find();
    if (!by_environment && launch.world > 1)
        launch_refuse(&launch,
            "this program was built with MPI=0 and meets its other processes by RANK, WORLD_SIZE, "
            "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT: start it by torchrun, set "
            "them for each process, or build with MPI=1");
    if (e.world == 1) return;
    *c = (Comm){
        .rank = e.rank, .world = e.world, .local_rank = e.local_rank, .local_world = e.local_world};
    c->host = (struct CommHost *)xcalloc(1, sizeof *c->host);
    meet_open(&c->host->meeting, &e, find_timeout(*argc, *argv));
    open_watch(c);
}

void comm_close(Comm *c) {
    if (!c->host) return;
    c->host->open = false;
    watch_close(c->host->watch);
    meet_close(&c->host->meeting);
    c->host = NULL;
}

void comm_set_timeout(const Comm *c, double seconds) {
    watch_set_timeout(c->watch, seconds);
}

void comm_at_step(const Comm *c, int64_t step) {
    watch_at_step(c->watch, step);
}

const char *comm_name(void) {
    return "env";
}

/* ---- through rank 0 ---- */

static size_t piece_of(size_t left, size_t most) {
    return left < most ? left : most;
}

static void send_to_all(const Comm *c, const void *data, size_t bytes) {
    for (int r = 1; r < c->world; r++) meet_send(&c->host->meeting, r, data, bytes);
}

/* In place: rank 0 folds what the others have into its own, in the order of the ranks, and hands
 * the result round. */
typedef void Fold(void *sum, const void *x, size_t bytes);
static void fold_all(const Comm *c, void *x, size_t bytes, Fold *fold) {
    const Meeting *m = &c->host->meeting;
    char *received = (char *)xcalloc(PIECE, 1);
    watch_enter(c->watch);
    for (size_t i = 0; i < bytes; i += PIECE) {
        char *at = (char *)x + i;
        const size_t n = piece_of(bytes - i, PIECE);
        if (c->rank) {
            meet_send(m, 0, at, n);
            meet_receive(m, 0, at, n);
            continue;
        }
        for (int r = 1; r < c->world; r++) {
            meet_receive(m, r, received, n);
            fold(at, received, n);
        }
        send_to_all(c, at, n);
    }
    watch_leave(c->watch);
    free(received);
}

static void add_doubles(void *sum, const void *x, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof(double); i++)
        ((double *)sum)[i] += ((const double *)x)[i];
}

static void take_larger(void *sum, const void *x, size_t bytes) {
    int *a = (int *)sum;
    const int *b = (const int *)x;
    for (size_t i = 0; i < bytes / sizeof *a; i++)
        if (b[i] > a[i]) a[i] = b[i];
}

void comm_sum_double(const Comm *c, double *x, size_t n) {
    if (c->world > 1) fold_all(c, x, size_mul(n, sizeof *x), add_doubles);
}

void comm_max_int(const Comm *c, int *x, size_t n) {
    if (c->world > 1) fold_all(c, x, size_mul(n, sizeof *x), take_larger);
}

void comm_barrier(const Comm *c) {
    int nothing = 0;
    comm_max_int(c, &nothing, 1);
}

void comm_broadcast(const Comm *c, void *data, size_t bytes, int root) {
    if (c->world == 1) return;
    const Meeting *m = &c->host->meeting;
    watch_enter(c->watch);
    for (size_t i = 0; i < bytes; i += PIECE) {
        char *at = (char *)data + i;
        const size_t n = piece_of(bytes - i, PIECE);
        if (root && c->rank == root) meet_send(m, 0, at, n);
        if (root && c->rank == 0) meet_receive(m, root, at, n);
        if (c->rank == 0) send_to_all(c, at, n);
        if (c->rank) meet_receive(m, 0, at, n); /* the root too: the same bits */
    }
    watch_leave(c->watch);
}

void comm_gather(const Comm *c, const void *mine, size_t bytes, void *all) {
    char *rows = (char *)all;
    memcpy(rows + (size_t)c->rank * bytes, mine, bytes);
    if (c->world == 1) return;
    const Meeting *m = &c->host->meeting;
    const size_t total = size_mul((size_t)c->world, bytes);
    watch_enter(c->watch);
    if (c->rank == 0) {
        for (int r = 1; r < c->world; r++) meet_receive(m, r, rows + (size_t)r * bytes, bytes);
        send_to_all(c, rows, total);
    } else {
        meet_send(m, 0, mine, bytes);
        meet_receive(m, 0, rows, total);
    }
    watch_leave(c->watch);
}
