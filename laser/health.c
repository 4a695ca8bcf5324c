/* health.c: asks now and then whether what processes talk through still works. */
#include "laser/health.h"

#include <stddef.h>

enum { PATIENCE = 3 };

void health_open(Health *h) {
    *h = (Health){.check = NULL};
    pthread_mutex_init(&h->lock, NULL);
}

void health_set(Health *h, HealthCheck *check, void *user) {
    pthread_mutex_lock(&h->lock);
    h->check = check;
    h->user = user;
    pthread_mutex_unlock(&h->lock);
}

const char *health_ask(Health *h, double clock) {
    if (clock - h->asked < 1) return NULL;
    h->asked = clock;
    pthread_mutex_lock(&h->lock);
    const char *text = h->check ? h->check(h->user) : NULL;
    pthread_mutex_unlock(&h->lock);
    h->ill = text ? h->ill + 1 : 0;
    return h->ill == PATIENCE ? text : NULL;
}
