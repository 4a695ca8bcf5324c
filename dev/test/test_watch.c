/* test_watch.c: processes that watch over each other, without MPI: what all of them say comes out
 * once, and one that goes wrong ends all. How a whole run ends is in system_processes.py. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dev/test/test.h"
#include "laser/base.h"
#include "laser/watch.h"

enum { WORLD = 3, SAID_BYTES = 8192, PATIENCE = 100 /* seconds, then a hang is taken for one */ };

typedef void Work(Watch *w, int rank);

typedef struct Ended {
    int status[WORLD]; /* exit code, or minus the signal */
    char said[SAID_BYTES];
} Ended;

static void abort_none(int code) {
    (void)code;
}

static void run_rank(int rank, const LinkInvitation *invitation, int listener, Work *work) {
    const WatchOptions o = {rank, WORLD, 1, abort_none};
    alarm(PATIENCE);
    if (rank) close(listener);
    Watch *w = watch_open(&o, invitation, listener);
    work(w, rank);
    watch_close(w);
    exit(0);
}

/* Runs work in WORLD processes and waits for them all. */
static Ended run_all(Work *work) {
    Ended e;
    LinkInvitation invitation;
    int ends[2];
    pid_t child[WORLD];
    memset(&e, 0, sizeof e);
    fflush(NULL);
    REQUIRE(pipe(ends) == 0, "pipe");
    const int listener = link_listen(&invitation, true);
    for (int r = 0; r < WORLD; r++) {
        child[r] = fork();
        REQUIRE(child[r] >= 0, "fork");
        if (child[r]) continue;
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        run_rank(r, &invitation, listener, work);
    }
    close(listener);
    close(ends[1]);
    size_t size = 0;
    for (ssize_t n; size + 1 < sizeof e.said; size += (size_t)n)
        if ((n = read(ends[0], e.said + size, sizeof e.said - 1 - size)) <= 0) break;
    close(ends[0]);
    for (int r = 0; r < WORLD; r++) {
        int status = 0;
        REQUIRE(waitpid(child[r], &status, 0) == child[r], "waitpid");
        e.status[r] = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return e;
}

static int occurrences(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)) != NULL; p++) n++;
    return n;
}

static void expect(Test *t, const Ended *e, const int *status, const char *error) {
    for (int r = 0; r < WORLD; r++)
        CHECK(t, e->status[r] == status[r], "rank %d ended with %d, want %d; said: %s", r,
            e->status[r], status[r], e->said);
    CHECK(t, occurrences(e->said, "error: ") == (error != NULL), "said: %s", e->said);
    CHECK(t, !error || strstr(e->said, error), "'%s' is not in: %s", error, e->said);
}

/* ---- cases ---- */

static void warn_alike(Watch *w, int rank) {
    (void)w;
    for (int i = 0; i < 2; i++) warn("the disk is slow");
    if (rank == 2) warn("the fan is loud");
}

static void warnings_once(Test *t) {
    const Ended e = run_all(warn_alike);
    expect(t, &e, (const int[]){0, 0, 0}, NULL);
    CHECK(t, occurrences(e.said, "the disk is slow") == 1, "said: %s", e.said);
    CHECK(t, occurrences(e.said, "warning: rank 2 on ") >= 1, "said: %s", e.said);
    CHECK(t, occurrences(e.said, "the fan is loud") == 1, "said: %s", e.said);
}

static void sleep_for_ever(void) {
    for (;;) sleep(1);
}

static void die_in_second(Watch *w, int rank) {
    (void)w;
    if (rank == 1) die(EXIT_INPUT, "a shard is torn");
    sleep_for_ever();
}

static void die_in_all(Watch *w, int rank) {
    (void)w;
    die(EXIT_IO + (rank == 0), "the disk is full");
}

static void error_ends_all(Test *t) {
    const Ended e = run_all(die_in_second);
    expect(t, &e, (const int[]){EXIT_INPUT, EXIT_INPUT, EXIT_INPUT}, "error: rank 1 on ");
    const Ended all = run_all(die_in_all);
    const int code = all.status[0];
    CHECK(t, code == EXIT_IO || code == EXIT_IO + 1, "ended with %d", code);
    expect(t, &all, (const int[]){code, code, code}, "the disk is full");
}

static void second_killed(Watch *w, int rank) {
    (void)w;
    if (rank == 1) kill(getpid(), SIGKILL);
    sleep_for_ever();
}

static void first_killed(Watch *w, int rank) {
    (void)w;
    if (rank == 0) kill(getpid(), SIGKILL);
    sleep_for_ever();
}

