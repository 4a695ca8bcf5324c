/* watch.c: the processes of a run watch over each other. */
#include "laser/watch.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/json.h"

enum { JOIN, BEAT, WARNING, ERROR, BYE, SAID, END }; /* messages; END: rank 0 ends all */
enum { TICKS, ENTERED, STEP, INSIDE };               /* facts of each */
enum { JOIN_SECONDS = 60, VERDICT_SECONDS = 10, LEAVE_SECONDS = 1 };
enum { MOST_NAMED = 8, WARNINGS_KEPT = 64 };

typedef struct Peer { /* what rank 0 knows of a process; the others know rank 0 alone */
    int fd;           /* -1: not here yet, or no more */
    bool left;
    char host[64];
    int64_t facts[4];
    double heard; /* w->clock when it last said a word */
} Peer;

struct Watch {
    WatchOptions options;
    Reporter reporter;
    LinkInvitation invitation;
    char host[64]; /* this process's */
    int wake;      /* readable when the thread is to look at `closing` */
    Peer *peers;   /* rank 0: (world); others: (1), rank 0 */
    int peer_count;
    pthread_t thread;
    pthread_mutex_t lock; /* of what is sent, of the verdict and of the warnings */
    int verdict;          /* exit code that ends all; 0: none */
    uint32_t warned[WARNINGS_KEPT];
    int warnings;
    double clock;     /* seconds that the thread has watched: not those in which it was stopped */
    double said;      /* when this process last said a word */
    double quiet;     /* of them since anyone made progress */
    int64_t progress; /* of all */
    _Atomic double timeout;
    _Atomic int64_t facts[4]; /* of this process */
    _Atomic bool closing;
    Health health;
};

static bool is_first(const Watch *w) {
    return w->options.rank == 0;
}

/* ---- what a process says ---- */

static LinkMessage message(const Watch *w, int kind, int code) {
    LinkMessage m;
    memset(&m, 0, sizeof m);
    m.token = w->invitation.token;
    m.kind = kind;
    m.code = code;
    m.rank = w->options.rank;
    for (int i = 0; i < 4; i++) m.facts[i] = atomic_load(&w->facts[i]);
    return m;
}

static void send_to(const Peer *p, const LinkMessage *m, const char *text) {
    if (p->fd >= 0) link_send(p->fd, m, text);
}

static void send_all(const Watch *w, int kind, int code) {
    const LinkMessage m = message(w, kind, code);
    for (int i = 0; i < w->peer_count; i++) send_to(&w->peers[i], &m, NULL);
}

static void send_first(Watch *w, int kind, int code, const char *text) {
    const LinkMessage m = message(w, kind, code);
    pthread_mutex_lock(&w->lock);
    send_to(&w->peers[0], &m, text);
    pthread_mutex_unlock(&w->lock);
}

/* Seconds between two words of a process. */
static double period(const Watch *w) {
    const double timeout = atomic_load(&w->timeout);
    return timeout > 0 && timeout < 10 ? timeout / 10 : 1;
}

static void send_beat(Watch *w) { /* not at every word that comes */
    if (w->clock - w->said < period(w) / 2) return;
    pthread_mutex_lock(&w->lock);
    send_all(w, BEAT, 0);
    pthread_mutex_unlock(&w->lock);
    w->said = w->clock;
}

static void tick(void *user) {
    Watch *w = (Watch *)user;
    atomic_fetch_add_explicit(&w->facts[TICKS], 1, memory_order_relaxed);
}

void watch_at_step(Watch *w, int64_t step) {
    if (!w) return;
    atomic_store(&w->facts[STEP], step);
    tick(w);
}

void watch_enter(Watch *w) {
    if (!w) return;
    atomic_store(&w->facts[INSIDE], 1);
    atomic_fetch_add(&w->facts[ENTERED], 1);
}

void watch_leave(Watch *w) {
    if (!w) return;
    atomic_store(&w->facts[INSIDE], 0);
    tick(w);
}

void watch_set_timeout(Watch *w, double seconds) {
    if (w) atomic_store(&w->timeout, seconds);
}

