/* watch.h: the processes of a run watch over each other. Each has a thread that tells rank 0 that
 * it lives and how far it has come, and that ends the process when rank 0 says so; rank 0's thread
 * prints what goes wrong anywhere, once, and ends all. Works while every process is blocked in a
 * collective. Knows no MPI, no NCCL and nothing of what is computed. */
#ifndef LASER_WATCH_H
#define LASER_WATCH_H

#include <stdint.h>

#include "laser/health.h"
#include "laser/link.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Watch Watch;

typedef struct WatchOptions {
    int rank, world;
    double timeout; /* seconds without any progress of anyone; 0: for ever */
    /* ends what does not end when it is told to; may return, or not */
    void (*abort_all)(int code);
} WatchOptions;

/* Rank 0 opens with the socket and the invitation of link_listen, the others with what rank 0 sent
 * them. From here on die() and warn() of all processes come out at rank 0 alone, with the rank.
 * Dies with EXIT_IO where rank 0 cannot be reached. */
Watch *watch_open(const WatchOptions *o, const LinkInvitation *invitation, int listener);
/* This process ends as it should; rank 0 waits for the others to say so too. */
void watch_close(Watch *w);

/* Ends all processes with this exit code; the first who calls it in any of them is heard. */
void watch_fail(Watch *w, int code, const char *message) __attribute__((noreturn));

void watch_set_timeout(Watch *w, double seconds);
void watch_at_step(Watch *w, int64_t step); /* for messages; progress too */
/* Around each collective: who has entered fewest of them is who the others wait for. */
void watch_enter(Watch *w);
void watch_leave(Watch *w);
/* What is asked once a second, by the thread; when it says that something is wrong and stays so,
 * that ends all (EXIT_PROCESS). NULL: nothing; the one before is not under way any more. */
void watch_set_health(Watch *w, HealthCheck *check, void *user);

#ifdef __cplusplus
}
#endif
#endif
