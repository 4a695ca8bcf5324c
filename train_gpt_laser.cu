/* train_gpt_laser.cu: the program. Parse, open, resume, then loop { validate, save, step, log }.
 * Holds no kernel; written in the common subset of C11 and C++17, so that nvcc compiles it for CUDA
 * and a C compiler for everything else. Which attention it trains is decided by what it is linked
 * with. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "laser/agree.h"
#include "laser/base.h"
#include "laser/checkpoint.h"
#include "laser/comm.h"
#include "laser/config.h"
#include "laser/generate.h"
#include "laser/json.h"
#include "laser/model.h"
#include "laser/parallel.h"
#include "laser/plan.h"
#include "laser/probe.h"
#include "laser/rundata.h"
#include "laser/rundir.h"
#include "laser/runlog.h"
#include "laser/sample.h"
#include "laser/schedule.h"
#include "laser/stop.h"
#include "laser/validate.h"

enum { PATH_BYTES = 4096, MAX_SKIPPED_IN_ROW = 20, MAX_PEAK_MEASUREMENTS = 10 };
enum { STEPS_UNDER_WAY = 2 };
enum { DIVERGED = 1 << 16 }; /* is agreed on like signals, whose numbers are less */

typedef struct Trainer {
    Config config;
    Comm comm;
    Backend *be;
    RunData data;
    Model model;
    Parallel parallel;
    Validation validation; /* nothing without validation shards */
    RunLog *log;           /* NULL on ranks > 0 */
    RunState state;
    Schedule schedule;
    AdamArgs adam;
    char *config_json;
    char checkpoints[PATH_BYTES]; /* empty: nothing is kept */
    int32_t *inputs, *targets;    /* (B, T) of this process */
    int micro_steps;
    double peak_flops;
    int peak_measured; /* times again */
    int64_t saved_step;
    bool diverged; /* as far as this process has seen */
    int64_t begun; /* steps handed to the backend; state.step of them are done */
    float lr[2];   /* of steps under way, by begun & 1 */
    double clock;  /* when the last step was done, or the first after a pause began */
} Trainer;

/* ---- opening ---- */

/* Returns the sequences of a step, of all processes. */
static int64_t split_step(Trainer *t) {
    Config *c = &t->config;
    const int64_t micro = c->batch * t->comm.world;
    if (c->total_batch == AUTO) c->total_batch = micro * c->seq_len;
    const int64_t sequences = c->total_batch / c->seq_len;
    if (sequences % micro)
        die(EXIT_USAGE,
            "--total-batch %" PRId64 " is %" PRId64 " sequences of %" PRId64
            " tokens, not a multiple of --batch %" PRId64 " x %d processes",
            c->total_batch, sequences, c->seq_len, c->batch, t->comm.world);
    t->micro_steps = (int)(sequences / micro);
    return sequences;
}

static int planned_micro_steps(const Trainer *t) {
    const Config *c = &t->config;
    const int64_t micro = c->batch * t->comm.world * c->seq_len;
    return c->total_batch > micro ? (int)(c->total_batch / micro) : 1;
}

/* Opens the data first: a bad file is found before any memory is taken. */
static void open_data(Trainer *t) {
    Config *c = &t->config;
    rundata_open(&t->data, c, split_step(t), &t->comm);
    const size_t n = size_mul((size_t)c->batch, (size_t)c->seq_len);
    t->inputs = (int32_t *)xcalloc(n, sizeof *t->inputs);
    t->targets = (int32_t *)xcalloc(n, sizeof *t->targets);
}

static void open_model(Trainer *t) {
    const Config *c = &t->config;
    const ModelConfig shape = config_model(c, 0);
    const BackendLimits limits = model_limits(&shape, (int)c->batch);
    const BackendOptions options = config_backend(c, t->comm.local_rank);
    t->be = backend_open(&options);
    const ParallelOptions parallel = parallel_options(c, t->micro_steps);
    const PlanShape plan = {&shape, (int)c->batch, t->comm.world, &parallel, &options};
    plan_require_memory(t->be, &plan, t->comm.local_world);
    comm_barrier(&t->comm); /* all have looked at what is free before any takes it */
    backend_reserve(t->be, &limits);
    parallel_open(
        &t->parallel, &t->comm, t->be, &t->model, &shape, (int)c->batch, &parallel);
    if (t->data.val && c->val_every)
        validate_open(&t->validation, &t->model, &t->data, &t->comm, c->val_tokens);
    t->schedule = optim_schedule(c);
    t->adam = optim_args(c);
}

/* ---- the run directory ---- */

