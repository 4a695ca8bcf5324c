/* validate.c: see validate.h. */
#include "laser/validate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laser/base.h"

enum { KEPT = 256 }; /* sequences computed before the host waits for their losses, about */

void validate_open(Validation *v, Model *m, const RunData *data, const Comm *comm, int64_t tokens) {
    const size_t n = size_mul((size_t)m->B, (size_t)m->config.T);
    const int64_t there = loader_info(data->val)->windows, asked = tokens / m->config.T;
    v->model = m;
    v->data = data;
    v->comm = comm;
    v->sequences = tokens == 0 || asked > there ? there : asked > 0 ? asked : 1;
    v->kept = (KEPT + m->B - 1) / m->B * m->B;
    v->losses = (double *)xcalloc((size_t)v->sequences, sizeof *v->losses);
    v->sums = (double *)backend_alloc(m->be, size_mul((size_t)v->kept, sizeof *v->sums));
    v->inputs = (int32_t *)xcalloc(n, sizeof *v->inputs);
    v->targets = (int32_t *)xcalloc(n, sizeof *v->targets);
}

void validate_close(Validation *v) {
    if (!v->model) return;
    backend_free(v->model->be, v->sums);
    free(v->losses);
    free(v->inputs);
    free(v->targets);
}

static double text_bytes(const RunData *d, const int32_t *ids, size_t n) {
    double bytes = 0; /* whole numbers: exact in any order */
    for (size_t i = 0; i < n; i++)
        if (ids[i] < d->vocab.size) bytes += d->text_bytes[ids[i]];
    return bytes;
}

/* Hands `rows` sequences to the backend, their sums to go to v->sums + at. Returns the bytes of
 * their targets. */
static double compute(Validation *v, int64_t first, int rows, int at) {
    Model *m = v->model;
    const int T = m->config.T;
    const size_t row = (size_t)T;
    made_progress();
    loader_seek(v->data->val, first);
    for (size_t i = 0; i < (size_t)rows; i++)
        loader_next(v->data->val, v->inputs + i * row, v->targets + i * row);
    model_forward(m, v->inputs, rows, T);
    model_loss(m, v->targets, rows, T, v->sums + at);
    return text_bytes(v->data, v->targets, (size_t)rows * row);
}

/* Waits for the n sums that were computed last, and keeps them as those of sequences from first. */
static void collect(Validation *v, int64_t first, int n) {
    const size_t size = (size_t)n * sizeof *v->sums;
    backend_download(v->model->be, v->losses + first, v->sums, size);
    backend_zero(v->model->be, v->sums, size);
}

/* The sequences of this process: whole batches, all but the last of all. Returns their bytes. */
static double compute_share(Validation *v) {
    const int64_t B = v->model->B, batches = (v->sequences + B - 1) / B;
    const int64_t begin = batches * v->comm->rank / v->comm->world * B;
    const int64_t share = batches * (v->comm->rank + 1) / v->comm->world * B;
    const int64_t end = share < v->sequences ? share : v->sequences;
    double bytes = 0;
    int held = 0;
    for (int64_t first = begin; first < end; first += B) {
        const int rows = (int)(end - first < B ? end - first : B);
        bytes += compute(v, first, rows, held);
        held += rows;
        if (held < v->kept && first + rows < end) continue;
        collect(v, first + rows - held, held);
        held = 0;
    }
    return bytes;
}

ValResult validate_run(Validation *v) {
    const size_t sequences = (size_t)v->sequences;
    memset(v->losses, 0, sequences * sizeof *v->losses);
    backend_zero(v->model->be, v->sums, (size_t)v->kept * sizeof *v->sums);
    double bytes = compute_share(v), sum = 0;
    comm_sum_double(v->comm, v->losses, sequences); /* with zeros: exact */
    comm_sum_double(v->comm, &bytes, 1);
    for (size_t i = 0; i < sequences; i++) sum += v->losses[i];
    const double tokens = (double)v->sequences * v->model->config.T;
    if (!v->data->vocab.size) bytes = tokens * rundata_val_bytes_per_token(v->data);
    const ValResult result = {
        v->sequences * v->model->config.T, sum / tokens, bytes > 0 ? sum / log(2.0) / bytes : -1.0};
    return result;
}
