/* checkpoint.c: saving, publishing and reading a run's state. */
#include "laser/checkpoint.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/checkpoint_tensors.h"

enum { PATH_BYTES = 4096, FORMAT_VERSION = 1 };

uint64_t checkpoint_bytes(const ModelConfig *c) {
    return 3 * sizeof(float) * (uint64_t)model_parameters(c);
}

/* ---- directories ---- */

static void remove_directory(const char *path) { /* flat: ours hold files only */
    DIR *d = opendir(path);
    char file[PATH_BYTES];
    for (struct dirent *e; d && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        format(file, sizeof file, "%s/%s", path, e->d_name);
        unlink(file);
    }
    if (d) closedir(d);
    if (rmdir(path) != 0 && errno != ENOENT) warn("cannot remove %s: %s", path, strerror(errno));
}

static int newest_first(const void *a, const void *b) {
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    const size_t nx = strlen(x), ny = strlen(y); /* longer: beyond eight digits */
    return nx != ny ? (nx < ny) - (nx > ny) : strcmp(y, x);
}

/* Names step_* in dir, newest first, and removes tmp_* when clean is set. */
static char **list_steps(const char *dir, int *count, bool clean) {
    char **names = NULL, path[PATH_BYTES];
    DIR *d = opendir(dir);
    *count = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        if (clean && strncmp(e->d_name, "tmp_", 4) == 0) {
            format(path, sizeof path, "%s/%s", dir, e->d_name);
            remove_directory(path);
        }
        if (strncmp(e->d_name, "step_", 5) != 0) continue;
        char **grown = (char **)xcalloc((size_t)*count + 1, sizeof *grown);
        for (int i = 0; i < *count; i++) grown[i] = names[i];
        grown[(*count)++] = xstrdup(e->d_name);
        free(names);
        names = grown;
    }
    if (d) closedir(d);
    if (*count) qsort(names, (size_t)*count, sizeof *names, newest_first);
    return names;
}

static void free_names(char **names, int count) {
    for (int i = 0; i < count; i++) free(names[i]);
    free(names);
}

/* Deletes by first renaming, so that a half-deleted checkpoint is never taken for a whole one. */
static void delete_checkpoint(const char *dir, const char *name) {
    char from[PATH_BYTES], to[PATH_BYTES];
    format(from, sizeof from, "%s/%s", dir, name);
    format(to, sizeof to, "%s/tmp_%s", dir, name);
    if (rename(from, to) == 0)
        remove_directory(to);
    else
        warn("cannot delete old checkpoint %s: %s", from, strerror(errno));
}

static void require_space(const char *dir, uint64_t bytes) {
    struct statvfs fs;
    if (statvfs(dir, &fs) != 0) return;
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room < bytes)
        die(EXIT_IO,
            "%s: %" PRIu64 " MB free, a checkpoint needs %" PRIu64 " MB. The newest checkpoint is "
            "untouched; make room and give the same command again",
            dir, room >> 20, (bytes >> 20) + 1);
}

/* ---- state.json ---- */

static void add_integer(cJSON *o, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    cJSON_AddRawToObject(o, key, text);
}

static void add_file(cJSON *files, const char *dir, const char *name, uint32_t crc) {
    char path[PATH_BYTES], hex[16];
    format(path, sizeof path, "%s/%s", dir, name);
    snprintf(hex, sizeof hex, "%08x", crc);
    cJSON *f = cJSON_CreateObject();
    cJSON_AddStringToObject(f, "name", name);
    add_integer(f, "bytes", file_size(path));
    cJSON_AddStringToObject(f, "crc32c", hex);
    cJSON_AddItemToArray(files, f);
}

static char *state_text(const RunState *s, int64_t updates, const char *config_json, cJSON *files) {
    char hex[32];
    cJSON *o = cJSON_CreateObject();
    add_integer(o, "format", FORMAT_VERSION);
    cJSON_AddStringToObject(o, "attention", backend_attention());
    cJSON_AddStringToObject(o, "precision", backend_precision());
    add_integer(o, "step", s->step);
    add_integer(o, "tokens", s->tokens);
    add_integer(o, "updates", updates);
    add_integer(o, "skipped", s->skipped);
    add_integer(o, "skipped_in_row", s->skipped_in_row);
    cJSON_AddNumberToObject(o, "best_val", s->best_val);
    cJSON_AddNumberToObject(o, "train_seconds", s->train_seconds);
    snprintf(hex, sizeof hex, "%016" PRIx64, s->data_fingerprint);
    cJSON_AddStringToObject(o, "data_fingerprint", hex);
    cJSON_AddItemToObject(o, "config", cJSON_Parse(config_json));
    cJSON_AddItemToObject(o, "files", files);
    char *text = cJSON_Print(o);
    cJSON_Delete(o);
    return text;
}

