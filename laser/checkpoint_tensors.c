/* checkpoint_tensors.c: see checkpoint_tensors.h. A file holds one arena's tensors behind
 * another's, each under a prefix. Each process writes a run of tensors of each arena, of about as
 * many bytes as the others' runs, at their places in the one file. */
#include "laser/checkpoint_tensors.h"

#include <inttypes.h>
#include <stdlib.h>

#include "laser/base.h"
#include "laser/safetensors.h"

enum { PATH_BYTES = 4096, MAX_ARENAS = 2 };

const char *const tensor_file_names[TENSOR_FILES] = {"model.safetensors", "optimizer.safetensors"};

static const struct TensorFile {
    int arenas;
    ParallelArena arena[MAX_ARENAS];
    const char *prefix[MAX_ARENAS];
} contents[TENSOR_FILES] = {
    {1, {PARALLEL_WEIGHTS}, {""}},
    {2, {PARALLEL_M, PARALLEL_V}, {"m.", "v."}},
};

static void transpose(float *dst, const float *src, int64_t rows, int64_t cols) {
    const int64_t block = 32; /* both sides of a block stay in the first-level cache */
    for (int64_t i0 = 0; i0 < rows; i0 += block)
        for (int64_t j0 = 0; j0 < cols; j0 += block)
            for (int64_t i = i0; i < rows && i < i0 + block; i++)
                for (int64_t j = j0; j < cols && j < j0 + block; j++)
                    dst[j * rows + i] = src[i * cols + j];
}

static StTensor describe(const ParamInfo *p, const char *prefix) {
    StTensor t = {.type = ST_F32, .ndim = p->cols ? 2 : 1, .shape = {p->rows, p->cols}};
    char name[100];
    snprintf(name, sizeof name, p->name, p->layer);
    format(t.name, sizeof t.name, "%s%s", prefix, name);
    if (p->transposed) {
        t.shape[0] = p->cols;
        t.shape[1] = p->rows;
    }
    return t;
}

static float *room_for_a_tensor(const ParamTable *table) {
    return (float *)xcalloc(param_largest_tensor(table), sizeof(float));
}

/* ---- writing ---- */

/* One of the files while it is written. */
typedef struct Writing {
    Parallel *p;
    const struct TensorFile *file;
    char path[PATH_BYTES];
    StTensor *tensors; /* (arenas, count of the table) */
    StLayout layout;
    uint32_t header;            /* CRC32C, on rank 0 */
    uint32_t parts[MAX_ARENAS]; /* CRC32C of what this process wrote */
    const float *arena;         /* that is written now */
    float *rows;                /* a tensor as the arena has it */
} Writing;

static void plan_file(Writing *w, Parallel *p, const char *dir, int index) {
    const ParamTable *table = &p->model->table;
    const char *metadata[] = {"format", "pt", "attention", backend_attention(), NULL};
    *w = (Writing){.p = p, .file = &contents[index], .rows = room_for_a_tensor(table)};
    format(w->path, sizeof w->path, "%s/%s", dir, tensor_file_names[index]);
    const int n = w->file->arenas * table->count;
    w->tensors = (StTensor *)xcalloc((size_t)n, sizeof *w->tensors);
    for (int i = 0; i < n; i++)
        w->tensors[i] = describe(&table->rows[i % table->count], w->file->prefix[i / table->count]);
    st_layout(&w->layout, w->tensors, n, metadata);
}

static void free_file(Writing *w) {
    st_layout_free(&w->layout);
    free(w->tensors);
    free(w->rows);
}

static void fill_tensor(void *user, int index, void *dst) {
    const Writing *w = (const Writing *)user;
    const ParamTable *table = &w->p->model->table;
    const ParamInfo *p = &table->rows[index % table->count];
    float *host = p->transposed ? w->rows : (float *)dst;
    backend_download(w->p->model->be, host, w->arena + p->offset, p->logical * sizeof *host);
    if (p->transposed) transpose((float *)dst, host, p->rows, p->cols);
}

/* The first tensor of a rank's part, of the table's; the next rank's is where it ends. */
static int part_begin(const Writing *w, int arena, int rank) {
    const int count = w->p->model->table.count;
    const int parts = w->p->dealt_out ? w->p->comm->world : 1;
    return rank < parts ? st_part_begin(&w->tensors[arena * count], count, rank, parts) : count;
}

static void write_parts(Writing *w) {
    const int count = w->p->model->table.count, rank = w->p->comm->rank;
    for (int a = 0; a < w->file->arenas; a++) {
        w->arena = parallel_whole(w->p, w->file->arena[a]); /* all ranks, in the same order */
        w->parts[a] = st_write_part(w->path, &w->layout, a * count + part_begin(w, a, rank),
            a * count + part_begin(w, a, rank + 1), fill_tensor, w);
    }
}

