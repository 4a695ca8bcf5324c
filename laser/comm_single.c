/* comm_single.c: one process, no launcher. Every collective is the identity. */
#include "laser/comm.h"

void comm_open(Comm *c, int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    c->rank = 0;
    c->world = 1;
    c->local_rank = 0;
    c->local_world = 1;
}

void comm_close(Comm *c) {
    (void)c;
}
void comm_barrier(const Comm *c) {
    (void)c;
}
const char *comm_name(void) {
    return "none";
}

void comm_sum_float(const Comm *c, float *x, size_t n) {
    (void)c, (void)x, (void)n;
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