static void load_run(Trainer *t, const char *path) {
    int64_t updates;
    char *saved = checkpoint_state(path, &t->state, &updates);
    rundir_require_same(path, &t->config, saved, t->comm.rank == 0);
    const uint64_t data = loader_info(t->data.train)->fingerprint;
    if (t->state.data_fingerprint != data)
        die(EXIT_USAGE,
            "%s was trained on other data (fingerprint %016" PRIx64
            ", --train now gives %016" PRIx64 "): the shards' names, sizes or headers differ. Give "
            "the same --train, or another --out",
            path, t->state.data_fingerprint, data);
    checkpoint_load(path, &t->parallel);
    optim_set_updates(&t->parallel.optim, t->be, updates);
    t->saved_step = t->state.step;
    free(saved);
}

static void agree_on_start(const Trainer *t) {
    const AgreeRun run = {loader_info(t->data.train)->fingerprint,
        t->data.val ? loader_info(t->data.val)->fingerprint : 0, t->state.step, t->config.steps};
    agree_on_run(&t->comm, &run);
    if (t->config.check_every) agree_on_weights(&t->comm, &t->model, t->state.step);
}

static void resume_or_init(Trainer *t) {
    const Config *c = &t->config;
    char start[PATH_BYTES] = "";
    if (c->out[0]) format(t->checkpoints, sizeof t->checkpoints, "%s/checkpoints", c->out);
    if (t->comm.rank == 0) rundir_find_start(c, t->checkpoints, start, sizeof start);
    comm_broadcast(&t->comm, start, sizeof start, 0);
    t->state.best_val = -1.0;
    t->saved_step = -1;
    if (start[0]) {
        load_run(t, start);
    } else {
        parallel_init(&t->parallel, (uint64_t)c->seed);
        t->state.data_fingerprint = loader_info(t->data.train)->fingerprint;
    }
    agree_on_start(t);
    t->begun = t->state.step;
    loader_seek(t->data.train, t->begun);
}

static void open_log(Trainer *t) {
    const Config *c = &t->config;
    if (t->comm.rank != 0) return;
    char path[PATH_BYTES], device[256];
    const LoaderInfo *data = loader_info(t->data.train);
    const ModelConfig *m = &t->model.config;
    backend_describe(t->be, device, sizeof device);
    Text facts_of_data = {NULL, 0, 0};
    rundata_add_json(&t->data, c, &facts_of_data);
    const RunFacts facts = {c, t->config_json, m, device, t->peak_flops, t->comm.world,
        data->tokens, data->fingerprint, facts_of_data.data};
    Text line = rundir_line(&facts);
    if (c->out[0]) {
        format(path, sizeof path, "%s/config.json", c->out);
        file_write_atomic(path, line.data, line.size);
    }
    /* saved_step is -1 where nothing was resumed: step 0 is validated again, and logged once */
    t->log = runlog_open(c->out[0] ? c->out : NULL, line.data, t->saved_step, c->quiet != 0);
    runlog_note(t->log,
        "%s attention, model %s: %.2f M parameters, sequence %d, %" PRId64 " tokens a step",
        backend_attention(), c->model, (double)model_parameters(m) / 1e6, m->T, c->total_batch);
    runlog_note(t->log, "%s, %.1f GFLOP/s", device, t->peak_flops / 1e9);
    rundata_note(&t->data, c, t->log);
    if (t->state.step > 0) {
        runlog_note(t->log, "resumed after step %" PRId64, t->state.step);
        runlog_event(t->log, t->state.step, "resumed", c->command_line);
    }
    text_free(&line);
    text_free(&facts_of_data);
}

/* ---- one step ---- */

/* A step faster than the peak says that the machine was busy when the peak was measured. */
static double fraction_of_peak(Trainer *t, double tok_s) {
    const double flops = tok_s * model_flops_per_token(&t->model.config, (int)t->config.seq_len);
    if (flops > t->peak_flops * t->comm.world && t->peak_measured < MAX_PEAK_MEASUREMENTS) {
        t->peak_flops = backend_peak_flops(t->be);
        t->peak_measured++;
    }
    return flops / (t->peak_flops * t->comm.world);
}

static void log_step(Trainer *t, const StepState *s, float lr, double seconds) {
    const Config *c = &t->config;
    StepRecord r;
    memset(&r, 0, sizeof r);
    r.step = t->state.step;
    r.steps = c->steps;
    r.tokens = t->state.tokens;
    r.loss = s->loss_sum / (double)c->total_batch;
    r.grad_norm = sqrt(s->grad_sumsq);
    r.lr = (double)lr;
    r.step_ms = 1e3 * seconds;
    r.tok_s = (double)c->total_batch / seconds;
    r.mfu = fraction_of_peak(t, r.tok_s);
    r.skipped = s->skipped != 0;
    if (t->log) runlog_train(t->log, &r);
}