static double number(const cJSON *o, const char *key) {
    const cJSON *i = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsNumber(i) ? i->valuedouble : 0.0;
}

static const char *string(const cJSON *o, const char *key) {
    const cJSON *i = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsString(i) ? i->valuestring : "";
}

static cJSON *read_state(const char *dir) {
    char path[PATH_BYTES];
    format(path, sizeof path, "%s/state.json", dir);
    if (file_size(path) < 0) return NULL;
    char *text = file_read_all(path, NULL);
    cJSON *o = cJSON_Parse(text);
    free(text);
    return o;
}

/* Empty when every file has its size and checksum, else what is wrong. */
static void find_fault(const char *dir, char *fault, size_t cap) {
    fault[0] = '\0';
    cJSON *o = read_state(dir);
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(o, "files"), *f = NULL;
    if (!cJSON_IsArray(files)) format(fault, cap, "state.json is missing or torn");
    cJSON_ArrayForEach(f, files) {
        char path[PATH_BYTES];
        format(path, sizeof path, "%s/%s", dir, string(f, "name"));
        int64_t want = (int64_t)number(f, "bytes"), have = file_size(path);
        if (have != want) {
            format(fault, cap, "%s has %" PRId64 " bytes instead of %" PRId64, string(f, "name"),
                have, want);
            break;
        }
        uint32_t crc = 0;
        const bool read = file_crc32c(path, &crc);
        if (!read || crc != (uint32_t)strtoul(string(f, "crc32c"), NULL, 16)) {
            format(fault, cap, "%s %s", string(f, "name"),
                read ? "does not have the recorded checksum" : "cannot be read");
            break;
        }
    }
    cJSON_Delete(o);
}

/* count: of checkpoints there, whole or not. clean: what interrupted saves left is removed. */
static char *newest_whole(const char *dir, bool clean, int *count) {
    char **names = list_steps(dir, count, clean), *found = NULL;
    for (int i = 0; i < *count && !found; i++) {
        char path[PATH_BYTES], fault[PATH_BYTES];
        format(path, sizeof path, "%s/%s", dir, names[i]);
        find_fault(path, fault, sizeof fault);
        if (fault[0]) warn("checkpoint %s is passed over: %s", path, fault);
        if (!fault[0]) found = xstrdup(path);
    }
    free_names(names, *count);
    return found;
}

char *checkpoint_newest(const char *dir) {
    int count;
    return newest_whole(dir, false, &count);
}

char *checkpoint_find(const char *dir) {
    int count;
    char *found = newest_whole(dir, true, &count);
    if (!found && count)
        die(EXIT_INPUT,
            "%s: none of its %d checkpoints is whole. Bring one back, or remove them to begin "
            "again",
            dir, count);
    return found;
}

void checkpoint_require_whole(const char *path) {
    char fault[PATH_BYTES];
    find_fault(path, fault, sizeof fault);
    if (fault[0]) die(EXIT_INPUT, "%s is not a whole checkpoint: %s", path, fault);
}

char *checkpoint_state(const char *path, RunState *s, int64_t *updates) {
    cJSON *o = read_state(path);
    if (!o || number(o, "format") != FORMAT_VERSION)
        die(EXIT_INPUT, "%s: not a checkpoint of this program (no state.json of format %d)", path,
            FORMAT_VERSION);
    if (strcmp(string(o, "attention"), backend_attention()) != 0)
        die(EXIT_USAGE,
            "%s was written with %s attention; this program computes %s attention. Use "
            "train_gpt_%s, or another --out",
            path, string(o, "attention"), backend_attention(), string(o, "attention"));
    *s = (RunState){.step = (int64_t)number(o, "step"),
        .tokens = (int64_t)number(o, "tokens"),
        .skipped = (int64_t)number(o, "skipped"),
        .skipped_in_row = (int64_t)number(o, "skipped_in_row"),
        .best_val = number(o, "best_val"),
        .train_seconds = number(o, "train_seconds"),
        .data_fingerprint = strtoull(string(o, "data_fingerprint"), NULL, 16)};
    *updates = (int64_t)number(o, "updates");
    char *config = cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(o, "config"));
    cJSON_Delete(o);
    return config;
}

