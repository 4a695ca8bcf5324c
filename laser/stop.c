/* stop.c: polite ends. */
#include "laser/stop.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t stop_signal = 0;

/* SIGUSR1 is sent ahead of a SIGTERM that comes anyway: those two are no one's impatience. */
static void on_signal(int number) {
    if (stop_signal && stop_signal != SIGUSR1 && number != SIGUSR1) _exit(128 + number);
    if (!stop_signal || number != SIGUSR1) stop_signal = number;
}

void stop_catch_signals(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART; /* a save that is under way is not disturbed */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int stop_requested(void) {
    return (int)stop_signal;
}