static void save(Trainer *t) {
    if (!t->checkpoints[0] || t->saved_step == t->state.step) return;
    if (t->config.check_every) agree_on_weights(&t->comm, &t->model, t->state.step);
    checkpoint_save(
        t->checkpoints, &t->parallel, &t->state, t->config_json, (int)t->config.keep);
    if (t->log) runlog_event(t->log, t->state.step, "saved", t->checkpoints);
    t->saved_step = t->state.step;
}

/* A step that was not applied. When nothing but such steps comes any more, the run is to end; not
 * here: processes may be at different places when they learn of it. */
static void count_skipped(Trainer *t, const StepState *s) {
    t->state.skipped += s->skipped;
    t->state.skipped_in_row = s->skipped ? t->state.skipped_in_row + 1 : 0;
    if (t->state.skipped_in_row >= MAX_SKIPPED_IN_ROW) t->diverged = true;
}

/* All come here together. */
static void end_diverged(Trainer *t) {
    if (t->comm.rank != 0) comm_barrier(&t->comm); /* rank 0 writes, then ends them all */
    if (t->log) {
        runlog_event(t->log, t->state.step, "diverged", "too many skipped steps in a row");
        runlog_close(t->log);
    }
    if (t->comm.rank == 0)
        die(EXIT_DIVERGED,
            "training diverged: %d steps in a row had a loss or a gradient norm that is not "
            "finite. "
            "The newest checkpoint in %s is from before; try a lower --lr or a longer --warmup",
            MAX_SKIPPED_IN_ROW, t->checkpoints[0] ? t->checkpoints : "(no --out)");
    exit(EXIT_DIVERGED);
}

/* Waits for the oldest step under way. */
static void finish_step(Trainer *t) {
    const int slot = (int)(t->state.step & 1);
    const StepState s = optim_read_end(&t->parallel.optim, t->be, slot);
    const double now = now_seconds(), seconds = now - t->clock;
    t->clock = now;
    comm_at_step(&t->comm, ++t->state.step);
    t->state.tokens += t->config.total_batch;
    t->state.train_seconds += seconds;
    log_step(t, &s, t->lr[slot], seconds);
    count_skipped(t, &s);
}

/* Finishes the steps that are done, and waits for more of them while over `most` are under way. */
static void finish_steps(Trainer *t, int64_t most) {
    while (t->begun > t->state.step &&
           (t->begun - t->state.step > most ||
               optim_read_ready(&t->parallel.optim, t->be, (int)(t->state.step & 1))))
        finish_step(t);
}

/* Hands one step to the backend and does not wait for it. */
static void begin_step(Trainer *t) {
    const Config *c = &t->config;
    const int B = (int)c->batch, T = (int)c->seq_len, slot = (int)(t->begun & 1);
    const float grad_scale = 1.0f / (float)c->total_batch;
    if (t->begun == t->state.step) t->clock = now_seconds();
    parallel_begin(&t->parallel);
    for (int i = 0; i < t->micro_steps; i++) {
        loader_next(t->data.train, t->inputs, t->targets);
        model_forward(&t->model, t->inputs, B, T);
        parallel_backward(&t->parallel, t->targets, B, T, grad_scale);
        finish_steps(t, STEPS_UNDER_WAY);
        made_progress();
    }
    t->lr[slot] = t->adam.lr = (float)schedule_lr(&t->schedule, t->begun);
    parallel_update(&t->parallel, &t->adam);
    optim_read_begin(&t->parallel.optim, t->be, slot);
    t->begun++;
}

/* The backend always has a step to work on while the next is prepared: what a step gave is known,
 * logged and counted at the latest when the next but one begins. */
static void take_step(Trainer *t) {
    finish_steps(t, STEPS_UNDER_WAY - 1);
    begin_step(t);
    finish_steps(t, STEPS_UNDER_WAY);
}

/* ---- validation, samples ---- */

static void validate(Trainer *t) {
    if (!t->validation.model) return;
    const ValResult r = validate_run(&t->validation);
    if (isfinite(r.loss) && (t->state.best_val < 0 || r.loss < t->state.best_val))
        t->state.best_val = r.loss;
    const ValRecord record = {t->state.step, t->state.tokens, r.tokens, r.loss, r.bits_per_byte};
    if (t->log) runlog_val(t->log, &record);
}

static void sample(Trainer *t) {
    const Config *c = &t->config;
    if (!t->log) return;
    const int32_t eos = loader_info(t->data.train)->eos;
    const SampleRule rule = {1.0, 0, (uint64_t)(c->seed + t->state.step)};
    const int most = (int)(c->sample_tokens < c->seq_len ? c->sample_tokens + 1 : c->seq_len);
    int32_t *tokens = (int32_t *)xcalloc((size_t)most, sizeof *tokens);
    tokens[0] = eos >= 0 ? eos : 0;
    const int n = sample_tokens(&t->model, tokens, 1, most, eos, &rule);
    const Vocab *v = &t->data.vocab;
    Text text = {NULL, 0, 0};
    text_add_bytes(&text, "", 0); /* a sample may be empty */
    for (int i = 1; i < n && tokens[i] < v->size; i++)
        text_add_bytes(&text, v->bytes + v->offset[tokens[i]],
            (size_t)(v->offset[tokens[i] + 1] - v->offset[tokens[i]]));
    runlog_sample(t->log, t->state.step, text.data);
    text_free(&text);
    free(tokens);
}

