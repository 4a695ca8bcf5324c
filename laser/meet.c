/* meet.c: processes meet at rank 0, over TCP, and stay connected to it. */
#include "laser/meet.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "laser/base.h"
#include "laser/link.h"

enum { PORTS = 4, ANSWER_SECONDS = 5, LOST_SECONDS = 5 };
enum { COME = 1, BEGIN, END }; /* what rank 0 answers: at once; when all are there, or not */

static const uint64_t MAGIC = 0x74656d72657361c1u;

typedef struct Hello {
    uint64_t magic;
    uint32_t run; /* another run's rank 0 may listen at one of the ports */
    int32_t rank, world;
    uint32_t padding;
} Hello;

typedef struct Answer {
    uint64_t magic;
    int64_t word;
} Answer;

/* Under torchrun its own server has MASTER_PORT. */
static int first_port(const LaunchEnv *e) {
    const char *store = getenv("TORCHELASTIC_USE_AGENT_STORE");
    const bool taken = store && strcmp(store, "True") == 0;
    return e->port + (taken && e->port + PORTS <= UINT16_MAX);
}

static Hello hello_of(const LaunchEnv *e) {
    const char *run = getenv("TORCHELASTIC_RUN_ID");
    Hello h = {MAGIC, crc32c(0, &e->port, sizeof e->port), e->rank, e->world, 0};
    if (run) h.run = crc32c(h.run, run, strlen(run));
    return h;
}

/* ---- bytes ---- */