/* ---- the end of all ---- */

static void sleep_seconds(double s) { /* signals do not shorten it */
    for (const double end = now_seconds() + s; now_seconds() < end;) usleep(10000);
}

static bool others_gone(const Watch *w) {
    for (int i = 0; i < w->peer_count; i++) {
        struct pollfd p = {.fd = w->peers[i].fd, .events = POLLRDHUP};
        if (p.fd >= 0 && poll(&p, 1, 0) == 0) return false;
    }
    return true;
}

/* Whatever blocks on the way (an output nobody reads, a launcher) may not keep the process. */
static void leave(const Watch *w, int code) __attribute__((noreturn));
static void leave(const Watch *w, int code) {
    alarm(VERDICT_SECONDS);
    double s = 0;
    while (is_first(w) && (s += 0.01) < LEAVE_SECONDS && !others_gone(w)) sleep_seconds(0.01);
    fflush(NULL);
    if (is_first(w) && !others_gone(w)) w->options.abort_all(code);
    _exit(code);
}

static void wait_for_the_end(void) __attribute__((noreturn));
static void wait_for_the_end(void) {
    for (;;) pause();
}

static const char *host_of(const Watch *w, int rank) {
    return rank == w->options.rank ? w->host : w->peers[is_first(w) ? rank : 0].host;
}

static void print_of(const Watch *w, const char *kind, int rank, const char *text) {
    fflush(stdout);
    fprintf(stderr, "%s: rank %d on %s: %s\n", kind, rank, host_of(w, rank), text);
}

/* The first to come here prints, with rank -1 without one, nothing where text is NULL, and ends
 * all; others wait for it. */
static void end_all(Watch *w, int code, int rank, const char *text) __attribute__((noreturn));
static void end_all(Watch *w, int code, int rank, const char *text) {
    pthread_mutex_lock(&w->lock);
    const bool late = w->verdict != 0;
    if (!late) {
        w->verdict = code ? code : EXIT_FAILURE;
        alarm(2 * VERDICT_SECONDS);
        if (text && rank >= 0)
            print_of(w, "error", rank, text);
        else if (text)
            fprintf(stderr, "error: %s\n", text);
        send_all(w, END, w->verdict);
    }
    pthread_mutex_unlock(&w->lock);
    if (late) wait_for_the_end();
    leave(w, w->verdict);
}

void watch_fail(Watch *w, int code, const char *text) {
    if (is_first(w)) end_all(w, code, 0, text);
    const LinkMessage m = message(w, ERROR, code);
    pthread_mutex_lock(&w->lock);
    const bool sent = w->peers[0].fd >= 0 && link_send(w->peers[0].fd, &m, text);
    pthread_mutex_unlock(&w->lock);
    if (sent) sleep_seconds(VERDICT_SECONDS); /* the thread ends this process meanwhile */
    print_of(w, "error", w->options.rank, text);
    w->options.abort_all(code);
    _exit(code);
}

static void on_error(void *user, int code, const char *text) {
    watch_fail((Watch *)user, code, text);
}

/* ---- warnings: what several say is printed once ---- */

static void print_warning(Watch *w, int rank, const char *text) {
    const uint32_t crc = crc32c(0, text, strlen(text));
    pthread_mutex_lock(&w->lock);
    bool known = false;
    for (int i = 0; i < w->warnings && i < WARNINGS_KEPT; i++) known |= w->warned[i] == crc;
    if (!known) w->warned[w->warnings++ % WARNINGS_KEPT] = crc;
    pthread_mutex_unlock(&w->lock);
    if (!known) print_of(w, "warning", rank, text);
}

static void on_warning(void *user, const char *text) {
    Watch *w = (Watch *)user;
    if (is_first(w)) {
        print_warning(w, 0, text);
        return;
    }
    send_first(w, WARNING, 0, text);
}

/* ---- a run that stands still ---- */

static bool is_silent(const Watch *w, int rank) {
    return rank > 0 && w->clock - w->peers[rank].heard > 2 + 3 * period(w);
}