/* A model that is GPT-2 in all but its weights opens in Hugging Face transformers as it lies; any
 * other has no class there that computes the same, and gets no config.json that says so. */
static bool is_gpt2(const ModelConfig *c) {
    if (c->diff || c->qk_norm || c->per_dim_scale || c->temperature != 1) return false;
    return strcmp(backend_attention(), "standard") == 0 && c->pos == POS_LEARNED &&
           c->act == ACT_GELU && c->bias_attn && c->bias_mlp && !c->bias_logits &&
           !c->embed_scale && c->attn_cap == 0 && c->logit_cap == 0 && c->H * c->HD == c->C;
}

static void write_hugging_face_config(const char *dir, const ModelConfig *c) {
    char path[PATH_BYTES], text[1024];
    if (!is_gpt2(c)) return;
    format(path, sizeof path, "%s/config.json", dir);
    format(text, sizeof text,
        "{\"model_type\": \"gpt2\", \"architectures\": [\"GPT2LMHeadModel\"],\n"
        " \"vocab_size\": %d, \"n_positions\": %d, \"n_embd\": %d, \"n_layer\": %d,\n"
        " \"n_head\": %d, \"n_inner\": %d, \"activation_function\": \"gelu_new\",\n"
        " \"layer_norm_epsilon\": %.9g, \"tie_word_embeddings\": true}\n",
        c->V, c->T, c->C, c->L, c->H, c->F, (double)c->norm_eps);
    file_write_atomic(path, text, strlen(text));
}

/* ---- save, load ---- */

/* An empty directory for what is not whole yet. */
static void begin_checkpoint(const char *dir, const char *tmp, const ModelConfig *c) {
    make_dirs(dir);
    require_space(dir, checkpoint_bytes(c));
    remove_directory(tmp);
    make_dirs(tmp);
}

static void write_state(const char *dir, const Parallel *p, const RunState *s,
    const char *config_json, const uint32_t *crcs) {
    char path[PATH_BYTES];
    cJSON *files = cJSON_CreateArray();
    for (int i = 0; i < TENSOR_FILES; i++) add_file(files, dir, tensor_file_names[i], crcs[i]);
    const int64_t updates = optim_read(&p->optim, p->model->be).updates;
    char *text = state_text(s, updates, config_json, files);
    format(path, sizeof path, "%s/state.json", dir);
    file_write_atomic(path, text, strlen(text));
    free(text);
}

/* tmp becomes DIR/NAME, and all but `keep` are deleted: this one and those before it. */
static void publish(const char *dir, const char *tmp, const char *name, int keep) {
    char final[PATH_BYTES];
    format(final, sizeof final, "%s/%s", dir, name);
    if (file_size(final) >= 0) delete_checkpoint(dir, name);
    if (rename(tmp, final) != 0)
        die(EXIT_IO, "cannot rename %s to %s: %s", tmp, final, strerror(errno));
    fsync_path(dir);

    int count;
    char **names = list_steps(dir, &count, false);
    /* only what is not newer than this one counts: newer are damaged, and were passed over */
    for (int i = 0, kept = 0; i < count; i++)
        if (newest_first(&names[i], &name) >= 0 && ++kept > keep) delete_checkpoint(dir, names[i]);
    free_names(names, count);
}

void checkpoint_save(
    const char *dir, Parallel *p, const RunState *s, const char *config_json, int keep) {
    char name[64], tmp[PATH_BYTES];
    uint32_t crcs[TENSOR_FILES];
    format(name, sizeof name, "step_%08" PRId64, s->step);
    format(tmp, sizeof tmp, "%s/tmp_%08" PRId64, dir, s->step);
    const bool first = p->comm->rank == 0;
    if (first) begin_checkpoint(dir, tmp, &p->model->config);
    tensor_files_write(tmp, p, crcs);
    if (first) {
        write_hugging_face_config(tmp, &p->model->config);
        write_state(tmp, p, s, config_json, crcs);
        publish(dir, tmp, name, keep);
    }
    comm_barrier(p->comm);
}

void checkpoint_load(const char *path, Parallel *p) {
    tensor_files_read(path, p);
}

void checkpoint_load_weights(const char *path, Model *m) {
    tensor_files_read_weights(path, m);
}