static bool send_all(int fd, const void *data, size_t bytes) {
    for (const char *p = (const char *)data; bytes;) {
        const ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool receive_all(int fd, void *data, size_t bytes) {
    for (char *p = (char *)data; bytes;) {
        const ssize_t n = recv(fd, p, bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool answer(int fd, int64_t word) {
    const Answer a = {MAGIC, word};
    return send_all(fd, &a, sizeof a);
}

/* What rank 0 answers; 0: nothing, or it is not ours. */
static int64_t hear(int fd) {
    Answer a;
    return receive_all(fd, &a, sizeof a) && a.magic == MAGIC ? a.word : 0;
}

static void limit_waiting(int fd, int seconds) { /* 0: for ever */
    const struct timeval limit = {.tv_sec = seconds};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

/* ---- rank 0 ---- */

static int listen_first(const LaunchEnv *e, int *port) {
    for (int i = 0; i < PORTS; i++) {
        *port = first_port(e) + i;
        const int fd = *port <= UINT16_MAX ? link_listen_at(*port) : -1;
        if (fd >= 0) return fd;
    }
    die(EXIT_IO, "MASTER_PORT=%d: ports %d to %d of this machine are taken; name another", e->port,
        first_port(e), first_port(e) + PORTS - 1);
}

/* The others are told, so that one error is said and not many. */
static void end_meeting(const Meeting *m) {
    for (int r = 1; r < m->world; r++)
        if (m->fd[r] >= 0) answer(m->fd[r], END);
}

/* It gave up waiting for an answer, and comes again. */
static bool is_gone(int fd) {
    char byte;
    const ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

/* How many more are here now. */
static int welcome(Meeting *m, int listener, const Hello *mine) {
    Hello h;
    const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return 0;
    limit_waiting(fd, 1);
    if (!receive_all(fd, &h, sizeof h) || h.magic != MAGIC || h.run != mine->run) {
        close(fd);
        return 0;
    }
    const bool known = h.rank > 0 && h.rank < m->world && m->fd[h.rank] >= 0;
    const bool again = known && is_gone(m->fd[h.rank]);
    if (again) close(m->fd[h.rank]);
    if (h.world != mine->world || h.rank <= 0 || h.rank >= h.world || (known && !again)) {
        answer(fd, END);
        end_meeting(m);
        if (h.world != mine->world)
            die(EXIT_USAGE, "WORLD_SIZE is %d for rank 0 and %d for rank %d", mine->world, h.world,
                h.rank);
        die(EXIT_USAGE, "two processes have RANK=%d", h.rank);
    }
    const bool come = answer(fd, COME);
    if (!come) close(fd);
    m->fd[h.rank] = come ? fd : -1;
    return come - again;
}

static void receive_all_ranks(Meeting *m, const LaunchEnv *e, double seconds) {
    const Hello mine = hello_of(e);
    const double begin = now_seconds();
    int port, here = 1, missing = 1;
    files_expect(2 * m->world); /* these, and those who watch over each other */
    const int listener = listen_first(e, &port);
    while (here < m->world && (seconds <= 0 || now_seconds() - begin < seconds)) {
        struct pollfd p = {.fd = listener, .events = POLLIN};
        if (poll(&p, 1, 100) == 1) here += welcome(m, listener, &mine);
    }
    close(listener);
    if (here < m->world) {
        while (m->fd[missing] >= 0) missing++;
        end_meeting(m);
        die(EXIT_PROCESS,
            "rank %d and %d more have not come to rank 0, %s port %d, within %.0f s (--timeout): "
            "were they started, with this MASTER_ADDR and MASTER_PORT, and does it lead here?",
            missing, m->world - here - 1, e->address, port, seconds);
    }
    for (int r = 1; r < m->world; r++) answer(m->fd[r], BEGIN);
}

/* ---- the others ---- */

/* Connected, and it was rank 0 of this run; else -1. */
static int try_port(const LaunchEnv *e, int port) {
    LinkInvitation at = {.port = port};
    const Hello mine = hello_of(e);
    format(at.addresses, sizeof at.addresses, "%s", e->address);
    const int fd = link_connect(&at);
    if (fd < 0) return -1;
    limit_waiting(fd, ANSWER_SECONDS);
    if (send_all(fd, &mine, sizeof mine)) {
        const int64_t word = hear(fd);
        if (word == COME) return fd;
        if (word == END) exit(EXIT_USAGE); /* rank 0 says why */
    }
    close(fd);
    return -1;
}

static void go_to_first(Meeting *m, const LaunchEnv *e, double seconds) {
    const double begin = now_seconds();
    const int first = first_port(e);
    double pause = 0.05; /* longer and longer: each look may ask a name server */
    while (m->fd[0] < 0) {
        for (int i = 0; i < PORTS && m->fd[0] < 0; i++)
            if (first + i <= UINT16_MAX) m->fd[0] = try_port(e, first + i);
        if (m->fd[0] < 0 && seconds > 0 && now_seconds() - begin > seconds)
            die(EXIT_PROCESS,
                "rank %d has not found rank 0 at %s, ports %d to %d, within %.0f s (--timeout): "
                "was "
                "it started, and does MASTER_ADDR lead to its machine?",
                e->rank, e->address, first, first + PORTS - 1, seconds);
        if (m->fd[0] < 0) usleep((useconds_t)(1e6 * pause));
        if (pause < 1) pause *= 1.5;
    }
    limit_waiting(m->fd[0], 0);
    const int64_t word = hear(m->fd[0]);
    if (word == END) exit(EXIT_PROCESS);
    if (word != BEGIN)
        die(EXIT_PROCESS, "rank %d: rank 0 at %s ended while others were not there yet", e->rank,
            e->address);
}

/* ---- both ---- */

static void make_quick(int fd) {
    const int yes = 1;
    limit_waiting(fd, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
}

void meet_open(Meeting *m, const LaunchEnv *e, double seconds) {
    const int links = e->rank == 0 ? e->world : 1;
    m->rank = e->rank;
    m->world = e->world;
    m->fd = (int *)xcalloc((size_t)links, sizeof *m->fd);
    for (int i = 0; i < links; i++) m->fd[i] = -1;
    if (e->rank == 0)
        receive_all_ranks(m, e, seconds);
    else
        go_to_first(m, e, seconds);
    for (int i = 0; i < links; i++)
        if (m->fd[i] >= 0) make_quick(m->fd[i]);
}

void meet_close(Meeting *m) {
    for (int i = 0; i < (m->rank == 0 ? m->world : 1); i++)
        if (m->fd[i] >= 0) close(m->fd[i]);
    free(m->fd);
    m->fd = NULL;
}

static int link_to(const Meeting *m, int rank) {
    REQUIRE(m->rank == 0 ? rank > 0 && rank < m->world : rank == 0, "rank %d to rank %d", m->rank,
        rank);
    return m->fd[m->rank == 0 ? rank : 0];
}

static void lost(int rank) NORETURN;
static void lost(int rank) {
    sleep(LOST_SECONDS);
    die(EXIT_PROCESS, "the connection to rank %d is lost", rank);
}

void meet_send(const Meeting *m, int rank, const void *data, size_t bytes) {
    if (!send_all(link_to(m, rank), data, bytes)) lost(rank);
}

void meet_receive(const Meeting *m, int rank, void *data, size_t bytes) {
    if (!receive_all(link_to(m, rank), data, bytes)) lost(rank);
}