static int64_t fact(const Watch *w, int rank, int which) {
    return rank ? w->peers[rank].facts[which] : atomic_load(&w->facts[which]);
}

static void add_rank(const Watch *w, Text *t, int rank) {
    const Peer *p = &w->peers[rank];
    text_add(t, "rank %d on %s (", rank, host_of(w, rank));
    if (p->left)
        text_add(t, "has ended");
    else if (is_silent(w, rank))
        text_add(
            t, "last heard of %.0f s ago: stopped, or its machine is lost", w->clock - p->heard);
    else
        text_add(t, "alive, after step %" PRId64, fact(w, rank, STEP));
    text_add(t, ")");
}

/* Who says nothing, or has entered fewer collectives than others and is in none: who is in one
 * waits too, and may be some behind, for not all end everywhere at once. */
static int find_late(const Watch *w, bool *late /* (world) */) {
    int64_t most = 0;
    int found = 0;
    for (int r = 0; r < w->peer_count; r++)
        if (fact(w, r, ENTERED) > most) most = fact(w, r, ENTERED);
    for (int r = 0; r < w->peer_count; r++) {
        const bool behind = fact(w, r, ENTERED) < most && !fact(w, r, INSIDE);
        found += late[r] = w->peers[r].left || is_silent(w, r) || behind;
    }
    return found;
}

static void end_stand_still(Watch *w) {
    Text t = {NULL, 0, 0};
    bool *late = (bool *)xcalloc((size_t)w->peer_count, sizeof *late);
    const int found = find_late(w, late);
    text_add(&t, "no progress for %.0f s (--timeout): ", atomic_load(&w->timeout));
    for (int r = 0, named = 0; r < w->peer_count && named < MOST_NAMED; r++)
        if (late[r]) {
            text_add(&t, named++ ? ", " : "");
            add_rank(w, &t, r);
        }
    if (found > MOST_NAMED) text_add(&t, " and %d more", found - MOST_NAMED);
    if (found)
        text_add(&t, " did not come where the other %d wait", w->peer_count - found);
    else
        text_add(&t,
            "all %d processes wait for each other after step %" PRId64
            ": a device hangs, or the network between them",
            w->peer_count, atomic_load(&w->facts[STEP]));
    text_add(&t, ". The same command goes on from the newest checkpoint");
    free(late);
    end_all(w, EXIT_PROCESS, -1, t.data);
}

static void look_for_progress(Watch *w, double passed) {
    const double timeout = atomic_load(&w->timeout);
    int64_t sum = 0;
    for (int r = 0; r < w->peer_count; r++) sum += fact(w, r, TICKS) + fact(w, r, ENTERED);
    w->quiet = sum == w->progress ? w->quiet + passed : 0;
    w->progress = sum;
    if (timeout > 0 && w->quiet > timeout) end_stand_still(w);
}

/* ---- what they talk through ---- */

void watch_set_health(Watch *w, HealthCheck *check, void *user) {
    if (w) health_set(&w->health, check, user);
}

static void ask_health(Watch *w) {
    const char *text = health_ask(&w->health, w->clock);
    if (text && is_first(w)) end_all(w, EXIT_PROCESS, 0, text);
    if (text) send_first(w, ERROR, EXIT_PROCESS, text); /* it ends all, this process too */
}

/* ---- rank 0's thread ---- */

static void end_lost(Watch *w, int rank) __attribute__((noreturn));
static void end_lost(Watch *w, int rank) {
    Text t = {NULL, 0, 0};
    text_add(&t,
        "rank %d on %s ended without a word after step %" PRId64
        ": killed, perhaps for want of memory. The same command goes on from the newest checkpoint",
        rank, host_of(w, rank), w->peers[is_first(w) ? rank : 0].facts[STEP]);
    end_all(w, EXIT_PROCESS, -1, t.data);
}

static void hear(Watch *w, Peer *p, const LinkMessage *m, const char *text) {
    p->heard = w->clock;
    memcpy(p->facts, m->facts, sizeof p->facts);
    if (m->kind == ERROR) end_all(w, m->code, m->rank, text);
    if (m->kind == WARNING) print_warning(w, m->rank, text);
    if (m->kind == BYE) p->left = true;
    if (m->kind == SAID) end_all(w, m->code, m->rank, NULL); /* rank 0 was stopped meanwhile */
}

