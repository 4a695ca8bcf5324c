/* rundir.c: a run's directory: one process at a time, one run for ever. */
#include "laser/rundir.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "laser/base.h"
#include "laser/checkpoint.h"
#include "laser/version.h"

enum { PATH_BYTES = 4096 };

static void lock_directory(const char *dir) {
    char path[PATH_BYTES];
    format(path, sizeof path, "%s/lock", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) die(EXIT_IO, "cannot create %s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        die(EXIT_IO, "%s: another process is training in this directory; choose another --out",
            dir);
} /* the descriptor, and with it the lock, lives as long as the process */

void rundir_require_same(const char *where, const Config *c, const char *saved_json, bool loud) {
    char *fixed = config_differences(c, saved_json, FIXED);
    char *noted = config_differences(c, saved_json, NOTED);
    if (fixed[0])
        die(EXIT_USAGE,
            "%s holds a run with other options; continuing it would mix two runs:\n%sGive the "
            "options of that run, or another --out",
            where, fixed);
    if (noted[0] && loud) warn("options differ from those that %s began with:\n%s", where, noted);
    free(fixed);
    free(noted);
}

/* A directory in which a run began and no checkpoint was written yet belongs to that run too. */
static void refuse_foreign(const char *dir, const Config *c, bool fresh) {
    char path[PATH_BYTES], attention[64];
    format(path, sizeof path, "%s/config.json", dir);
    if (file_size(path) < 0) return;
    if (fresh)
        die(EXIT_USAGE, "--resume never: %s holds a run already; choose another --out or remove it",
            dir);
    char *saved = file_read_all(path, NULL);
    format(attention, sizeof attention, "\"attention\":\"%s\"", backend_attention());
    if (!strstr(saved, attention))
        die(EXIT_USAGE,
            "%s holds a run with another attention than this program's (%s); choose another --out",
            dir, backend_attention());
    rundir_require_same(dir, c, saved, false);
    free(saved);
}

void rundir_open(const char *dir, const Config *c, bool fresh) {
    make_dirs(dir);
    lock_directory(dir);
    refuse_foreign(dir, c, fresh);
}

void rundir_find_start(const Config *c, const char *checkpoints, char *start, size_t capacity) {
    const bool fresh = strcmp(c->resume, "never") == 0;
    const bool given = !fresh && strcmp(c->resume, "auto") != 0;
    char *found = NULL;
    if (c->out[0]) {
        rundir_open(c->out, c, fresh);
        found = checkpoint_find(checkpoints);
    }
    if (given && found)
        warn("--resume %s is passed over: %s holds later work of this run", c->resume, found);
    if (given && !found) {
        checkpoint_require_whole(c->resume);
        found = xstrdup(c->resume);
    }
    if (found) format(start, capacity, "%s", found);
    free(found);
}

Text rundir_line(const RunFacts *f) {
    const ModelConfig *m = f->model;
    Text line = {NULL, 0, 0};
    text_add(&line, "{\"kind\":\"run\",%.*s", (int)strlen(f->config_json) - 2, f->config_json + 1);
    text_add(&line, ",\"attention\":\"%s\",\"backend\":\"%s\",\"precision\":\"%s\"",
        backend_attention(), backend_name(), backend_precision());
    text_add(&line, ",\"parameters\":%" PRId64 ",\"parameters_bare\":%" PRId64, model_parameters(m),
        model_parameters_bare(m));
    text_add(&line, ",\"flops_per_token\":%.6g,\"peak_flops\":%.6g,\"processes\":%d",
        model_flops_per_token(m, m->T), f->peak_flops, f->processes);
    text_add(&line, ",\"data_tokens\":%" PRId64 ",\"data_fingerprint\":\"%016" PRIx64 "\"",
        f->data_tokens, f->data_fingerprint);
    text_add(&line, ",\"data\":%s", f->data_json);
    text_add(&line, ",\"version\":\"%s\",\"revision\":\"%s\",\"started\":%.3f", LASER_VERSION,
        laser_revision(), wall_seconds());
    text_add(&line, ",\"device\":");
    text_add_json_string(&line, f->device);
    text_add(&line, ",\"command_line\":");
    text_add_json_string(&line, f->config->command_line);
    text_add(&line, "}");
    return line;
}