static void loss_ends_all(Test *t) {
    const int lost[] = {EXIT_PROCESS, -SIGKILL, EXIT_PROCESS};
    const Ended e = run_all(second_killed);
    expect(t, &e, lost, "error: rank 1 on ");
    const Ended first = run_all(first_killed);
    CHECK_INT(t, first.status[1], EXIT_PROCESS);
    CHECK_INT(t, first.status[2], EXIT_PROCESS);
    CHECK(t, strstr(first.said, "error: rank 0 on "), "said: %s", first.said);
}

static void work_on(Watch *w, double seconds) {
    for (const double end = now_seconds() + seconds; now_seconds() < end; usleep(10000)) {
        watch_enter(w);
        watch_leave(w);
    }
}

static void third_does_not_come(Watch *w, int rank) { /* timeout: 1 s */
    if (rank != 2) watch_enter(w);
    sleep_for_ever();
}

static void progress_inside(Watch *w, int rank) {
    if (rank == 2)
        for (int i = 0; i < 250; i++, made_progress()) usleep(10000);
    work_on(w, 0.1);
}

static void hangs_end(Test *t) {
    const int all[] = {EXIT_PROCESS, EXIT_PROCESS, EXIT_PROCESS};
    const Ended e = run_all(third_does_not_come);
    expect(t, &e, all, "no progress for 1 s (--timeout): rank 2 on ");
    const Ended alive = run_all(progress_inside);
    expect(t, &alive, (const int[]){0, 0, 0}, NULL);
}

static const char *no_network(void *user) {
    (void)user;
    return "the network is gone";
}

static void second_is_ill(Watch *w, int rank) {
    if (rank == 1) watch_set_health(w, no_network, NULL);
    work_on(w, 30);
}

static void second_was_ill(Watch *w, int rank) {
    if (rank == 1) watch_set_health(w, no_network, NULL);
    work_on(w, 1.5);
    if (rank == 1) watch_set_health(w, NULL, NULL);
    work_on(w, 3);
}

static void illness_ends_all(Test *t) {
    const int all[] = {EXIT_PROCESS, EXIT_PROCESS, EXIT_PROCESS};
    const Ended e = run_all(second_is_ill);
    expect(t, &e, all, "error: rank 1 on ");
    CHECK(t, strstr(e.said, "the network is gone"), "said: %s", e.said);
    const Ended well = run_all(second_was_ill);
    expect(t, &well, (const int[]){0, 0, 0}, NULL);
}

/* Who does not know the token is no one, and nothing is lost by it. */
static void strangers(Test *t) {
    LinkInvitation invitation;
    char text[LINK_TEXT];
    LinkMessage m;
    memset(&m, 0, sizeof m);
    const int listener = link_listen(&invitation, true), out = link_connect(&invitation);
    CHECK(t, out >= 0, "no connection");
    m.token = invitation.token + 1;
    CHECK(t, link_send(out, &m, "host"), "not sent");
    CHECK_INT(t, link_accept(listener, invitation.token, &m, text), -1);
    const int other = link_connect(&invitation);
    m.token = invitation.token;
    CHECK(t, link_send(other, &m, "host"), "not sent");
    const int in = link_accept(listener, invitation.token, &m, text);
    CHECK(t, in >= 0, "one of us is taken for a stranger");
    CHECK_STR(t, text, "host");
    close(other);
    CHECK(t, !link_receive(in, &m, text), "a message from one who is gone");
    close(in);
    close(out);
    close(listener);
}

/* As between machines: by the addresses that lead out of this one. */
static void other_machines(Test *t) {
    LinkInvitation invitation;
    const int listener = link_listen(&invitation, false);
    const int out = invitation.addresses[0] ? link_connect(&invitation) : -1;
    close(listener);
    if (!invitation.addresses[0]) SKIP(t, "this machine has no address but its own");
    CHECK(t, out >= 0, "no connection to %s, port %d", invitation.addresses, invitation.port);
    close(out);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    const int named = link_listen(&invitation, false);
    unsetenv("MASTER_ADDR");
    CHECK_STR(t, invitation.addresses, "127.0.0.1");
    const int again = link_connect(&invitation);
    CHECK(t, again >= 0, "no connection to MASTER_ADDR");
    close(again);
    close(named);
}

const TestCase *test_watch(int *count) {
    static const TestCase cases[] = {
        {"watch: what several processes warn of is said once", warnings_once},
        {"watch: an error in one process, or in all, is said once and ends all", error_ends_all},
        {"watch: a process that is killed is named and ends all", loss_ends_all},
        {"watch: one that does not come ends all, one that works does not", hangs_end},
        {"watch: what they talk through, once it stays broken, ends all", illness_ends_all},
        {"watch: rank 0 is reached by its addresses, or by MASTER_ADDR alone", other_machines},
        {"watch: a stranger at the port is not listened to", strangers},
    };
    return TEST_TABLE(cases, count);
}