static void probe(Trainer *t) {
    Text layers = {NULL, 0, 0};
    if (!t->log) return;
    for (int i = 0; i < t->model.config.L; i++) {
        ProbeLayer layer;
        probe_layer(&t->model, i, (int)t->config.seq_len, &layer);
        text_add(&layers, i ? "," : "");
        probe_json(&layers, &layer);
    }
    runlog_probe(t->log, t->state.step, t->state.tokens, layers.data);
    text_free(&layers);
}

/* ---- the loop ---- */

/* Agreed by all processes: each gets its own signals, and sees the ends of steps when it looks. */
static int signalled(const Trainer *t) {
    int number = t->diverged ? DIVERGED : stop_requested();
    comm_max_int(&t->comm, &number, 1);
    return number;
}

static bool every(int64_t step, int64_t period) {
    return period > 0 && step % period == 0;
}

/* Returns the exit status. */
static int run(Trainer *t) {
    const Config *c = &t->config;
    const int64_t first = t->state.step;
    if (first >= c->steps) {
        if (t->comm.rank == 0 && !c->quiet)
            printf("nothing to do: step %" PRId64 " of %" PRId64 " is done\n", first, c->steps);
        return 0;
    }
    if (first == 0) validate(t);
    while (t->begun < c->steps) {
        take_step(t);
        const int64_t step = t->begun;
        const bool last = step == c->steps, val = last || every(step, c->val_every);
        const bool text = every(step, c->sample_every), due = every(step, c->save_every);
        const bool look = every(step, c->probe_attention), compare = every(step, c->check_every);
        bool stop = c->stop_after && step - first >= c->stop_after;
        int number = signalled(t);
        if (!val && !text && !due && !look && !compare && !stop && !number) continue;
        finish_steps(t, 0);
        if (t->diverged) end_diverged(t);
        parallel_settle(&t->parallel);
        if (compare) agree_on_weights(&t->comm, &t->model, step);
        if (look) parallel_gather_gradients(&t->parallel);
        if (look) probe(t);
        if (val) validate(t);
        if (text) sample(t);
        number = number ? number : signalled(t);
        stop = stop || number;
        /* not while steps are skipped: the checkpoints from before are what a user will want */
        if (last || stop || (due && !t->state.skipped_in_row)) save(t);
        if (!stop || last) continue;
        if (t->log)
            runlog_event(t->log, step, "stopped", number ? strsignal(number) : "--stop-after");
        if (t->log)
            runlog_note(t->log, "stopped after step %" PRId64 "%s", step,
                t->checkpoints[0] ? "; the same command continues" : "");
        return number ? 128 + number : 0;
    }
    return 0;
}

static void close_all(Trainer *t) {
    if (t->log) runlog_close(t->log);
    validate_close(&t->validation);
    rundata_close(&t->data);
    parallel_close(&t->parallel);
    backend_close(t->be);
    free(t->inputs);
    free(t->targets);
    free(t->config_json);
    free(t->config.command_line);
    comm_close(&t->comm);
}

int main(int argc, char **argv) {
    Trainer t;
    memset(&t, 0, sizeof t);
    comm_open(&t.comm, &argc, &argv);
    config_parse(&t.config, argc, argv);
    comm_set_timeout(&t.comm, (double)t.config.timeout);
    agree_on_options(&t.comm, &t.config);
    if (t.config.plan) {
        ModelConfig shape = config_model(&t.config, 0);
        const BackendOptions options = config_backend(&t.config, t.comm.local_rank);
        const ParallelOptions parallel = parallel_options(&t.config, planned_micro_steps(&t));
        const PlanShape plan = {&shape, (int)t.config.batch, t.comm.world, &parallel, &options};
        if (t.comm.rank == 0) plan_print(&t.config, &plan);
        free(t.config.command_line);
        comm_close(&t.comm);
        return 0;
    }
    if (t.config.sample_from[0]) {
        if (t.comm.rank == 0) generate(&t.config);
        free(t.config.command_line);
        comm_close(&t.comm);
        return 0;
    }
    stop_catch_signals();
    open_data(&t);
    open_model(&t);
    t.config_json = config_json(&t.config);
    t.peak_flops = backend_peak_flops(t.be);
    resume_or_init(&t);
    if (t.state.step < t.config.steps) open_log(&t); /* a finished run stays as it is */
    const int status = run(&t);
    close_all(&t);
    return status;
}
