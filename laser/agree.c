/* agree.c: what all processes of a run must have in common. */
#include "laser/agree.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/json.h"
#include "laser/version.h"

enum { MOST_NAMED = 8 };

/* ---- program and options ---- */

typedef struct Program {
    char revision[128], attention[16], backend[16], precision[16], comm[16];
    int64_t options; /* bytes of config_json */
} Program;

static Program program_of(const char *options) {
    Program p;
    memset(&p, 0, sizeof p);
    format(p.revision, sizeof p.revision, "%s (%s)", LASER_VERSION, laser_revision());
    format(p.attention, sizeof p.attention, "%s", backend_attention());
    format(p.backend, sizeof p.backend, "%s", backend_name());
    format(p.precision, sizeof p.precision, "%s", backend_precision());
    format(p.comm, sizeof p.comm, "%s+%s", comm_name(), comm_device_name());
    p.options = (int64_t)strlen(options) + 1;
    return p;
}

static void require_same_text(const char *what, const char *first, const char *mine) {
    if (strcmp(first, mine) == 0) return;
    die(EXIT_USAGE,
        "this process's program is another than rank 0's: %s %s there, %s here. Start the same "
        "program everywhere",
        what, first, mine);
}

static void require_same_options(const Config *c, const char *first) {
    const ResumeRule rules[] = {FIXED, NOTED, FREE};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        char *lines = config_differences(c, first, rules[i]);
        lines[strcspn(lines, "\n")] = '\0';
        if (lines[0])
            die(EXIT_USAGE,
                "this process's options are others than rank 0's (rank 0's -> its own):%s. Give "
                "all the same",
                lines + 1);
        free(lines);
    }
}

void agree_on_options(const Comm *comm, const Config *c) {
    if (comm->world == 1) return;
    char *mine = config_json(c);
    const Program here = program_of(mine);
    Program first = here;
    comm_broadcast(comm, &first, sizeof first, 0);
    char *options = (char *)xcalloc((size_t)first.options, 1);
    if (comm->rank == 0) memcpy(options, mine, (size_t)first.options);
    comm_broadcast(comm, options, (size_t)first.options, 0);
    require_same_text("attention", first.attention, here.attention);
    require_same_text("version", first.revision, here.revision);
    require_same_text("backend", first.backend, here.backend);
    require_same_text("precision", first.precision, here.precision);
    require_same_text("communication", first.comm, here.comm);
    require_same_options(c, options);
    free(options);
    free(mine);
}

/* ---- data, and the place in the run ---- */

void agree_on_run(const Comm *comm, const AgreeRun *mine) {
    AgreeRun first = *mine;
    comm_broadcast(comm, &first, sizeof first, 0);
    if (first.train != mine->train || first.val != mine->val)
        die(EXIT_INPUT,
            "this process sees other %s shards than rank 0 (fingerprint %016" PRIx64
            " there, %016" PRIx64 " here: their names, sizes or headers differ)",
            first.train != mine->train ? "training" : "validation",
            first.train != mine->train ? first.train : first.val,
            first.train != mine->train ? mine->train : mine->val);
    if (first.step != mine->step || first.steps != mine->steps)
        die(EXIT_INPUT,
            "this process would go on after step %" PRId64 " of %" PRId64 ", rank 0 after %" PRId64
            " of %" PRId64 ": --out, and the checkpoint of --resume, must lie in a file system "
            "that all of them share",
            mine->step, mine->steps, first.step, first.steps);
}

/* ---- weights ---- */

/* The sum that more than half of them have, else rank 0's. */
static uint64_t right_one(const uint64_t *sums, int world) {
    for (int i = 0; i < world; i++) {
        int same = 0;
        for (int j = 0; j < world; j++) same += sums[j] == sums[i];
        if (2 * same > world) return sums[i];
    }
    return sums[0];
}

/* Malloced: "rank 3, rank 5"; NULL where all agree. */
static char *name_others(const uint64_t *sums, int world) {
    const uint64_t right = right_one(sums, world);
    Text t = {NULL, 0, 0};
    int others = 0;
    for (int i = 0; i < world; i++)
        if (sums[i] != right && others++ < MOST_NAMED)
            text_add(&t, "%srank %d", others > 1 ? ", " : "", i);
    if (others > MOST_NAMED) text_add(&t, " and %d more", others - MOST_NAMED);
    return t.data;
}

void agree_on_weights(const Comm *comm, const Model *m, int64_t step) {
    if (comm->world == 1) return;
    uint64_t mine = 0;
    uint64_t *sum = (uint64_t *)backend_alloc(m->be, sizeof *sum);
    uint64_t *all = (uint64_t *)xcalloc((size_t)comm->world, sizeof *all);
    /* a float copy that is dealt out is nobody's whole: the weights that the passes read */
    const float *x = m->master ? m->master : (const float *)(const void *)m->params;
    const size_t bytes = m->table.elements * (m->master ? sizeof *x : sizeof *m->params);
    op_checksum(m->be, sum, x, bytes / sizeof *x);
    backend_download(m->be, &mine, sum, sizeof mine);
    backend_free(m->be, sum);
    comm_gather(comm, &mine, sizeof mine, all);
    char *others = name_others(all, comm->world);
    /* all have found the same: one is to say it */
    if (others && comm->rank == 0)
        die(EXIT_PROCESS,
            "after step %" PRId64 " not all processes hold the same weights: those of %s differ "
            "from %s's. Nothing was saved since the last checkpoint. They began with different "
            "files, or memory, a device or the network changes bits: look there; the same command "
            "goes on from the checkpoint",
            step, others, right_one(all, comm->world) == all[0] ? "rank 0" : "the majority");
    if (others) comm_barrier(comm);
    free(others);
    free(all);
}
