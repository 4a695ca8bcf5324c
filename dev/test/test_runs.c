/* test_runs.c: what a run leaves to read: log.jsonl, the event file, and what it prints. Holds the
 * table of the group; its safetensors cases are in test_safetensors.c. dev/test/check_formats.py
 * reads and writes the same formats with the libraries that define them; the two "formats:" cases
 * are its other half. Needs no backend. */
#include "dev/test/test.h"

#include <cjson/cJSON.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "dev/test/runs_cases.h"
#include "laser/runlog.h"
#include "laser/safetensors.h"

/* ---- log.jsonl ------------------------------------------------------------------------------- */

static const char run_line[] = "{\"kind\":\"run\",\"attention\":\"laser\"}";

static StepRecord step_record(int64_t step) {
    return (StepRecord){.step = step,
        .steps = 100,
        .tokens = step * 512,
        .loss = 0.1 + (double)step,
        .grad_norm = 1.5,
        .lr = 3e-4,
        .step_ms = 812.125,
        .tok_s = 6300,
        .mfu = 0.71};
}

static char *read_log(const char *dir) {
    char path[PATH_BYTES];
    format(path, sizeof path, "%s/log.jsonl", dir);
    return file_read_all(path, NULL);
}

void write_file(const char *path, const void *data, size_t n) {
    FILE *f = xfopen(path, "wb");
    REQUIRE(fwrite(data, 1, n, f) == n, "%s", path);
    fclose(f);
}

static void write_log(const char *dir, const char *text) {
    char path[PATH_BYTES];
    format(path, sizeof path, "%s/log.jsonl", dir);
    write_file(path, text, strlen(text));
}

static void test_log_lines(Test *t) {
    char dir[PATH_BYTES];
    test_temp_dir(t, dir, sizeof dir);
    RunLog *l = runlog_open(dir, run_line, 0, true);
    StepRecord r = step_record(1);
    runlog_train(l, &r);
    r = step_record(2);
    r.loss = (double)NAN, r.grad_norm = (double)INFINITY, r.mfu = -1, r.skipped = true;
    runlog_train(l, &r);
    runlog_val(l, &(ValRecord){2, 1024, 64, 4.71, 1.25});
    runlog_val(l, &(ValRecord){3, 1536, 64, (double)NAN, -1});
    runlog_sample(l, 3, "a\"\\\n\t\x01\x7f b\xff\xc3\xa9");
    runlog_close(l);
    char *text = read_log(dir);
    CHECK_STR(t, text,
        "{\"kind\":\"run\",\"attention\":\"laser\"}\n"
        "{\"kind\":\"train\",\"step\":1,\"tokens\":512,\"loss\":1.1,\"grad_norm\":1.5,\"lr\":0."
        "0003,"
        "\"step_ms\":812.125,\"tok_s\":6300,\"mfu\":0.71}\n"
        "{\"kind\":\"train\",\"step\":2,\"tokens\":1024,\"loss\":null,\"grad_norm\":null,\"lr\":0."
        "0003,"
        "\"step_ms\":812.125,\"tok_s\":6300,\"skipped\":true}\n"
        "{\"kind\":\"val\",\"step\":2,\"tokens\":1024,\"val_tokens\":64,\"loss\":4.71,"
        "\"bits_per_byte\":1.25}\n"
        "{\"kind\":\"val\",\"step\":3,\"tokens\":1536,\"val_tokens\":64,\"loss\":null}\n"
        "{\"kind\":\"sample\",\"step\":3,\"text\":\"a\\\"\\\\\\n\\t\\u0001\\u007f "
        "b\xef\xbf\xbd\xc3\xa9\"}\n");
    free(text);
}

/* The loss is a float's worth of digits: reading it back gives the same float. */
static void test_log_digits(Test *t) {
    char dir[PATH_BYTES];
    test_temp_dir(t, dir, sizeof dir);
    RunLog *l = runlog_open(dir, run_line, 0, true);
    const float losses[] = {10.3734512f, 1.17549435e-38f, 3.40282347e+38f, 0.1f, 4.00000048f};
    enum { COUNT = sizeof losses / sizeof *losses };
    for (int i = 0; i < COUNT; i++) {
        StepRecord r = step_record(i + 1);
        r.loss = (double)losses[i];
        runlog_train(l, &r);
    }
    runlog_close(l);
    char *text = read_log(dir), *line = strchr(text, '\n') + 1;
    for (int i = 0; i < COUNT; i++, line = strchr(line, '\n') + 1) {
        cJSON *o = cJSON_ParseWithOpts(line, NULL, false);
        double got = cJSON_GetNumberValue(cJSON_GetObjectItem(o, "loss"));
        CHECK(t, (float)got == losses[i], "%.17g became %.17g", (double)losses[i], got);
        cJSON_Delete(o);
    }
    free(text);
}

