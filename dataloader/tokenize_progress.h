/* tokenize_progress.h: tells on stderr how far c4_tokenize is: one line that is redrawn on a
 * terminal, else a line every half minute. */
#ifndef LASER_TOKENIZE_PROGRESS_H
#define LASER_TOKENIZE_PROGRESS_H

#include <cstdint>

struct Progress {
    bool quiet = false, terminal = false;
    int64_t total = 0;    /* bytes of all inputs, as they lie on disk */
    int64_t skipped = -1; /* of these, when the first document was encoded; -1: not yet */
    double begin = 0;     /* seconds, when that was */
    double next = 0;      /* when to print again */
    int64_t documents = 0, tokens = 0, bytes = 0; /* encoded by this call; bytes of text */
    bool drawn = false;                           /* the terminal shows a line */
};

void progress_begin(Progress *p, bool quiet, int64_t total);
void progress_update(Progress *p, int64_t done /* of total */);
void progress_clear(Progress *p); /* before anything else is printed, and at the end */

#endif