static void listen_to(Watch *w, int rank) {
    Peer *p = &w->peers[rank];
    LinkMessage m;
    char text[LINK_TEXT];
    if (link_receive(p->fd, &m, text)) {
        hear(w, p, &m, text);
    } else if (p->left) {
        close(p->fd);
        p->fd = -1;
    } else {
        end_lost(w, rank);
    }
}

static bool all_left(const Watch *w) {
    for (int r = 1; r < w->peer_count; r++)
        if (!w->peers[r].left) return false;
    return true;
}

/* Waits a period, or less when something comes. fds: (peers + 1). Returns the seconds. */
static double wait_for_words(Watch *w, struct pollfd *fds) {
    for (int i = 0; i < w->peer_count; i++)
        fds[i] = (struct pollfd){.fd = w->peers[i].fd, .events = POLLIN};
    fds[w->peer_count] =
        (struct pollfd){.fd = atomic_load(&w->closing) ? -1 : w->wake, .events = POLLIN};
    const double begin = now_seconds();
    if (poll(fds, (nfds_t)w->peer_count + 1, (int)(1e3 * period(w))) < 0)
        for (int i = 0; i <= w->peer_count; i++) fds[i].revents = 0;
    /* a process that was stopped, or whose machine slept, has not watched */
    const double passed = now_seconds() - begin, most = 3 * period(w);
    w->clock += passed < most ? passed : most;
    return passed < most ? passed : most;
}

static void *watch_others(void *user) {
    Watch *w = (Watch *)user;
    struct pollfd *fds = (struct pollfd *)xcalloc((size_t)w->peer_count + 1, sizeof *fds);
    while (!atomic_load(&w->closing) || !all_left(w)) {
        const double passed = wait_for_words(w, fds);
        for (int r = 1; r < w->peer_count; r++)
            if (fds[r].revents) listen_to(w, r);
        send_beat(w);
        ask_health(w);
        look_for_progress(w, passed);
    }
    free(fds);
    return NULL;
}

/* ---- the others' threads ---- */

/* Each waits for the one before it to say so, and by that to end all: a launcher ends the others
 * when one has failed. */
static void outlive_first(Watch *w, const char *how) __attribute__((noreturn));
static void outlive_first(Watch *w, const char *how) {
    const int turn = 2 * (w->options.rank - 1); /* who goes first ends the others meanwhile */
    sleep_seconds(0.1 + (turn < VERDICT_SECONDS ? turn : VERDICT_SECONDS));
    fprintf(stderr,
        "error: rank 0 on %s %s; it was after step %" PRId64
        ". The same command goes on from the newest checkpoint\n",
        w->peers[0].host, how, w->peers[0].facts[STEP]);
    const LinkMessage m = message(w, SAID, EXIT_PROCESS);
    send_to(&w->peers[0], &m, NULL);
    alarm(VERDICT_SECONDS);
    w->options.abort_all(EXIT_PROCESS);
    _exit(EXIT_PROCESS);
}

static void listen_to_first(Watch *w) {
    LinkMessage m;
    char text[LINK_TEXT];
    Peer *p = &w->peers[0];
    const bool there = link_receive(p->fd, &m, text);
    if (!there && atomic_load(&w->closing)) return;
    if (!there) outlive_first(w, "ended without a word: killed, perhaps for want of memory");
    p->heard = w->clock;
    memcpy(p->facts, m.facts, sizeof p->facts);
    if (m.kind == END) leave(w, m.code);
}

static void *watch_first(void *user) {
    Watch *w = (Watch *)user;
    struct pollfd fds[2];
    while (!atomic_load(&w->closing)) {
        wait_for_words(w, fds);
        if (fds[0].revents) listen_to_first(w);
        send_beat(w);
        ask_health(w);
        /* rank 0 judges the others: longer, so that it is heard when it does */
        const double timeout = atomic_load(&w->timeout);
        if (timeout > 0 && w->clock - w->peers[0].heard > 1.25 * timeout + 1)
            outlive_first(w,
                "has not been heard of for longer than --timeout: stopped, or its machine is lost");
    }
    return NULL;
}

