/* health.h: asks now and then whether what processes talk through still works. Knows no process. */
#ifndef LASER_HEALTH_H
#define LASER_HEALTH_H

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

/* NULL, or what is wrong. */
typedef const char *HealthCheck(void *user);

typedef struct Health {
    pthread_mutex_t lock;
    HealthCheck *check; /* NULL: nothing is asked */
    void *user;
    double asked; /* when */
    int ill;      /* answers in a row that were not NULL */
} Health;

void health_open(Health *h);
/* The check is not under way when this returns. */
void health_set(Health *h, HealthCheck *check, void *user);
/* At most once a second of `clock`. What is wrong, once, when it stays so: a process that was
 * killed shows here too, and who can name it goes first. */
const char *health_ask(Health *h, double clock);

#ifdef __cplusplus
}
#endif
#endif
