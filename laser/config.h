/* config.h: every option of the program, once. From CONFIG_TABLE come the struct, the parser,
 * --help, config.json and the comparison on resume. Also the shape of a model that they describe.
 * Knows nothing of how it is computed or stored. */
#ifndef LASER_CONFIG_H
#define LASER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "laser/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum Positions { POS_SINUSOID, POS_LEARNED, POS_ROPE, POS_NONE } Positions;
typedef enum Init { INIT_PAX, INIT_GPT2 } Init;
typedef enum Recompute { RECOMPUTE_NONE, RECOMPUTE_LIGHT, RECOMPUTE_BLOCK } Recompute;

typedef struct ModelConfig {
    int L, C, F, H, HD; /* layers, width, MLP hidden size, heads, head size (H*HD need not be C) */
    int V, Vp;          /* vocabulary; the same padded to a multiple of 128 */
    int T;              /* longest sequence; rows of the position table */
    Act act;
    Positions pos;
    Init init;
    Recompute recompute;
    bool bias_attn, bias_mlp, bias_logits;
    bool embed_scale; /* token embeddings times sqrt(C) */
    float norm_eps, attn_cap, logit_cap;
    float temperature;           /* divides attention's scores; 1: as they are */
    bool per_dim_scale, qk_norm; /* see op_query_key_fwd */
    bool diff, diff_plain;       /* differential attention; without norm and factor */
} ModelConfig;

/* What a difference from the saved run means on resume. */
typedef enum ResumeRule {
    LOCAL, /* may change, and may differ between the processes of a run */
    FREE,  /* may change: where and how to run, not what is trained */
    NOTED, /* may change, but the run is no longer the one that was started: said and logged */
    FIXED, /* refused */
} ResumeRule;

/* Rows of the table; AUTO as a default: from the preset or the data.
 *   GROUP(title)
 *   TEXT(field, "option", default, resume, "ARG", "help")
 *   INT (field, "option", default, min, max, resume, "help")
 *   REAL(field, "option", default, min, max, resume, "help")
 *   FLAG(field, "option", default 0|1|AUTO, resume, "help")      --option and --no-option
 *   ENUM(field, "option", default or "", "a|b|c", resume, "help") */
enum { AUTO = -1 };