#define TRAIN(n) "{\"kind\":\"train\",\"step\":" #n ",\"loss\":1}\n"
#define RUN "{\"kind\":\"run\",\"steps\":9,\"step\":9}\n"

static void test_log_resume(Test *t) {
    static const struct {
        const char *what, *before;
        int64_t step;
        const char *after;
    } rows[] = {
        {"nothing beyond", RUN TRAIN(1) TRAIN(2), 2, RUN TRAIN(1) TRAIN(2)},
        {"later steps go", RUN TRAIN(1) TRAIN(2) TRAIN(3), 1, RUN TRAIN(1)},
        {"run lines stay", RUN TRAIN(1) TRAIN(2) RUN TRAIN(2) TRAIN(3), 2,
            RUN TRAIN(1) TRAIN(2) RUN TRAIN(2)},
        {"a new run starts empty", RUN TRAIN(1), 0, RUN},
        {"torn last line", RUN TRAIN(1) "{\"kind\":\"train\",\"st", 5, RUN TRAIN(1)},
        {"only the newline is missing", RUN "{\"step\":1}", 5, RUN "{\"step\":1}\n"},
        {"only the newline is missing, but later", RUN "{\"step\":6}", 5, RUN},
        {"nothing but a torn line", "{\"ki", 5, ""},
        {"empty file", "", 5, ""},
        {"only a number", TRAIN(1) "12", 5, TRAIN(1)},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char dir[PATH_BYTES], want[1024];
        test_temp_dir(t, dir, sizeof dir);
        write_log(dir, rows[i].before);
        int before = t->failures;
        runlog_close(runlog_open(dir, run_line, rows[i].step, true));
        char *text = read_log(dir);
        format(want, sizeof want, "%s%s\n", rows[i].after, run_line);
        CHECK_STR(t, text, want);
        if (t->failures > before) test_fail(t, TEST_WHERE, "in the row \"%s\"", rows[i].what);
        free(text);
    }
}

static void open_log(void *dir) {
    runlog_close(runlog_open(dir, run_line, 5, true));
}

static void log_with_limit(void *dir) {
    struct rlimit limit = {512, 512};
    signal(SIGXFSZ, SIG_IGN);
    RunLog *l = runlog_open(dir, run_line, 0, true);
    setrlimit(RLIMIT_FSIZE, &limit);
    for (int64_t step = 1; step <= 100; step++) {
        StepRecord r = step_record(step);
        runlog_train(l, &r);
    }
}

static void test_log_failures(Test *t) {
    char dir[PATH_BYTES];
    test_temp_dir(t, dir, sizeof dir);
    write_log(dir, RUN "broken\n" TRAIN(2));
    EXPECT_EXIT(t, 0, "log.jsonl: line 2 is not a JSON object; dropped", open_log, dir);
    char *text = read_log(dir);
    CHECK(
        t, strncmp(text, RUN TRAIN(2), strlen(RUN TRAIN(2))) == 0, "the good lines stay: %s", text);
    free(text);
    EXPECT_EXIT(t, EXIT_IO, "log.jsonl", log_with_limit, dir);
    open_log(dir); /* what the full disk cut off is repaired */
    text = read_log(dir);
    size_t lines = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1, lines++) {
        cJSON *o = cJSON_ParseWithLength(line, (size_t)(end - line));
        CHECK(t, cJSON_IsObject(o), "line %zu is whole", lines + 1);
        cJSON_Delete(o);
    }
    CHECK(t, lines >= 3, "%zu lines", lines);
    free(text);
    EXPECT_EXIT(t, EXIT_IO, "/absent/log.jsonl", open_log, (void *)(uintptr_t) "/absent");
}

/* ---- event file --------------------------------------------------------------------------------
 */

