/* link.h: messages between the processes of a run, over TCP: one connection from each to the first.
 * Apart from MPI or NCCL, whose calls may hang just when something is to be said. Knows nothing of
 * what the messages are for. */
#ifndef LASER_LINK_H
#define LASER_LINK_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LINK_TEXT = 1 << 14 }; /* bytes of a message's text, its end included; longer is cut */

typedef struct LinkInvitation { /* plain bytes, for a broadcast */
    uint64_t token;             /* whoever knows it is one of us */
    int32_t port;
    char host[64];       /* name of the machine, for messages */
    char addresses[512]; /* blanks between */
} LinkInvitation;

typedef struct LinkMessage {
    uint64_t token;
    int32_t kind, code, rank;
    uint32_t bytes; /* of the text */
    int64_t facts[4];
} LinkMessage;

/* Returns a socket that listens, on this machine alone when `local` is set. MASTER_ADDR, where it
 * is set, is the address that the others are told. Dies with EXIT_IO. */
int link_listen(LinkInvitation *out, bool local);
/* Listens at this port of all addresses; -1 where it is taken. */
int link_listen_at(int port);
/* The next who connects and says the token in its first message; -1: it was no one. */
int link_accept(int listener, uint64_t token, LinkMessage *m, char *text /* (LINK_TEXT) */);
/* Connects; -1 where none of the addresses answers. */
int link_connect(const LinkInvitation *invitation);

/* Never waits: false where the message did not get away whole. */
bool link_send(int fd, const LinkMessage *m, const char *text /* or NULL */);
/* False: the other side is gone. */
bool link_receive(int fd, LinkMessage *m, char *text /* (LINK_TEXT) */);
void link_host(char *name, int capacity); /* of this machine */

#ifdef __cplusplus
}
#endif
#endif
