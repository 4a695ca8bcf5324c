/* cuda/gemm_cache.cu: the file that keeps from run to run which algorithm a product is fastest
 * with. Its first line names format, device and library: an algorithm means something to those
 * alone. A line that is torn or was changed is passed over: the shape is timed again. Knows nothing
 * of the algorithms but their bytes. */
#include "laser/cuda/gemm_plan.cuh"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FORMAT = 1, LINE_BYTES = 1024, MOST_CHOICES = 4096, ALGO_BYTES = 64 };
static const double SAVE_SECONDS = 10;
static_assert(sizeof(cublasLtMatmulAlgo_t) == ALGO_BYTES, "another algorithm: raise FORMAT");

const GemmChoice *gemm_cache_find(const GemmCache *cache, const GemmKey *key) {
    for (int i = 0; i < cache->count; i++)
        if (memcmp(&cache->choices[i].key, key, sizeof *key) == 0) return &cache->choices[i];
    return NULL;
}

static void put(GemmCache *cache, const GemmChoice *choice) {
    GemmChoice *old = (GemmChoice *)gemm_cache_find(cache, &choice->key);
    if (old) {
        *old = *choice;
        return;
    }
    if (cache->count == MOST_CHOICES) return;
    if (cache->count == cache->capacity) {
        cache->capacity = cache->capacity ? 2 * cache->capacity : 64;
        GemmChoice *more = (GemmChoice *)xcalloc((size_t)cache->capacity, sizeof *more);
        if (cache->count)
            memcpy(more, cache->choices, (size_t)cache->count * sizeof *cache->choices);
        free(cache->choices);
        cache->choices = more;
    }
    cache->choices[cache->count++] = *choice;
}

/* ---- a line: the key's numbers, workspace, fused, the algorithm in hex, a checksum ----------- */

static void print_choice(char *line /* (LINE_BYTES) */, const GemmChoice *c) {
    int64_t word[GEMM_KEY_WORDS];
    unsigned char bytes[ALGO_BYTES];
    size_t n = 0;
    memcpy(word, &c->key, sizeof word);
    memcpy(bytes, &c->algo, sizeof bytes);
    for (int i = 0; i < GEMM_KEY_WORDS; i++) {
        format(line + n, LINE_BYTES - n, "%" PRId64 " ", word[i]);
        n += strlen(line + n);
    }
    format(line + n, LINE_BYTES - n, "%" PRId64 " %" PRId64 " ", c->workspace, c->fused);
    n += strlen(line + n);
    for (int i = 0; i < ALGO_BYTES; i++, n += 2) format(line + n, LINE_BYTES - n, "%02x", bytes[i]);
    format(line + n, LINE_BYTES - n, " %08x", crc32c(0, line, n));
}

static bool read_number(const char **at, int64_t *value) {
    char *end;
    errno = 0;
    *value = strtoll(*at, &end, 10);
    if (end == *at || *end != ' ' || errno) return false;
    *at = end + 1;
    return true;
}

/* line ends with NUL. False: it is not what print_choice wrote. */
static bool read_choice(const char *line, GemmChoice *c) {
    const char *at = line, *sum = strrchr(line, ' ');
    int64_t word[GEMM_KEY_WORDS];
    unsigned char bytes[ALGO_BYTES];
    unsigned checksum, byte;
    if (!sum || sscanf(sum, " %8x", &checksum) != 1) return false;
    if (crc32c(0, line, (size_t)(sum - line)) != checksum) return false;
    for (int i = 0; i < GEMM_KEY_WORDS; i++)
        if (!read_number(&at, &word[i])) return false;
    if (!read_number(&at, &c->workspace) || !read_number(&at, &c->fused)) return false;
    if (sum - at != 2 * ALGO_BYTES) return false;
    for (int i = 0; i < ALGO_BYTES; i++) {
        if (sscanf(at + 2 * i, "%2x", &byte) != 1) return false;
        bytes[i] = (unsigned char)byte;
    }
    memcpy(&c->key, word, sizeof word);
    memcpy(&c->algo, bytes, sizeof bytes);
    return true;
}

/* ---- the file -------------------------------------------------------------------------------- */

/* Adds the file's choices whose shapes are not known yet; those of another header count for
 * nothing. */
static void load(GemmCache *cache) {
    const int64_t most_bytes = (int64_t)(MOST_CHOICES + 1) * LINE_BYTES;
    const int64_t size = file_size(cache->path);
    if (size < 0 || size > most_bytes || access(cache->path, R_OK) != 0) return;
    char *text = file_read_all(cache->path, NULL), *rest = text;
    const char *line = strsep(&rest, "\n");
    if (strcmp(line, cache->header) == 0) {
        while (rest) {
            GemmChoice choice;
            line = strsep(&rest, "\n");
            if (read_choice(line, &choice) && !gemm_cache_find(cache, &choice.key))
                put(cache, &choice);
        }
    }
    free(text);
}

/* What others wrote since is kept. */
static void save(GemmCache *cache) {
    load(cache);
    const size_t capacity = sizeof cache->header + (size_t)cache->count * LINE_BYTES;
    char *text = (char *)xcalloc(capacity, 1);
    format(text, capacity, "%s\n", cache->header);
    size_t n = strlen(text);
    for (int i = 0; i < cache->count; i++) {
        print_choice(text + n, &cache->choices[i]);
        n += strlen(text + n);
        text[n++] = '\n';
    }
    file_write_atomic(cache->path, text, n);
    free(text);
    cache->changed = false;
}

/* Makes the folder of the path where it is missing; false where nothing can be written there. */
static bool folder_ready(const char *path) {
    char folder[4096];
    format(folder, sizeof folder, "%s", path);
    for (char *slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(folder, 0777); /* whether it worked shows below */
        *slash = '/';
    }
    char *last = strrchr(folder, '/');
    if (last) last[last == folder] = '\0';
    return access(last ? folder : ".", W_OK | X_OK) == 0;
}

void gemm_cache_open(Backend *be) {
    GemmCache *cache = &be->gemm->cache;
    const char *path = be->options.tune_cache;
    if (be->options.untuned || !path || !path[0]) return;
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, be->device));
    format(cache->header, sizeof cache->header,
        "laser.c: fastest algorithms of products, format %d, %s, cuBLASLt %zu", FORMAT,
        properties.name, cublasLtGetVersion());
    cache->path = path;
    cache->writes = be->options.local_rank == 0;
    load(cache);
    if (cache->writes && !folder_ready(path)) {
        warn("%s cannot be written: which algorithms are fastest is found out anew in each run; "
             "--tune-cache names another place",
            path);
        cache->writes = false;
    }
}

void gemm_cache_add(GemmCache *cache, const GemmChoice *choice) {
    put(cache, choice);
    if (!cache->writes) return;
    if (!cache->changed) cache->since = now_seconds();
    cache->changed = true;
}

void gemm_cache_save_old(GemmCache *cache) {
    if (cache->changed && now_seconds() - cache->since > SAVE_SECONDS) save(cache);
}

void gemm_cache_close(GemmCache *cache) {
    if (cache->changed) save(cache);
    free(cache->choices);
    memset(cache, 0, sizeof *cache);
}