static uint32_t word_at(const char *p) {
    const unsigned char *b = (const unsigned char *)p;
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static uint32_t masked(const char *p, size_t n) {
    uint32_t crc = crc32c(0, p, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void test_event_records(Test *t) {
    char dir[PATH_BYTES], pattern[PATH_BYTES + 32];
    test_temp_dir(t, dir, sizeof dir);
    for (int attempt = 0; attempt < 3; attempt++) { /* opened within a second: names must differ */
        RunLog *l = runlog_open(dir, run_line, 7 * attempt, true);
        StepRecord r = step_record(300);
        runlog_train(l, &r);
        runlog_close(l);
    }
    format(pattern, sizeof pattern, "%s/events.out.tfevents.*", dir);
    glob_t found;
    REQUIRE(glob(pattern, 0, NULL, &found) == 0, "%s", pattern);
    CHECK_INT(t, found.gl_pathc, 3);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        size_t size, at = 0;
        int records = 0;
        char *data = file_read_all(found.gl_pathv[i], &size);
        for (; at + 12 <= size; records++) {
            size_t n = word_at(data + at);
            CHECK_INT(t, word_at(data + at + 8), masked(data + at, 8));
            if (at + n + 16 > size) break;
            CHECK_INT(t, word_at(data + at + 12 + n), masked(data + at + 12, n));
            at += n + 16;
        }
        CHECK_INT(t, at, size);
        CHECK_INT(t, records, i == 0 ? 2 : 3); /* version, (restart), scalars */
        free(data);
    }
    globfree(&found);
}

/* ---- terminal ----------------------------------------------------------------------------------
 */

/* Runs fn with standard output on a pipe (columns 0) or a terminal of that width, and returns what
 * it printed, which has to fit the pipe's buffer. */
static void capture(Test *t, int columns, void (*fn)(Test *t), char *text, size_t capacity) {
    int ends[2];
    if (columns) {
        ends[0] = posix_openpt(O_RDWR | O_NOCTTY);
        REQUIRE(
            ends[0] >= 0 && grantpt(ends[0]) == 0 && unlockpt(ends[0]) == 0, "no pseudo terminal");
        ends[1] = open(ptsname(ends[0]), O_RDWR | O_NOCTTY);
        struct winsize size = {.ws_row = 24, .ws_col = (unsigned short)columns};
        REQUIRE(ends[1] >= 0 && ioctl(ends[1], TIOCSWINSZ, &size) == 0, "no terminal size");
    } else {
        REQUIRE(pipe(ends) == 0, "pipe");
    }
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    dup2(ends[1], STDOUT_FILENO);
    fn(t);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    ssize_t n = read(ends[0], text, capacity - 1);
    text[n > 0 ? n : 0] = '\0';
    close(saved);
    close(ends[0]);
    close(ends[1]);
}

static void run_with(Test *t, bool quiet, bool without_files) {
    char dir[PATH_BYTES];
    test_temp_dir(t, dir, sizeof dir);
    RunLog *l = runlog_open(without_files ? NULL : dir, run_line, 0, quiet);
    for (int64_t step = 1; step <= 100; step++) {
        StepRecord r = step_record(step);
        if (step == 50) r.loss = (double)NAN, r.skipped = true;
        runlog_train(l, &r);
        if (step == 60) runlog_val(l, &(ValRecord){step, r.tokens, 64, 4.71, 1.25});
    }
    runlog_note(l, "saved %s", "it");
    runlog_sample(l, 100, "red \x1b[31m\xff");
    runlog_close(l);
}

static void run_loud(Test *t) {
    run_with(t, false, false);
}
static void run_without_files(Test *t) {
    run_with(t, false, true);
}
static void run_quiet(Test *t) {
    run_with(t, true, false);
}

#define FIRST                                                                                      \
    "step   1/100 | loss 1.1000 | norm 1.500 | lr 3.00e-04 | 812 ms | 6.3 k tok/s | 71 % of peak " \
    "| "                                                                                           \
    "ETA 1m20s"
#define LAST                                                                                       \
    "step 100/100 | loss 100.1000 | norm 1.500 | lr 3.00e-04 | 812 ms | 6.3 k tok/s | 71 % of "    \
    "peak"
#define SKIPPED "step 50: loss nan, gradient norm 1.5: not finite, update skipped\n"
#define REST "saved it\nstep 100 | sample: red \xef\xbf\xbd[31m\xef\xbf\xbd\n"

static void test_plain_lines(Test *t) {
    char text[4096];
    capture(t, 0, run_loud, text, sizeof text);
    CHECK_STR(t, text,
        FIRST "\n" SKIPPED "step 60 | validation loss 4.7100 | 1.2500 bits/byte\n" LAST "\n" REST);
    capture(t, 0, run_without_files, text, sizeof text);
    CHECK(t, strncmp(text, FIRST "\n", sizeof FIRST) == 0, "without a directory: %s", text);
    capture(t, 0, run_quiet, text, sizeof text);
    CHECK_STR(t, text, "");
}

static void test_terminal_lines(Test *t) {
    char text[4096];
    setenv("TERM", "xterm", 1);
    setenv("NO_COLOR", "1", 1);
    capture(t, 41, run_loud, text, sizeof text);
    CHECK(t, strstr(text, "\rstep   1/100 | loss 1.1000 | norm 1.500 \x1b[K") != NULL,
        "cut to 40 columns: %s", text);
    CHECK(t, strstr(text, "\r\x1b[Kstep 60 | validation loss 4.7100") != NULL, "a lasting line: %s",
        text);
    CHECK(t, strstr(text, "\x1b[1m") == NULL, "colour in spite of NO_COLOR: %s", text);
    unsetenv("NO_COLOR");
    capture(t, 200, run_loud, text, sizeof text);
    CHECK(t, strstr(text, "\r" FIRST "\x1b[K") != NULL, "whole on a wide terminal: %s", text);
    CHECK(t, strstr(text, "\r" LAST "\x1b[K\r\n") != NULL, "the last step stays: %s", text);
    CHECK(t, strstr(text, "\x1b[1mstep 60") != NULL, "validation stands out: %s", text);
    CHECK(t, strstr(text, "\x1b[31m") == NULL, "an escape sequence of a sample came through: %s",
        text);
    setenv("TERM", "dumb", 1);
    capture(t, 200, run_loud, text, sizeof text);
    CHECK(t, strchr(text, '\x1b') == NULL, "escape sequences on a dumb terminal: %s", text);
}

/* ---- the other half of check_formats.py --------------------------------------------------------
 */

/* A run of 20 steps that died after its checkpoint at 10 and went on from there with other losses.
 */
static void write_attempts(const char *dir) {
    for (int attempt = 0; attempt < 2; attempt++) {
        RunLog *l = runlog_open(dir, run_line, attempt ? 10 : 0, true);
        for (int64_t step = attempt ? 11 : 1; step <= 20 - attempt; step++) {
            StepRecord r = step_record(step);
            r.loss = 10.0 / (double)step + attempt;
            runlog_train(l, &r);
            if (step % 5 == 0)
                runlog_val(l, &(ValRecord){step, r.tokens, 64, r.loss + 0.25, r.loss / 4});
        }
        runlog_sample(l, 15, "quote \" backslash \\ newline \n bad \xff good \xc3\xa9");
        runlog_close(l);
    }
}

/* Writes a file of each format where FORMATS_DIR says. */
static void test_formats_write(Test *t) {
    const char *dir = getenv("FORMATS_DIR");
    if (!dir) SKIP(t, "FORMATS_DIR is not set; dev/test/check_formats.py sets it");
    char path[PATH_BYTES];
    format(path, sizeof path, "%s/ours.safetensors", dir);
    StTensor s[SAMPLES];
    sample_tensors(s);
    st_write(path, s, SAMPLES, sample_metadata, sample_fill, s);
    CHECK(t, file_size(path) > 0, "%s is empty", path);
    write_attempts(dir);
}

static void copy_tensor(void *user, int i, void *dst) {
    const StFile *f = user;
    st_read(f, &f->tensors[i], dst);
}

/* Reads the file of the safetensors package and writes what it found. */
static void test_formats_read(Test *t) {
    const char *dir = getenv("FORMATS_DIR");
    if (!dir) SKIP(t, "FORMATS_DIR is not set; dev/test/check_formats.py sets it");
    char from[PATH_BYTES], to[PATH_BYTES];
    format(from, sizeof from, "%s/theirs.safetensors", dir);
    format(to, sizeof to, "%s/copy.safetensors", dir);
    StFile f;
    st_open(&f, from);
    StTensor *tensors = xcalloc((size_t)f.count, sizeof *tensors);
    memcpy(tensors, f.tensors, (size_t)f.count * sizeof *tensors);
    st_write(to, tensors, f.count, NULL, copy_tensor, &f);
    CHECK(t, f.count > 0, "%s holds no tensor", from);
    free(tensors);
    st_close(&f);
}

const TestCase *test_runs(int *count) {
    static const TestCase cases[] = {
        {"safetensors: what is written is read back", test_st_round_trip},
        {"safetensors: a malformed header is refused, naming the file", test_st_malformed},
        {"safetensors: a length that does not fit the file is refused", test_st_lengths},
        {"safetensors: tensors beyond 4 GiB are read", test_st_beyond_4_gib},
        {"safetensors: several writers make the file that one makes", test_st_parts},
        {"safetensors: tensors are dealt out evenly, each once", test_st_dealing},
        {"safetensors: a full disk ends the run, naming the file", test_st_write_failures},
        {"safetensors: the data is aligned whatever the header", test_st_alignment},
        {"json: UTF-8 is told from other bytes", test_utf8},
        {"runlog: each record is one JSON line", test_log_lines},
        {"runlog: a float survives", test_log_digits},
        {"runlog: resuming drops later and torn lines", test_log_resume},
        {"runlog: a broken line or a full disk is named", test_log_failures},
        {"runlog: event records carry their checksums", test_event_records},
        {"runlog: plain lines when not on a terminal", test_plain_lines},
        {"runlog: one line, redrawn, on a terminal", test_terminal_lines},
        {"formats: files for the libraries", test_formats_write},
        {"formats: a file of the safetensors package is read", test_formats_read},
    };
    return TEST_TABLE(cases, count);
}
