/* tokenize_progress.cc: see tokenize_progress.h. */
#include "dataloader/tokenize_progress.h"

#include <unistd.h>

#include <cinttypes>
#include <cstdio>

#include "laser/base.h"

static double period(const Progress *p) {
    return p->terminal ? 0.5 : 30;
}

void progress_begin(Progress *p, bool quiet, int64_t total) {
    *p = Progress();
    p->quiet = quiet;
    p->terminal = isatty(STDERR_FILENO);
    p->total = total;
    p->next = now_seconds() + period(p);
}

/* 45 s, 12 min 05 s, 3 h 20 min */
static void print_duration(double seconds) {
    const long long s = (long long)(seconds + 0.5);
    if (s < 60)
        fprintf(stderr, "%lld s", s);
    else if (s < 3600)
        fprintf(stderr, "%lld min %02lld s", s / 60, s % 60);
    else
        fprintf(stderr, "%lld h %02lld min", s / 3600, s / 60 % 60);
}

void progress_update(Progress *p, int64_t done) {
    const double now = now_seconds();
    if (p->skipped < 0 && p->documents > 0) {
        p->skipped = done;
        p->begin = now;
    }
    if (p->quiet || now < p->next) return;
    p->next = now + period(p);
    const double share = p->total > 0 ? (double)done / (double)p->total : 1;
    fprintf(stderr, "%s%5.1f %%", p->terminal ? "\r\033[K" : "", 100 * share);
    p->drawn = p->terminal;
    const double seconds = now - p->begin;
    if (p->skipped < 0) {
        fprintf(stderr, "  passing over what is done");
    } else if (seconds > 0) {
        fprintf(stderr, "  %.2f MB/s of text, %" PRId64 " documents, %.1f M tokens",
            (double)p->bytes / 1e6 / seconds, p->documents, (double)p->tokens / 1e6);
        if (done > p->skipped) {
            fprintf(stderr, ", ");
            print_duration(seconds * (double)(p->total - done) / (double)(done - p->skipped));
            fprintf(stderr, " left");
        }
    }
    if (!p->terminal) fputc('\n', stderr);
    fflush(stderr);
}

void progress_clear(Progress *p) {
    if (p->drawn) fputs("\r\033[K", stderr);
    p->drawn = false;
}
