/* nccl_mail.h: what nccl_twin.cc moves data with: mailboxes between each two processes, in memory
 * that they share. Knows no collective. */
#ifndef DEV_EMU_NCCL_MAIL_H
#define DEV_EMU_NCCL_MAIL_H

#include <stddef.h>
#include <stdint.h>

enum { MAIL_NAME = 64, MAIL_MOST_RANKS = 8, MAIL_PLACE = 32, MAIL_DIFFERS = 256 };

typedef struct MailBox MailBox;
typedef struct MailRoom MailRoom;

typedef struct Mail {
    MailRoom *room;
    int fd; /* holds a lock for as long as the process lives */
    int rank, world;
} Mail;

/* What a message is of: both sides must mean the same call. */
typedef struct MailStamp {
    int32_t kind, type, root;
    int32_t number; /* of the call, from 1 on */
    uint64_t count;
} MailStamp;

typedef struct MailItem {
    bool out; /* from here to peer; else to here */
    int peer;
    char *p; /* memory of either side */
    size_t bytes;
    MailStamp stamp;
    size_t done; /* 0 */
} MailItem;

void mail_make(char *name /* (MAIL_NAME) */); /* a new place to meet */
/* Waits until all are there; place: of this process's GPU. false: two have the same one. */
bool mail_open(Mail *m, const char *name, int rank, int world, const char *place);
void mail_close(Mail *m);
/* A rank that ended without mail_close(), or -1. From any thread. */
int mail_lost(const Mail *m);
/* Until all items are moved, however long others take. false: stamps differ; how, is written. */
bool mail_move(Mail *m, MailItem *items, int count, char *differs /* (MAIL_DIFFERS) */);

#endif