#define CONFIG_TABLE(GROUP, TEXT, INT, REAL, FLAG, ENUM)                                           \
    GROUP("Data")                                                                                  \
    TEXT(train, "train", "", LOCAL, "GLOB", "training shards")                                     \
    TEXT(val, "val", "", LOCAL, "GLOB", "validation shards (none: no validation)")                 \
    TEXT(tokenizer, "tokenizer", "", LOCAL, "FILE",                                                \
        "vocabulary for samples (default: tokenizer.bin beside the shards)")                       \
    INT(seq_len, "seq-len", AUTO, 1, 1 << 20, FIXED,                                               \
        "T, tokens in a sequence (default: the preset's)")                                         \
    INT(batch, "batch", 8, 1, 1 << 20, FREE, "B, sequences per process and micro-step")            \
    INT(total_batch, "total-batch", AUTO, 1, (int64_t)1 << 40, FIXED,                              \
        "tokens per step over all processes (default: batch x seq-len x processes)")               \
    INT(seed, "seed", 1, 0, INT64_MAX, FIXED, "of the initial weights and of the data order")      \
    GROUP("Model")                                                                                 \
    TEXT(model, "model", "small", FIXED, "PRESET", "see the list below")                           \
    INT(layers, "layers", AUTO, 1, 10000, FIXED, "L")                                              \
    INT(d_model, "d-model", AUTO, 1, 1 << 20, FIXED, "C, width of the residual stream")            \
    INT(d_ff, "d-ff", AUTO, 1, 1 << 20, FIXED, "F, hidden size of the MLP")                        \
    INT(heads, "heads", AUTO, 1, 1 << 16, FIXED, "H")                                              \
    INT(head_dim, "head-dim", AUTO, 1, 1 << 16, FIXED,                                             \
        "size of a head; heads x head-dim need not be d-model")                                    \
    INT(vocab, "vocab", AUTO, 2, INT32_MAX - 128, FIXED,                                           \
        "V (default: the preset's, or as the shards record)")                                      \
    ENUM(act, "act", "", "relu|gelu", FIXED, "activation of the MLP (gelu: tanh form)")            \
    ENUM(pos, "pos", "", "sinusoid|learned|rope|none", FIXED, "positions")                         \
    ENUM(init, "init", "", "pax|gpt2", FIXED, "initial weights")                                   \
    REAL(norm_eps, "norm-eps", AUTO, 0, 1, FIXED, "epsilon of the LayerNorms")                     \
    FLAG(bias_attn, "bias-attn", AUTO, FIXED, "biases in the attention's linear layers")           \
    FLAG(bias_mlp, "bias-mlp", AUTO, FIXED, "biases in the MLP")                                   \
    FLAG(bias_logits, "bias-logits", AUTO, FIXED, "bias on the output logits")                     \
    FLAG(embed_scale, "embed-scale", AUTO, FIXED, "token embeddings times sqrt(d-model)")          \
    REAL(attn_cap, "attn-cap", AUTO, 0, 1e6, FIXED,                                                \
        "soft cap on attention scores, cap*tanh(s/cap); 0: off")                                   \
    REAL(temperature, "temperature", 1, 1e-6, 1e6, FIXED, "divides attention scores")              \
    FLAG(per_dim_scale, "per-dim-scale", 0, FIXED, "learned scale of each channel of the queries") \
    FLAG(qk_norm, "qk-norm", 0, FIXED, "LayerNorm over each head of queries and keys")             \
    FLAG(diff, "diff", 0, FIXED,                                                                   \
        "differential attention: two maps a head, each from half of its channels")                 \
    FLAG(diff_plain, "diff-plain", 0, FIXED, "the same without norm and factor on the difference") \
    REAL(logit_cap, "logit-cap", AUTO, 0, 1e6, FIXED, "soft cap on output logits; 0: off")         \
    ENUM(recompute, "recompute", "none", "none|light|block", LOCAL,                                \
        "activations computed again in the backward pass: norms and MLP activation | whole "       \
        "blocks")                                                                                  \
    GROUP("Optimizer")                                                                             \
    ENUM(optimizer, "optimizer", "adamw", "adamw|lamb", FIXED,                                     \
        "lamb: AdamW whose update of each tensor of a layer is scaled to the tensor's norm")       \
    REAL(lr, "lr", 1e-3, 0, 1e3, NOTED, "peak learning rate")                                      \
    ENUM(schedule, "schedule", "cosine", "cosine|linear|constant|wsd", NOTED,                      \
        "after the warm-up (wsd: constant, then linear to the end)")                               \
    INT(warmup, "warmup", 0, 0, (int64_t)1 << 40, NOTED, "steps of linear warm-up")                \
    REAL(min_lr_ratio, "min-lr-ratio", 0, 0, 1, NOTED, "final learning rate / peak")               \
    REAL(decay_fraction, "decay-fraction", 0.2, 0, 1, NOTED, "wsd: share of the steps that decay") \
    REAL(beta1, "beta1", 0.9, 0, 0.999999, NOTED, "decay of the first moment")                     \
    REAL(beta2, "beta2", 0.99, 0, 0.9999999, NOTED, "decay of the second moment")                  \
    REAL(eps, "eps", 1e-8, 0, 1, NOTED, "Adam's epsilon (the paper: 1e-24)")                       \
    REAL(weight_decay, "weight-decay", 0.1, 0, 1e3, NOTED,                                         \
        "decoupled, scaled by the schedule; on matrices")                                          \
    FLAG(decay_all, "decay-all", 0, NOTED,                                                         \
        "weight decay on biases and norms too (norm scales: towards 1)")                           \
    REAL(grad_clip, "grad-clip", 1, 0, 1e9, NOTED, "clip the global gradient norm; 0: off")        \
    REAL(update_clip, "update-clip", 0, 0, 1e9, NOTED,                                             \
        "clip the rms of each tensor's update; 0: off")                                            \
    GROUP("Run")                                                                                   \
    TEXT(out, "out", "", FREE, "DIR", "run directory: log, checkpoints (none: nothing is kept)")   \
    INT(steps, "steps", AUTO, 1, (int64_t)1 << 40, NOTED,                                          \
        "steps of the run (default: one pass over the data)")                                      \
    INT(val_every, "val-every", 250, 0, (int64_t)1 << 40, FREE,                                    \
        "steps between validations; 0: never")                                                     \
    INT(val_tokens, "val-tokens", 1 << 20, 0, (int64_t)1 << 40, FREE,                              \
        "a validation reads this many of the first tokens; 0, or more than there are: all")        \
    INT(save_every, "save-every", 1000, 0, (int64_t)1 << 40, FREE,                                 \
        "steps between checkpoints; 0: only at the end")                                           \
    INT(keep, "keep", 2, 1, 1 << 20, FREE, "checkpoints to keep")                                  \
    INT(sample_every, "sample-every", 0, 0, (int64_t)1 << 40, FREE,                                \
        "steps between text samples; 0: never")                                                    \
    INT(sample_tokens, "sample-tokens", 64, 1, 1 << 20, FREE, "tokens of a text sample")           \
    TEXT(resume, "resume", "auto", FREE, "auto|never|PATH",                                        \
        "continue the run in DIR, or from a checkpoint")                                           \
    INT(stop_after, "stop-after", 0, 0, (int64_t)1 << 40, FREE,                                    \
        "save and stop after this many steps of this call; 0: off")                                \
    INT(probe_attention, "probe-attention", 0, 0, (int64_t)1 << 40, FREE,                          \
        "steps between looks at attention: probabilities, Jacobian, gradients of its "             \
        "projections; 0: never")                                                                   \
    GROUP("Text from a checkpoint, instead of training")                                           \
    TEXT(sample_from, "sample-from", "", FREE, "PATH",                                             \
        "a checkpoint, or a run's directory: its newest")                                          \
    TEXT(prompt, "prompt", "", FREE, "TEXT",                                                       \
        "is continued (needs the vocabulary's tokenizer.model; none: a new document)")             \
    TEXT(prompt_ids, "prompt-ids", "", FREE, "LIST", "the same as token ids: 17,4,2")              \
    REAL(sample_temperature, "sample-temperature", 1, 0, 1e3, FREE,                                \
        "divides the logits; 0: always the most probable token")                                   \
    INT(top_k, "top-k", 0, 0, INT32_MAX, FREE, "draw from the K most probable tokens; 0: all")     \
    GROUP("Several processes")                                                                     \
    INT(zero, "zero", 1, 0, 1, FREE,                                                               \
        "1: the optimizer's state is dealt out over the processes (ZeRO-1); 0: each holds all; "   \
        "the same bits")                                                                           \
    ENUM(reduce_in, "reduce-in", "fp32", "fp32|bf16", NOTED, "what gradients travel in")           \
    FLAG(reproducible, "reproducible", 0, NOTED,                                                   \
        "the same bits for any number of processes with the same --batch (CPU)")                   \
    FLAG(share_gpu, "share-gpu", 0, LOCAL, "several processes may use one GPU")                    \
    INT(check_every, "check-every", AUTO, 0, (int64_t)1 << 40, FREE,                               \
        "steps between comparisons of the weights of all processes; 0: never (default: at the "    \
        "start and before each checkpoint)")                                                       \
    INT(timeout, "timeout", 600, 0, 1 << 30, LOCAL,                                                \
        "seconds without progress that end a run of several processes; 0: never")                  \
    GROUP("Machine")                                                                               \
    INT(threads, "threads", 0, 0, 4096, LOCAL, "CPU threads; 0: one per core")                     \
    ENUM(attn_core, "attn-core", "auto", "auto|gemm|cudnn", LOCAL,                                 \
        "how attention is computed (GPU only)")                                                    \
    FLAG(tf32, "tf32", 0, NOTED, "fp32 matrix products in TF32 (GPU only)")                        \
    FLAG(tune, "tune", 1, LOCAL,                                                                   \
        "time the library's matrix products and take the fastest; off: the same bits at every "    \
        "start (GPU only)")                                                                        \
    TEXT(tune_cache, "tune-cache", "", LOCAL, "FILE|none",                                         \
        "keeps what was timed (default: a file in the user's cache directory; GPU only)")          \
    FLAG(prefetch, "prefetch", 1, LOCAL, "a thread prepares the next batch")                       \
    FLAG(verify_data, "verify-data", AUTO, LOCAL,                                                  \
        "read all shards and compare their checksums before training (default: where they have "   \
        "less than 1 GB)")                                                                         \
    FLAG(plan, "plan", 0, FREE, "print parameters, memory, disk and FLOPs, and exit")              \
    FLAG(quiet, "quiet", 0, LOCAL, "no progress lines")