/* On rank 0: the file's checksum from those of all parts. Waits until all are written. */
static uint32_t join_parts(const Writing *w) {
    const Comm *comm = w->p->comm;
    const int count = w->p->model->table.count;
    uint32_t crc = w->header;
    uint32_t *all = (uint32_t *)xcalloc((size_t)comm->world, sizeof w->parts);
    comm_gather(comm, w->parts, sizeof w->parts, all);
    for (int a = 0; a < w->file->arenas; a++)
        for (int rank = 0; rank < comm->world; rank++) {
            const int first = part_begin(w, a, rank), end = part_begin(w, a, rank + 1);
            const uint64_t bytes = st_bytes(&w->tensors[a * count + first], end - first);
            crc = crc32c_combine(crc, all[rank * MAX_ARENAS + a], bytes);
        }
    free(all);
    return crc;
}

void tensor_files_write(const char *dir, Parallel *p, uint32_t *crcs) {
    Writing files[TENSOR_FILES];
    for (int i = 0; i < TENSOR_FILES; i++) {
        plan_file(&files[i], p, dir, i);
        if (p->comm->rank == 0) files[i].header = st_create(files[i].path, &files[i].layout);
    }
    comm_barrier(p->comm); /* the files are there */
    for (int i = 0; i < TENSOR_FILES; i++) {
        write_parts(&files[i]);
        crcs[i] = join_parts(&files[i]);
        free_file(&files[i]);
    }
}

/* ---- reading ---- */

typedef struct Reading {
    StFile file;
    const ParamTable *table;
    float *disk, *rows; /* a tensor as the file and as the arena has it */
} Reading;

static void open_file(Reading *r, const ParamTable *table, const char *dir, int index) {
    char path[PATH_BYTES];
    format(path, sizeof path, "%s/%s", dir, tensor_file_names[index]);
    *r = (Reading){.table = table, .disk = room_for_a_tensor(table)};
    r->rows = room_for_a_tensor(table);
    st_open(&r->file, path);
}

static void close_file(Reading *r) {
    st_close(&r->file);
    free(r->disk);
    free(r->rows);
}

static const StTensor *find_tensor(const Reading *r, const char *prefix, int i) {
    const StTensor want = describe(&r->table->rows[i], prefix);
    const StTensor *t = st_find(&r->file, want.name);
    if (!t) die(EXIT_INPUT, "%s: tensor %s is missing", r->file.path, want.name);
    if (t->type != want.type || t->ndim != want.ndim || t->shape[0] != want.shape[0] ||
        (want.ndim == 2 && t->shape[1] != want.shape[1]))
        die(EXIT_INPUT, "%s: tensor %s is not F32 of shape (%" PRId64 ", %" PRId64 ")",
            r->file.path, want.name, want.shape[0], want.shape[1]);
    return t;
}

/* Tensor i of the table as an arena has it, until the next is read. */
static const float *read_tensor(Reading *r, const char *prefix, int i) {
    const ParamInfo *p = &r->table->rows[i];
    st_read(&r->file, find_tensor(r, prefix, i), r->disk);
    if (!p->transposed) return r->disk;
    transpose(r->rows, r->disk, p->cols, p->rows);
    return r->rows;
}

void tensor_files_read(const char *dir, Parallel *p) {
    const ParamTable *table = &p->model->table;
    for (int f = 0; f < TENSOR_FILES; f++) {
        Reading r;
        open_file(&r, table, dir, f);
        for (int a = 0; a < contents[f].arenas; a++)
            for (int i = 0; i < table->count; i++) {
                const ParallelArena which = contents[f].arena[a];
                const char *prefix = contents[f].prefix[a];
                if (which == PARALLEL_WEIGHTS || parallel_holds(p, i))
                    parallel_put(p, which, i, read_tensor(&r, prefix, i));
                else
                    find_tensor(&r, prefix, i); /* a wrong file is an error on all */
            }
        close_file(&r);
    }
}

void tensor_files_read_weights(const char *dir, Model *m) {
    Reading r;
    open_file(&r, &m->table, dir, 0);
    for (int i = 0; i < m->table.count; i++) {
        const ParamInfo *p = &m->table.rows[i];
        backend_upload(
            m->be, m->master + p->offset, read_tensor(&r, "", i), p->logical * sizeof(float));
    }
    close_file(&r);
    model_sync_params(m);
}
