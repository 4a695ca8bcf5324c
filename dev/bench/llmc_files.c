/* llmc_files.c: writes what karpathy/llm.c's train_gpt2.c reads, so that it can be timed without a
 * download: DIR/gpt2_124M.bin with random weights, and token shards of random tokens. Stands alone.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { T = 1024, V = 50257, VP = 50304, L = 12, H = 12, C = 768, HEADER = 256, TOKENS = 1 << 17 };

static FILE *create(const char *dir, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f) {
        perror(path);
        exit(4);
    }
    return f;
}

static void finish(FILE *f) {
    const int failed = ferror(f);
    if (fclose(f) != 0 || failed) {
        perror("writing");
        exit(4);
    }
}

static uint32_t random_bits(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* n values around center, uniform with standard deviation std */
static void write_values(FILE *f, size_t n, float center, float std, uint64_t *state) {
    const float width = 3.4641016f * std;
    for (size_t i = 0; i < n; i++) {
        float x = center + width * ((float)random_bits(state) * 2.3283064e-10f - 0.5f);
        fwrite(&x, sizeof x, 1, f);
    }
}

static void write_model(const char *dir) {
    const int32_t header[HEADER] = {20240326, 3, T, V, L, H, C, VP};
    const size_t c = C, layers = L;
    const struct {
        size_t count;
        float center, std;
    } tensors[] = {{VP * c, 0, 0.02f}, {T * c, 0, 0.02f}, {layers * c, 1, 0}, {layers * c, 0, 0},
        {layers * 3 * c * c, 0, 0.02f}, {layers * 3 * c, 0, 0}, {layers * c * c, 0, 0.02f},
        {layers * c, 0, 0}, {layers * c, 1, 0}, {layers * c, 0, 0}, {layers * 4 * c * c, 0, 0.02f},
        {layers * 4 * c, 0, 0}, {layers * 4 * c * c, 0, 0.02f}, {layers * c, 0, 0}, {c, 1, 0},
        {c, 0, 0}};
    uint64_t state = 1;
    FILE *f = create(dir, "gpt2_124M.bin");
    fwrite(header, sizeof header, 1, f);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        write_values(f, tensors[i].count, tensors[i].center, tensors[i].std, &state);
    finish(f);
}

static void write_tokens(const char *dir, const char *name) {
    const int32_t header[HEADER] = {20240520, 1, TOKENS};
    uint64_t state = 2;
    FILE *f = create(dir, name);
    fwrite(header, sizeof header, 1, f);
    for (int i = 0; i < TOKENS; i++) {
        uint16_t token = (uint16_t)(random_bits(&state) % V);
        fwrite(&token, sizeof token, 1, f);
    }
    finish(f);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s DIR (in which dev/data/tinyshakespeare is)\n", argv[0]);
        return 2;
    }
    write_model(argv[1]);
    write_tokens(argv[1], "dev/data/tinyshakespeare/tiny_shakespeare_train.bin");
    write_tokens(argv[1], "dev/data/tinyshakespeare/tiny_shakespeare_val.bin");
    return 0;
}
