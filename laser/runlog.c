/* runlog.c: see runlog.h. Every record goes to log.jsonl with one write(), so that a killed run
 * leaves whole lines (except perhaps the last, which the next opening repairs), and to the event
 * file. The terminal gets a line that is redrawn in place; a file or pipe gets plain lines: the
 * first step, the last, and in between one every 2 s in the first minute, then one every 10 s. May
 * not know where the numbers come from. */
#include "laser/runlog.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/json.h"
#include "laser/tbevents.h"

enum { RECENT = 32, DEFAULT_WIDTH = 80, DIGITS = 9 /* a float survives */ };
#define REDRAW_SECONDS 0.1 /* on a terminal */
#define PLAIN_SECONDS_EARLY 2.0
#define PLAIN_SECONDS_LATER 10.0
#define PLAIN_EARLY_SECONDS 60.0

struct RunLog {
    char *path;
    int fd;
    Text line; /* reused */
    TbWriter *events;
    bool quiet, terminal, colour;
    Text shown;            /* progress line that stands on the terminal */
    double opened, drawn;  /* seconds; drawn is 0 before the first line */
    double recent[RECENT]; /* ms of the last steps, a ring */
    int64_t records;
    double first_record; /* when the first step of this process was logged */
    double spent_ms;     /* sum of the steps after it */
};

/* ---- log.jsonl ------------------------------------------------------------------------------- */

/* Whether a line of an earlier attempt stays. */
static bool line_stays(const char *line, size_t n, int64_t resume_step, bool *valid) {
    cJSON *root = cJSON_ParseWithLength(line, n);
    const cJSON *kind = cJSON_GetObjectItemCaseSensitive(root, "kind");
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(root, "step");
    bool is_run = cJSON_IsString(kind) && strcmp(kind->valuestring, "run") == 0;
    bool later = cJSON_IsNumber(step) && step->valuedouble > (double)resume_step;
    *valid = cJSON_IsObject(root);
    cJSON_Delete(root);
    return *valid && (is_run || !later);
}

/* Drops lines beyond resume_step and a torn last line, in one atomic step. */
static void rewind_log(const char *path, int64_t resume_step) {
    if (file_size(path) <= 0) return;
    size_t size, kept = 0;
    char *text = file_read_all(path, &size);
    bool changed = false;
    int64_t number = 1;
    for (size_t at = 0; at < size; number++) {
        char *newline = memchr(text + at, '\n', size - at);
        size_t n = newline ? (size_t)(newline - (text + at)) : size - at;
        bool valid, stays = line_stays(text + at, n, resume_step, &valid);
        if (!valid && newline)
            warn("%s: line %" PRId64 " is not a JSON object; dropped", path, number);
        if (stays) {
            memmove(text + kept, text + at, n);
            text[kept + n] = '\n'; /* the buffer ends with a NUL: room behind the last line too */
            kept += n + 1;
        }
        changed |= !stays || !newline;
        at += n + 1;
    }
    if (changed) file_write_atomic(path, text, kept);
    free(text);
}

static void put_line(RunLog *l) {
    if (l->fd < 0) return;
    text_add(&l->line, "\n");
    ssize_t done;
    do done = write(l->fd, l->line.data, l->line.size);
    while (done < 0 && errno == EINTR);
    if (done < 0) die(EXIT_IO, "%s: write failed: %s", l->path, strerror(errno));
    if ((size_t)done != l->line.size) {
        die(EXIT_IO, "%s: only %zd of %zu bytes could be written: the disk is full", l->path, done,
            l->line.size);
    }
}

static void begin_line(RunLog *l, const char *kind, int64_t step) {
    text_clear(&l->line);
    text_add(&l->line, "{\"kind\":\"%s\",\"step\":%" PRId64, kind, step);
}

static void add_number(RunLog *l, const char *key, double value, int digits) {
    text_add(&l->line, ",\"%s\":", key);
    text_add_json_number(&l->line, value, digits);
}

static void add_string(RunLog *l, const char *key, const char *value) {
    text_add(&l->line, ",\"%s\":", key);
    text_add_json_string(&l->line, value);
}

static void log_train(RunLog *l, const StepRecord *r) {
    begin_line(l, "train", r->step);
    text_add(&l->line, ",\"tokens\":%" PRId64, r->tokens);
    add_number(l, "loss", r->loss, DIGITS);
    add_number(l, "grad_norm", r->grad_norm, DIGITS);
    add_number(l, "lr", r->lr, DIGITS);
    add_number(l, "step_ms", r->step_ms, 6);
    add_number(l, "tok_s", r->tok_s, 6);
    if (r->mfu >= 0) add_number(l, "mfu", r->mfu, 4);
    if (r->skipped) text_add(&l->line, ",\"skipped\":true");
    text_add(&l->line, "}");
    put_line(l);
}

/* ---- terminal -------------------------------------------------------------------------------- */

static size_t terminal_width(void) {
    struct winsize size;
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return known ? size.ws_col : DEFAULT_WIDTH;
}

