/* nccl_mail.cc: mailboxes between each two processes, in memory that they share. A box holds one
 * piece of a message; who sends fills it when it is empty, who receives empties it. Each process
 * locks a byte of the file: a lock that is gone says that its process is. */
#include "dev/emu/nccl_mail.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "dev/emu/emu.h"

enum { TURNS = 200, PAUSE_US = 50 };
constexpr size_t PIECE = 1 << 16;

struct MailBox {
    uint64_t filled, emptied; /* pieces so far; one side writes each */
    MailStamp stamp;
    uint64_t bytes; /* of the whole message */
    char piece[PIECE];
};

struct MailRoom {
    int arrived, closed[MAIL_MOST_RANKS];
    char place[MAIL_MOST_RANKS][MAIL_PLACE];
    MailBox box[MAIL_MOST_RANKS][MAIL_MOST_RANKS]; /* from, to */
};

void mail_make(char *name) {
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
        emu_fail("random bytes: %s", strerror(errno));
    snprintf(name, MAIL_NAME, "/emu-nccl-%016llx", (unsigned long long)number);
    const int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(MailRoom)) != 0)
        emu_fail("shared memory %s: %s", name, strerror(errno));
    close(fd);
}

static struct flock lock_of(int rank) {
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = rank;
    lock.l_len = 1;
    return lock;
}

bool mail_open(Mail *m, const char *name, int rank, int world, const char *place) {
    if (world > MAIL_MOST_RANKS) emu_fail("%d ranks, at most %d", world, (int)MAIL_MOST_RANKS);
    *m = {};
    m->rank = rank, m->world = world;
    m->fd = shm_open(name, O_RDWR | O_CLOEXEC, 0600);
    void *p = m->fd < 0
                  ? MAP_FAILED
                  : mmap(NULL, sizeof(MailRoom), PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
    if (p == MAP_FAILED) emu_fail("shared memory %s: %s", name, strerror(errno));
    m->room = (MailRoom *)p;
    struct flock lock = lock_of(rank);
    if (fcntl(m->fd, F_OFD_SETLK, &lock) != 0)
        emu_fail("rank %d of %s: %s", rank, name, strerror(errno));
    snprintf(m->room->place[rank], MAIL_PLACE, "%s", place);
    __atomic_add_fetch(&m->room->arrived, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&m->room->arrived, __ATOMIC_ACQUIRE) < world) usleep(1000);
    if (rank == 0) shm_unlink(name); /* all have opened it */
    for (int r = 0; r < world; r++)
        if (r != rank && strcmp(m->room->place[r], place) == 0) return false;
    return true;
}

void mail_close(Mail *m) {
    __atomic_store_n(&m->room->closed[m->rank], 1, __ATOMIC_RELEASE);
    munmap(m->room, sizeof(MailRoom));
    close(m->fd);
}

int mail_lost(const Mail *m) {
    for (int r = 0; r < m->world; r++) {
        if (r == m->rank) continue;
        struct flock lock = lock_of(r);
        if (fcntl(m->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK &&
            !__atomic_load_n(&m->room->closed[r], __ATOMIC_ACQUIRE))
            return r;
    }
    return -1;
}

/* ---- moving ---------------------------------------------------------------------------------- */

static bool is_moved(const MailItem *i) {
    return i->done == i->bytes;
}

static size_t next_piece(const MailItem *i) {
    const size_t left = i->bytes - i->done;
    return left < PIECE ? left : PIECE;
}

/* Whether a piece went; it goes when the box is empty. */
static bool send_piece(MailBox *box, MailItem *i) {
    const size_t n = next_piece(i);
    const uint64_t filled = box->filled;
    if (__atomic_load_n(&box->emptied, __ATOMIC_ACQUIRE) != filled) return false;
    box->stamp = i->stamp;
    box->bytes = i->bytes;
    memcpy(box->piece, i->p + i->done, n);
    i->done += n;
    __atomic_store_n(&box->filled, filled + 1, __ATOMIC_RELEASE);
    return true;
}

static bool receive_piece(MailBox *box, MailItem *i) {
    const size_t n = next_piece(i);
    memcpy(i->p + i->done, box->piece, n);
    i->done += n;
    __atomic_store_n(&box->emptied, box->emptied + 1, __ATOMIC_RELEASE);
    return true;
}

static bool has_piece(const MailBox *box) {
    return __atomic_load_n(&box->filled, __ATOMIC_ACQUIRE) != box->emptied;
}

static bool same_call(const MailBox *box, const MailItem *i) {
    return memcmp(&box->stamp, &i->stamp, sizeof i->stamp) == 0 && box->bytes == i->bytes;
}

/* Messages between two ranks arrive in the order in which they are sent. */
static bool is_first(const MailItem *items, int at) {
    for (int k = 0; k < at; k++)
        if (items[k].out == items[at].out && items[k].peer == items[at].peer &&
            !is_moved(&items[k]))
            return false;
    return true;
}

bool mail_move(Mail *m, MailItem *items, int count, char *differs) {
    for (int idle = 0, left = count; left > 0; idle++) {
        left = 0;
        for (int k = 0; k < count; k++) {
            MailItem *i = &items[k];
            if (is_moved(i)) continue;
            left++;
            if (!is_first(items, k)) continue;
            MailBox *box =
                i->out ? &m->room->box[m->rank][i->peer] : &m->room->box[i->peer][m->rank];
            if (!i->out && has_piece(box) && !same_call(box, i)) {
                snprintf(differs, MAIL_DIFFERS,
                    "call %d here, %llu elements, met call %d of rank %d, %llu elements: all ranks "
                    "must make the same calls in the same order",
                    i->stamp.number, (unsigned long long)i->stamp.count, box->stamp.number, i->peer,
                    (unsigned long long)box->stamp.count);
                return false;
            }
            if (i->out ? send_piece(box, i) : has_piece(box) && receive_piece(box, i)) idle = 0;
        }
        if (idle > TURNS) usleep(PAUSE_US);
    }
    return true;
}