/* ---- opening and closing ---- */

/* Whether it was one of us, who was not here yet. */
static bool welcome(Watch *w, int listener) {
    LinkMessage m;
    char text[LINK_TEXT];
    const int fd = link_accept(listener, w->invitation.token, &m, text);
    if (fd < 0 || m.rank <= 0 || m.rank >= w->peer_count || w->peers[m.rank].fd >= 0) return false;
    format(w->peers[m.rank].host, sizeof w->peers[m.rank].host, "%s", text);
    w->peers[m.rank].fd = fd;
    return true;
}

/* Before anything else, so that no error meets one who cannot hear of it. */
static void welcome_all(Watch *w, int listener) {
    const double end = now_seconds() + JOIN_SECONDS;
    int here = 1, missing = 1;
    for (double rest = JOIN_SECONDS; here < w->peer_count && rest > 0; rest = end - now_seconds()) {
        struct pollfd p = {.fd = listener, .events = POLLIN};
        if (poll(&p, 1, (int)(1e3 * rest) + 1) == 1) here += welcome(w, listener);
    }
    close(listener);
    if (here == w->peer_count) return;
    while (w->peers[missing].fd >= 0) missing++;
    die(EXIT_PROCESS,
        "rank %d and %d more have not connected to rank 0 on %s (%s, port %d) within %d s. Where "
        "only one of its addresses leads here, name it in MASTER_ADDR",
        missing, w->peer_count - here - 1, w->host, w->invitation.addresses,
        (int)w->invitation.port, (int)JOIN_SECONDS);
}

static void join_first(Watch *w) {
    Peer *first = &w->peers[0];
    format(first->host, sizeof first->host, "%s", w->invitation.host);
    first->fd = link_connect(&w->invitation);
    const LinkMessage m = message(w, JOIN, 0);
    if (first->fd < 0 || !link_send(first->fd, &m, w->host))
        die(EXIT_IO,
            "rank %d on %s cannot reach rank 0 on %s at %s, port %d. Where only one of its "
            "addresses leads there, name it in MASTER_ADDR",
            w->options.rank, w->host, first->host, w->invitation.addresses,
            (int)w->invitation.port);
}

Watch *watch_open(const WatchOptions *o, const LinkInvitation *invitation, int listener) {
    Watch *w = (Watch *)xcalloc(1, sizeof *w);
    w->options = *o;
    w->invitation = *invitation;
    w->wake = eventfd(0, EFD_CLOEXEC);
    w->peer_count = is_first(w) ? o->world : 1;
    w->peers = (Peer *)xcalloc((size_t)w->peer_count, sizeof *w->peers);
    for (int i = 0; i < w->peer_count; i++) w->peers[i].fd = -1;
    link_host(w->host, sizeof w->host);
    atomic_store(&w->timeout, o->timeout);
    pthread_mutex_init(&w->lock, NULL);
    health_open(&w->health);
    if (is_first(w))
        welcome_all(w, listener);
    else
        join_first(w);
    w->reporter = (Reporter){w, on_error, on_warning, tick};
    report_to(&w->reporter);
    if (w->wake < 0 ||
        pthread_create(&w->thread, NULL, is_first(w) ? watch_others : watch_first, w))
        die(EXIT_IO, "a thread to watch over the other processes cannot be started");
    return w;
}

void watch_close(Watch *w) {
    if (!w) return;
    const uint64_t one = 1;
    watch_enter(w);
    atomic_store(&w->closing, true); /* first: rank 0 may be gone as soon as it has the message */
    if (!is_first(w)) send_first(w, BYE, 0, NULL);
    if (write(w->wake, &one, sizeof one) < 0) warn("the watching thread cannot be woken");
    pthread_join(w->thread, NULL);
    report_to(NULL);
} /* the sockets live as long as the process: rank 0 sees in them when it is gone */