static void draw_shown(RunLog *l) {
    if (!l->terminal || !l->shown.size) return;
    /* One column stays free: a terminal that wraps a full line could not redraw it. */
    size_t width = terminal_width() - 1;
    size_t n = l->shown.size < width ? l->shown.size : width;
    printf("\r%.*s\x1b[K", (int)n, l->shown.data);
    fflush(stdout);
}

/* A line that stays, above the progress line. */
static void print_lasting(RunLog *l, const char *colour, const char *text) {
    if (l->quiet) return;
    if (l->terminal) printf("\r\x1b[K");
    if (l->colour && colour)
        printf("%s%s\x1b[0m\n", colour, text);
    else
        printf("%s\n", text);
    fflush(stdout);
    draw_shown(l);
}

static void add_count(Text *t, double n) {
    if (n < 1000)
        text_add(t, "%.0f", n);
    else if (n < 1e4)
        text_add(t, "%.1f k", n / 1e3);
    else if (n < 1e6)
        text_add(t, "%.0f k", n / 1e3);
    else
        text_add(t, "%.2f M", n / 1e6);
}

static void add_duration(Text *t, double seconds) {
    int64_t s = seconds < 1e9 ? (int64_t)(seconds + 0.5) : 1000000000;
    int64_t minutes = s / 60, hours = s / 3600, days = s / 86400;
    if (days)
        text_add(t, "%" PRId64 "d%02" PRId64 "h", days, hours % 24);
    else if (hours)
        text_add(t, "%" PRId64 "h%02" PRId64 "m", hours, minutes % 60);
    else if (minutes)
        text_add(t, "%" PRId64 "m%02" PRId64 "s", minutes, s % 60);
    else
        text_add(t, "%" PRId64 "s", s);
}

/* Seconds left: mean of the last steps, stretched by what the process spent beside steps
 * (validation, saving). */
static double seconds_left(const RunLog *l, const StepRecord *r, double now) {
    int64_t n = l->records < RECENT ? l->records : RECENT;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += l->recent[i];
    double stretch = l->spent_ms > 0 ? (now - l->first_record) * 1e3 / l->spent_ms : 1;
    return sum / (double)n / 1e3 * fmax(stretch, 1) * (double)(r->steps - r->step);
}

static void compose_progress(RunLog *l, const StepRecord *r, double now) {
    Text *t = &l->shown;
    const int width = snprintf(NULL, 0, "%" PRId64, r->steps); /* so that lines stand in columns */
    text_clear(t);
    text_add(t, "step %*" PRId64 "/%" PRId64 " | loss %.4f | norm %.3f | lr %.2e | ", width,
        r->step, r->steps, r->loss, r->grad_norm, r->lr);
    if (r->step_ms < 10)
        text_add(t, "%.2f ms | ", r->step_ms);
    else if (r->step_ms < 1e4)
        text_add(t, "%.0f ms | ", r->step_ms);
    else
        text_add(t, "%.1f s | ", r->step_ms / 1e3);
    add_count(t, r->tok_s);
    text_add(t, " tok/s");
    if (r->mfu >= 0) text_add(t, " | %.0f %% of peak", r->mfu * 100);
    if (r->step < r->steps) {
        text_add(t, " | ETA ");
        add_duration(t, seconds_left(l, r, now));
    }
}

static void keep_time(RunLog *l, const StepRecord *r, double now) {
    if (l->records == 0)
        l->first_record = now;
    else
        l->spent_ms += r->step_ms;
    l->recent[l->records++ % RECENT] = r->step_ms;
}

static void show_progress(RunLog *l, const StepRecord *r) {
    double now = now_seconds();
    keep_time(l, r, now);
    if (l->quiet) return;
    double gap = l->terminal                             ? REDRAW_SECONDS
                 : now - l->opened < PLAIN_EARLY_SECONDS ? PLAIN_SECONDS_EARLY
                                                         : PLAIN_SECONDS_LATER;
    bool last = r->step == r->steps;
    if (l->drawn > 0 && now - l->drawn < gap && !last) return;
    l->drawn = now;
    compose_progress(l, r, now);
    draw_shown(l);
    if (!l->terminal) print_lasting(l, NULL, l->shown.data);
    if (!last) return;
    if (l->terminal) printf("\n");
    text_clear(&l->shown); /* the finished line stays */
}

/* ---- interface ------------------------------------------------------------------------------- */

static bool good_terminal(void) {
    const char *term = getenv("TERM");
    return isatty(STDOUT_FILENO) && term && *term && strcmp(term, "dumb") != 0;
}

static void open_files(RunLog *l, const char *dir, const char *run_json, int64_t resume_step) {
    char path[4096];
    format(path, sizeof path, "%s/log.jsonl", dir);
    rewind_log(path, resume_step);
    l->path = xstrdup(path);
    l->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (l->fd < 0) die(EXIT_IO, "%s: cannot be opened: %s", path, strerror(errno));
    l->events = tb_open(dir, resume_step > 0 ? resume_step + 1 : 0);
    REQUIRE(!strchr(run_json, '\n'), "the run line holds a newline");
    text_add(&l->line, "%s", run_json);
    put_line(l);
}

