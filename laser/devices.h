/* devices.h: which process has which GPU. */
#ifndef LASER_DEVICES_H
#define LASER_DEVICES_H

#include <stdbool.h>

#include "laser/backend.h"
#include "laser/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Dies with EXIT_USAGE, naming them and the GPU, where two processes of a machine have the same
 * one and one of them may not share it; `what_to_do` ends the message. All call it. */
void devices_require_own(
    const Comm *c, const Backend *be, bool may_share, const char *what_to_do);

#ifdef __cplusplus
}
#endif
#endif
