/* stop.h: polite ends. The first SIGINT or SIGTERM asks the run to save and stop after its step; a
 * second one leaves at once. SIGUSR1 asks too, and as often as it likes: mpirun hands it on and
 * kills nothing, and Slurm sends it ahead of a time limit (--signal=USR1@300). */
#ifndef LASER_STOP_H
#define LASER_STOP_H

#ifdef __cplusplus
extern "C" {
#endif

void stop_catch_signals(void); /* ignores SIGPIPE too: a closed pipe is no reason to lose a run */
int stop_requested(void);      /* the signal's number, 0: none came */

#ifdef __cplusplus
}
#endif
#endif
