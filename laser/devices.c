/* devices.c: which process has which GPU. */
#include "laser/devices.h"

#include <stdlib.h>
#include <string.h>

#include "laser/base.h"
#include "laser/link.h"

typedef struct Place {
    char host[64], device[64];
    int may_share;
} Place;

static bool is_shared(const Place *a, const Place *b) {
    return strcmp(a->host, b->host) == 0 && strcmp(a->device, b->device) == 0;
}

void devices_require_own(
    const Comm *c, const Backend *be, bool may_share, const char *what_to_do) {
    Place mine;
    memset(&mine, 0, sizeof mine);
    mine.may_share = may_share;
    if (c->world == 1 || !backend_device_id(be, mine.device, sizeof mine.device)) return;
    link_host(mine.host, sizeof mine.host);
    Place *all = (Place *)xcalloc((size_t)c->world, sizeof *all);
    comm_gather(c, &mine, sizeof mine, all);
    for (int b = 1; b < c->world; b++) /* all find the same: none goes on alone */
        for (int a = 0; a < b; a++)
            if (is_shared(&all[a], &all[b]) && !(all[a].may_share && all[b].may_share))
                die(EXIT_USAGE, "ranks %d and %d on %s have the same GPU, %s: %s", a, b,
                    all[a].host, all[a].device, what_to_do);
    free(all);
}
