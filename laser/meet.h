/* meet.h: processes that know the address of rank 0's machine meet there, over TCP, and stay
 * connected to rank 0. Knows nothing of what they then say. */
#ifndef LASER_MEET_H
#define LASER_MEET_H

#include <stddef.h>

#include "laser/launch.h"

typedef struct Meeting {
    int rank, world;
    int *fd; /* rank 0: (world), by rank, its own -1; others: (1), rank 0 */
} Meeting;

/* Until all are there, for that many seconds, 0: for ever; they come in any order. Rank 0 listens
 * at the port or one of the next few: torchrun keeps its own server at the first. Dies with
 * EXIT_PROCESS, naming the first who is missing, or where rank 0 was looked for; EXIT_USAGE where
 * two have one rank or they disagree on how many they are. */
void meet_open(Meeting *m, const LaunchEnv *e, double seconds);
void meet_close(Meeting *m);

/* Whole, to or from a rank that this one is connected with; die with EXIT_PROCESS where it is gone,
 * seconds later: who watches over it knows more. */
void meet_send(const Meeting *m, int rank, const void *data, size_t bytes);
void meet_receive(const Meeting *m, int rank, void *data, size_t bytes);

#endif
