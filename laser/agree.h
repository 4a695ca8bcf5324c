/* agree.h: what all processes of a run must have in common: program, options, data, place in the
 * run, weights. Replicas that differ train something, and nothing in the loss says so. Each dies in
 * the process that finds the difference, naming it; with one process there is none. */
#ifndef LASER_AGREE_H
#define LASER_AGREE_H

#include "laser/comm.h"
#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Build, attention, and every option but those that may differ (LOCAL); as parsed, before anything
 * else is exchanged: those decide how often and with what the processes meet. EXIT_USAGE. */
void agree_on_options(const Comm *comm, const Config *c);

typedef struct AgreeRun {
    uint64_t train, val; /* fingerprints; val 0: none */
    int64_t step, steps; /* done, and of the run */
} AgreeRun;
void agree_on_run(const Comm *comm, const AgreeRun *mine); /* EXIT_INPUT */

/* The bits of the weights, of the float master copy where each process has one. EXIT_PROCESS,
 * naming those that most of the processes do not agree with, or rank 0 where there is no majority.
 */
void agree_on_weights(const Comm *comm, const Model *m, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
