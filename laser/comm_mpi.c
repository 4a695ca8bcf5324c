/* comm_mpi.c: collectives over MPI, for processes that mpirun or srun started. Started by hand, the
 * program is one process and MPI is never initialised. */
#include "laser/comm.h"

#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/launch.h"
#include "laser/watch.h"

/* Counts of MPI calls are int: larger arrays go in pieces of this many elements. */
enum { PIECE = 1 << 28 };

/* Until the options say otherwise: start-up may hang too. */
static const double DEFAULT_TIMEOUT = 600;

static bool active(void) {
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    return started && !ended;
}

static void abort_all(int code) {
    if (active()) MPI_Abort(MPI_COMM_WORLD, code);
}

/* An exit() before comm_close: --help, which is said by all of them, or something that went wrong.
 */
static void end_early(int status, void *user) {
    Comm c = {.watch = (struct Watch *)user};
    if (!active()) return;
    if (status) watch_fail(c.watch, status, "exited");
    comm_close(&c);
}

static void open_watch(Comm *c) {
    LinkInvitation invitation;
    const bool first = c->rank == 0;
    if (first) files_expect(c->world);
    const int listener = first ? link_listen(&invitation, c->local_world == c->world) : -1;
    MPI_Bcast(&invitation, (int)sizeof invitation, MPI_BYTE, 0, MPI_COMM_WORLD);
    const WatchOptions o = {c->rank, c->world, DEFAULT_TIMEOUT, abort_all};
    c->watch = watch_open(&o, &invitation, listener);
    on_exit(end_early, c->watch);
    if (!first && !freopen("/dev/null", "w", stdout))
        die(EXIT_IO, "/dev/null cannot be opened for writing");
}

void comm_open(Comm *c, int *argc, char ***argv) {
    *c = (Comm){.world = 1, .local_world = 1};
    const Launch launch = launch_find();
    if (!launch.mpi && launch.world > 1)
        launch_refuse(&launch, "this program meets its other processes by MPI alone; start it by "
                               "mpirun, or by srun --mpi=pmix");
    if (!launch.mpi) return;
    int provided;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm node;
    MPI_Comm_rank(MPI_COMM_WORLD, &c->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &c->world);
    if (c->world == 1 && launch.world > 1)
        launch_refuse(&launch,
            "MPI sees only this one: the launcher is not of the MPI library that "
            "this program is linked with (see ldd; mpirun --version). Take its "
            "own mpirun, or srun --mpi=pmix");
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &c->local_rank);
    MPI_Comm_size(node, &c->local_world);
    MPI_Comm_free(&node);
    if (c->world > 1) open_watch(c);
}

void comm_close(Comm *c) {
    if (!active()) return;
    watch_close(c->watch);
    MPI_Finalize();
}

void comm_set_timeout(const Comm *c, double seconds) {
    watch_set_timeout(c->watch, seconds);
}

void comm_at_step(const Comm *c, int64_t step) {
    watch_at_step(c->watch, step);
}

void comm_barrier(const Comm *c) {
    if (c->world == 1) return;
    watch_enter(c->watch);
    MPI_Barrier(MPI_COMM_WORLD);
    watch_leave(c->watch);
}

const char *comm_name(void) {
    return "mpi";
}

static void all_reduce(
    const Comm *c, char *x, size_t n, size_t elem, MPI_Datatype type, MPI_Op op) {
    if (c->world == 1) return;
    watch_enter(c->watch);
    for (size_t i = 0; i < n; i += PIECE) {
        int count = (int)(n - i < PIECE ? n - i : PIECE);
        MPI_Allreduce(MPI_IN_PLACE, x + i * elem, count, type, op, MPI_COMM_WORLD);
    }
    watch_leave(c->watch);
}

void comm_sum_double(const Comm *c, double *x, size_t n) {
    all_reduce(c, (char *)x, n, sizeof *x, MPI_DOUBLE, MPI_SUM);
}

void comm_max_int(const Comm *c, int *x, size_t n) {
    all_reduce(c, (char *)x, n, sizeof *x, MPI_INT, MPI_MAX);
}

void comm_broadcast(const Comm *c, void *data, size_t bytes, int root) {
    if (c->world == 1) return;
    watch_enter(c->watch);
    for (size_t i = 0; i < bytes; i += PIECE) {
        int count = (int)(bytes - i < PIECE ? bytes - i : PIECE);
        MPI_Bcast((char *)data + i, count, MPI_BYTE, root, MPI_COMM_WORLD);
    }
    watch_leave(c->watch);
}

void comm_gather(const Comm *c, const void *mine, size_t bytes, void *all) {
    if (c->world == 1) {
        memcpy(all, mine, bytes);
        return;
    }
    REQUIRE(bytes <= PIECE, "%zu bytes of each process", bytes);
    watch_enter(c->watch);
    MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, MPI_COMM_WORLD);
    watch_leave(c->watch);
}

static size_t share_begin(CommShare s, int rank) {
    return (size_t)rank * s.each;
}

static size_t share_count(const Comm *c, CommShare s, int rank) {
    return rank + 1 < c->world ? s.each : s.n - share_begin(s, rank);
}

/* Elements [from, from + most) of a rank's share, as far as it goes. */
static int cut(const Comm *c, CommShare s, int rank, size_t from, size_t most) {
    const size_t n = share_count(c, s, rank), left = from < n ? n - from : 0;
    return (int)(left < most ? left : most);
}

size_t comm_exchange(
    const Comm *c, const float *x, CommShare s, size_t from, size_t most, float *received) {
    const size_t world = (size_t)c->world;
    REQUIRE(s.n <= INT32_MAX && world * most <= INT32_MAX, "%zu elements, %zu of each of %zu", s.n,
        most, world);
    int *room = (int *)xcalloc(4 * world, sizeof *room);
    int *out = room, *out_at = room + world, *in = room + 2 * world, *in_at = room + 3 * world;
    for (int r = 0; r < c->world; r++) {
        out[r] = cut(c, s, r, from, most);
        out_at[r] = out[r] ? (int)(share_begin(s, r) + from) : 0;
        in[r] = cut(c, s, c->rank, from, most);
        in_at[r] = r * (int)most;
    }
    watch_enter(c->watch);
    MPI_Alltoallv(
        x, out, out_at, MPI_FLOAT, received, in, in_at, MPI_FLOAT, MPI_COMM_WORLD);
    watch_leave(c->watch);
    const size_t n = (size_t)in[0];
    free(room);
    return n;
}

void comm_collect(const Comm *c, void *x, CommShare s, size_t elem) {
    const size_t world = (size_t)c->world;
    if (c->world == 1) return;
    REQUIRE(s.n <= INT32_MAX && elem <= INT32_MAX, "%zu elements of %zu bytes", s.n, elem);
    int *count = (int *)xcalloc(2 * world, sizeof *count), *at = count + world;
    for (int r = 0; r < c->world; r++) {
        count[r] = (int)share_count(c, s, r);
        at[r] = (int)share_begin(s, r);
    }
    MPI_Datatype type;
    MPI_Type_contiguous((int)elem, MPI_BYTE, &type);
    MPI_Type_commit(&type);
    watch_enter(c->watch);
    MPI_Allgatherv(MPI_IN_PLACE, 0, type, x, count, at, type, MPI_COMM_WORLD);
    watch_leave(c->watch);
    MPI_Type_free(&type);
    free(count);
}
