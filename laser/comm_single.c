/* comm_single.c: one process, no launcher. Every collective is the identity. */
#include "laser/comm.h"

#include <string.h>

#include "laser/launch.h"

void comm_open(Comm *c, int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    *c = (Comm){.world = 1, .local_world = 1};
    const Launch launch = launch_find();
    if (launch.world > 1)
        launch_refuse(&launch, "this build is one process; build with MPI=1 (libopenmpi-dev), and "
                               "start by mpirun");
}

void comm_close(Comm *c) {
    (void)c;
}
void comm_set_timeout(const Comm *c, double seconds) {
    (void)c, (void)seconds;
}
void comm_at_step(const Comm *c, int64_t step) {
    (void)c, (void)step;
}
void comm_barrier(const Comm *c) {
    (void)c;
}
const char *comm_name(void) {
    return "none";
}

void comm_sum_double(const Comm *c, double *x, size_t n) {
    (void)c, (void)x, (void)n;
}
void comm_max_int(const Comm *c, int *x, size_t n) {
    (void)c, (void)x, (void)n;
}
void comm_broadcast(const Comm *c, void *data, size_t bytes, int root) {
    (void)c, (void)data, (void)bytes, (void)root;
}
void comm_gather(const Comm *c, const void *mine, size_t bytes, void *all) {
    (void)c;
    memcpy(all, mine, bytes);
}
size_t comm_exchange(
    const Comm *c, const float *x, CommShare s, size_t from, size_t most, float *received) {
    const size_t left = from < s.n ? s.n - from : 0, n = left < most ? left : most;
    (void)c;
    memcpy(received, x + from, n * sizeof *x);
    return n;
}
void comm_collect(const Comm *c, void *x, CommShare s, size_t elem) {
    (void)c, (void)x, (void)s, (void)elem;
}
