/* runlog.h: what a run leaves to read: log.jsonl, a TensorBoard event file, the progress line.
 * Knows nothing of the model or the options: the trainer hands it finished values. */
#ifndef LASER_RUNLOG_H
#define LASER_RUNLOG_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct StepRecord {
    int64_t step;   /* 1-based: steps done */
    int64_t steps;  /* of the run */
    int64_t tokens; /* trained on so far */
    double loss, grad_norm, lr, step_ms, tok_s;
    double mfu;   /* fraction of peak, 0..1; negative when unknown */
    bool skipped; /* loss or norm was not finite, update not applied */
} StepRecord;

typedef struct ValRecord {
    int64_t step, tokens; /* trained on so far */
    int64_t val_tokens;   /* that the loss is of */
    double loss;          /* their mean, nats */
    double bits_per_byte; /* negative when unknown */
} ValRecord;

typedef struct RunLog RunLog;

/* Opens DIR/log.jsonl for appending and a new event file. Lines of log.jsonl with a "step" beyond
 * resume_step (of an attempt that died after its last checkpoint) are dropped first, atomically; -1
 * when nothing was resumed: step 0 is then logged again. run_json is the {"kind":"run",...} line,
 * without newline. dir NULL or "": no files, only the terminal. quiet: nothing on the terminal. */
RunLog *runlog_open(const char *dir, const char *run_json, int64_t resume_step, bool quiet);
void runlog_train(RunLog *l, const StepRecord *r); /* logs, and draws the progress line */
void runlog_val(RunLog *l, const ValRecord *r);
void runlog_sample(
    RunLog *l, int64_t step, const char *text); /* text: UTF-8 or arbitrary bytes; shown too */
/* layers: JSON objects of probe_json, commas between */
void runlog_probe(RunLog *l, int64_t step, int64_t tokens, const char *layers);
void runlog_event(RunLog *l, int64_t step, const char *name,
    const char *text); /* "saved", "resumed", "stopped", ... */
void runlog_note(RunLog *l, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))); /* terminal only */
void runlog_flush(RunLog *l);
void runlog_close(RunLog *l);

#ifdef __cplusplus
}
#endif
#endif