typedef struct Config {
#define NO_FIELD(title)
#define TEXT_FIELD(field, ...) const char *field;
#define INT_FIELD(field, ...) int64_t field;
#define REAL_FIELD(field, ...) double field;
    CONFIG_TABLE(NO_FIELD, TEXT_FIELD, INT_FIELD, REAL_FIELD, INT_FIELD, INT_FIELD)
#undef NO_FIELD
#undef TEXT_FIELD
#undef INT_FIELD
#undef REAL_FIELD
    bool vocab_given; /* --vocab was on the command line */
    char *command_line;
    char tune_path[4096]; /* of --tune-cache, resolved; empty: no file */
} Config;

/* Parses, fills in the preset, checks ranges and combinations; dies with EXIT_USAGE naming the
 * option. --help and
 * --version print and exit with 0. */
void config_parse(Config *c, int argc, char **argv);
void config_help(FILE *out);

/* The model that the options describe. vocab: as recorded in the data, used where --vocab and the
 * preset leave it open. */
ModelConfig config_model(const Config *c, int32_t vocab);

/* Takes the model's options, and where they are not given the data's names, from what
 * config_json wrote. */
void config_adopt_model(Config *c, const char *json);

/* How the options say to run. Points into c. */
BackendOptions config_backend(const Config *c, int local_rank);

/* One JSON object with every option, resolved, malloced: {"train":"...","seq_len":256,...}. */
char *config_json(const Config *c);

/* Compares with such an object from an earlier run; what is not in it counts as its default. Writes
 * "option: saved -> now" lines, malloced, for the options under the given rule; empty string when
 * they agree. */
char *config_differences(const Config *c, const char *json, ResumeRule rule);

typedef struct Preset {
    const char *name;
    int L, C, F, H, HD, V, T;
    bool gpt2;
    float attn_cap, logit_cap;
} Preset;
const Preset *config_presets(int *count);

#ifdef __cplusplus
}
#endif
#endif
