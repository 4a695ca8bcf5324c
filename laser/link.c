/* link.c: messages between the processes of a run, over TCP. */
#include "laser/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "laser/base.h"

enum { ANSWER_SECONDS = 5, HALF_MESSAGE_SECONDS = 2 };

void link_host(char *name, int capacity) {
    memset(name, 0, (size_t)capacity);
    if (gethostname(name, (size_t)capacity - 1) != 0) format(name, (size_t)capacity, "?");
}

/* ---- the first process ---- */

/* Of every interface that is up and leads out of this machine. */
static void list_addresses(char *out, size_t capacity) {
    struct ifaddrs *all = NULL;
    size_t used = 0;
    if (getifaddrs(&all) != 0) die(EXIT_IO, "the network's addresses: %s", strerror(errno));
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        char text[NI_MAXHOST];
        const int family = i->ifa_addr ? i->ifa_addr->sa_family : AF_UNSPEC;
        if ((family != AF_INET && family != AF_INET6) || !(i->ifa_flags & IFF_UP) ||
            (i->ifa_flags & IFF_LOOPBACK))
            continue;
        const socklen_t size =
            family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
        if (getnameinfo(i->ifa_addr, size, text, sizeof text, NULL, 0, NI_NUMERICHOST) != 0)
            continue;
        if (strchr(text, '%') || used + strlen(text) + 2 > capacity) continue; /* of one link */
        format(out + used, capacity - used, "%s%s", used ? " " : "", text);
        used = strlen(out);
    }
    freeifaddrs(all);
}

static uint16_t *port_of(struct sockaddr_storage *at) {
    return at->ss_family == AF_INET ? &((struct sockaddr_in *)at)->sin_port
                                    : &((struct sockaddr_in6 *)at)->sin6_port;
}

/* -1 where the family is not there, or the port is taken. Both families through IPv6's. */
static int bind_family(struct sockaddr_storage *at, socklen_t size, int port) {
    const int no = 0, yes = 1, fd = socket(at->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *port_of(at) = htons((uint16_t)port);
    if (fd >= 0 && (port == 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0) &&
        (at->ss_family == AF_INET ||
            setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no) == 0) &&
        bind(fd, (struct sockaddr *)at, size) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    const int why = errno;
    if (fd >= 0) close(fd);
    errno = why;
    return -1;
}

/* port 0: any that is free. at: receives where it listens. -1: see errno */
static int bind_socket(bool local, int port, struct sockaddr_storage *at) {
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
    struct sockaddr_in four = {.sin_family = AF_INET};
    four.sin_addr.s_addr = htonl(local ? INADDR_LOOPBACK : INADDR_ANY);
    socklen_t size = sizeof *at;
    int fd = -1;
    if (!local) {
        memcpy(at, &six, sizeof six);
        fd = bind_family(at, sizeof six, port);
    }
    if (fd < 0 && (local || errno != EADDRINUSE)) {
        memcpy(at, &four, sizeof four);
        fd = bind_family(at, sizeof four, port);
    }
    if (fd >= 0 && getsockname(fd, (struct sockaddr *)at, &size) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int link_listen_at(int port) {
    struct sockaddr_storage at;
    return bind_socket(false, port, &at);
}

int link_listen(LinkInvitation *out, bool local) {
    struct sockaddr_storage at;
    const char *master = getenv("MASTER_ADDR");
    memset(out, 0, sizeof *out);
    if (getrandom(&out->token, sizeof out->token, 0) != (ssize_t)sizeof out->token)
        die(EXIT_IO, "random bytes: %s", strerror(errno));
    link_host(out->host, sizeof out->host);
    if (local)
        format(out->addresses, sizeof out->addresses, "127.0.0.1");
    else if (master && master[0])
        format(out->addresses, sizeof out->addresses, "%s", master);
    else
        list_addresses(out->addresses, sizeof out->addresses);
    const int fd = bind_socket(local, 0, &at);
    if (fd < 0) die(EXIT_IO, "a TCP port for the other processes: %s", strerror(errno));
    out->port = ntohs(*port_of(&at));
    return fd;
}

/* A message whose end does not come is no message. */
static void limit_waiting(int fd) {
    const struct timeval limit = {.tv_sec = HALF_MESSAGE_SECONDS};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

int link_accept(int listener, uint64_t token, LinkMessage *m, char *text) {
    const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return -1;
    limit_waiting(fd);
    if (link_receive(fd, m, text) && m->token == token) return fd;
    close(fd);
    return -1;
}

/* ---- the others ---- */

static int connect_address(const struct addrinfo *a) {
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    int fault = 0;
    socklen_t size = sizeof fault;
    const bool begun = connect(fd, a->ai_addr, a->ai_addrlen) == 0 || errno == EINPROGRESS;
    if (begun && poll(&wait, 1, 1000 * ANSWER_SECONDS) == 1 &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &fault, &size) == 0 && fault == 0) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
        limit_waiting(fd);
        return fd;
    }
    close(fd);
    return -1;
}

static int connect_host(const char *host, int port) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *all = NULL;
    char service[16];
    int fd = -1;
    format(service, sizeof service, "%d", port);
    if (getaddrinfo(host, service, &hints, &all) != 0) return -1;
    for (const struct addrinfo *a = all; a && fd < 0; a = a->ai_next) fd = connect_address(a);
    freeaddrinfo(all);
    return fd;
}

int link_connect(const LinkInvitation *invitation) {
    char all[sizeof invitation->addresses];
    char *rest = NULL;
    int fd = -1;
    memcpy(all, invitation->addresses, sizeof all);
    for (char *one = strtok_r(all, " ", &rest); one && fd < 0; one = strtok_r(NULL, " ", &rest))
        fd = connect_host(one, invitation->port);
    return fd;
}

/* ---- messages ---- */

bool link_send(int fd, const LinkMessage *m, const char *text) {
    struct {
        LinkMessage head;
        char text[LINK_TEXT];
    } whole;
    size_t n = text ? strlen(text) + 1 : 0;
    if (n > LINK_TEXT) n = LINK_TEXT;
    whole.head = *m;
    whole.head.bytes = (uint32_t)n;
    if (n) memcpy(whole.text, text, n - 1);
    if (n) whole.text[n - 1] = '\0';
    const size_t size = sizeof whole.head + n;
    return send(fd, &whole, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size;
}

static bool receive_all(int fd, void *to, size_t size) {
    char *p = (char *)to;
    for (size_t done = 0; done < size;) {
        const ssize_t n = recv(fd, p + done, size - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

bool link_receive(int fd, LinkMessage *m, char *text) {
    text[0] = '\0';
    if (!receive_all(fd, m, sizeof *m) || m->bytes > LINK_TEXT) return false;
    if (m->bytes == 0) return true;
    if (!receive_all(fd, text, m->bytes)) return false;
    text[m->bytes - 1] = '\0';
    return true;
}