RunLog *runlog_open(const char *dir, const char *run_json, int64_t resume_step, bool quiet) {
    RunLog *l = xcalloc(1, sizeof *l);
    const char *no_color = getenv("NO_COLOR");
    l->fd = -1;
    l->quiet = quiet;
    l->terminal = !quiet && good_terminal();
    l->colour = l->terminal && !(no_color && *no_color);
    l->opened = now_seconds();
    if (dir && *dir) open_files(l, dir, run_json, resume_step);
    return l;
}

void runlog_train(RunLog *l, const StepRecord *r) {
    log_train(l, r);
    const TbScalar scalars[] = {{"train/loss", r->loss}, {"train/grad_norm", r->grad_norm},
        {"train/lr", r->lr}, {"train/tokens_per_second", r->tok_s}};
    if (l->events) tb_write(l->events, r->step, scalars, sizeof scalars / sizeof *scalars);
    show_progress(l, r);
    if (r->skipped) {
        char text[160];
        format(text, sizeof text,
            "step %" PRId64 ": loss %g, gradient norm %g: not finite, update skipped", r->step,
            r->loss, r->grad_norm);
        print_lasting(l, "\x1b[33m", text);
    }
}

void runlog_val(RunLog *l, const ValRecord *r) {
    begin_line(l, "val", r->step);
    text_add(&l->line, ",\"tokens\":%" PRId64 ",\"val_tokens\":%" PRId64, r->tokens, r->val_tokens);
    add_number(l, "loss", r->loss, DIGITS);
    bool has_bits = !(r->bits_per_byte < 0);
    if (has_bits) add_number(l, "bits_per_byte", r->bits_per_byte, DIGITS);
    text_add(&l->line, "}");
    put_line(l);
    const TbScalar scalars[] = {{"val/loss", r->loss}, {"val/bits_per_byte", r->bits_per_byte}};
    if (l->events) tb_write(l->events, r->step, scalars, has_bits ? 2 : 1);
    char text[160], bits[64] = "";
    if (has_bits) format(bits, sizeof bits, " | %.4f bits/byte", r->bits_per_byte);
    format(text, sizeof text, "step %" PRId64 " | validation loss %.4f%s", r->step, r->loss, bits);
    print_lasting(l, "\x1b[1m", text);
}

/* What a model writes may hold anything, escape sequences too: a terminal gets none of them. */
static void add_printable(Text *t, const char *s) {
    size_t n = strlen(s);
    for (size_t i = 0; i < n;) {
        size_t length = utf8_sequence(s + i, n - i);
        bool control = (unsigned char)s[i] < 0x20 || s[i] == 0x7f ||
                       (length == 2 && s[i] == '\xc2' && (unsigned char)s[i + 1] < 0xa0);
        if (length == 0 || (control && s[i] != '\n'))
            text_add_bytes(t, "\xef\xbf\xbd", 3);
        else
            text_add_bytes(t, s + i, length);
        i += length ? length : 1;
    }
}

void runlog_sample(RunLog *l, int64_t step, const char *text) {
    begin_line(l, "sample", step);
    add_string(l, "text", text);
    text_add(&l->line, "}");
    put_line(l);
    text_clear(&l->line);
    text_add(&l->line, "step %" PRId64 " | sample: ", step);
    add_printable(&l->line, text);
    print_lasting(l, NULL, l->line.data);
}

void runlog_probe(RunLog *l, int64_t step, int64_t tokens, const char *layers) {
    begin_line(l, "probe", step);
    text_add(&l->line, ",\"tokens\":%" PRId64 ",\"layers\":[", tokens);
    text_add_bytes(&l->line, layers, strlen(layers));
    text_add(&l->line, "]}");
    put_line(l);
}

void runlog_event(RunLog *l, int64_t step, const char *name, const char *text) {
    begin_line(l, "event", step);
    add_string(l, "name", name);
    add_string(l, "text", text);
    text_add(&l->line, ",\"time\":%.3f}", wall_seconds());
    put_line(l);
}

void runlog_note(RunLog *l, const char *fmt, ...) {
    if (l->quiet) return;
    va_list args;
    va_start(args, fmt);
    char *text = NULL;
    if (vasprintf(&text, fmt, args) < 0) die(EXIT_IO, "out of memory");
    va_end(args);
    print_lasting(l, NULL, text);
    free(text);
}

void runlog_flush(RunLog *l) {
    if (l->fd < 0) return;
    /* Not every file system can: then it has nothing to say about a full disk either. */
    if (fdatasync(l->fd) != 0 && errno != EINVAL && errno != ENOTSUP) {
        die(EXIT_IO, "%s: could not be brought to the disk: %s", l->path, strerror(errno));
    }
    tb_flush(l->events);
}

void runlog_close(RunLog *l) {
    runlog_flush(l);
    if (l->terminal && l->shown.size) printf("\n");
    fflush(stdout);
    if (l->fd >= 0) {
        tb_close(l->events);
        close(l->fd);
    }
    text_free(&l->line);
    text_free(&l->shown);
    free(l->path);
    free(l);
}
