#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#define ANSWER_S 5
#define RECEIVE (32 << 10)

int netlink_open(void) {
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct timeval limit = {.tv_sec = ANSWER_S};
    if (netlink >= 0)
        setsockopt(netlink, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return netlink;
}

void netlink_begin(struct netlink_request *request, int type, int flags, const void *body,
                   size_t size) {
    struct nlmsghdr *head = (struct nlmsghdr *)request->bytes;
    memset(request, 0, sizeof *request);
    head->nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
    head->nlmsg_type = (uint16_t)type;
    head->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    memcpy(NLMSG_DATA(head), body, size);
}

void netlink_add(struct netlink_request *request, int type, const void *value, size_t size) {
    struct nlmsghdr *head = (struct nlmsghdr *)request->bytes;
    size_t at = NLMSG_ALIGN(head->nlmsg_len);
    if (at + RTA_SPACE(size) > sizeof request->bytes)
        abort();
    struct rtattr *attribute = (struct rtattr *)(request->bytes + at);
    attribute->rta_type = (unsigned short)type;
    attribute->rta_len = (unsigned short)RTA_LENGTH(size);
    memcpy(RTA_DATA(attribute), value, size);
    head->nlmsg_len = (uint32_t)(at + RTA_LENGTH(size));
}

/* Receives until the answer to this request has ended; 0, or what the kernel said. */
static int answers(int netlink, uint32_t number,
                   void (*take)(const struct nlmsghdr *entry, void *context), void *context) {
    static _Alignas(struct nlmsghdr) unsigned char buffer[RECEIVE];
    for (;;) {
        ssize_t got = recv(netlink, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? errno : EIO;
        size_t left = (size_t)got;
        for (const struct nlmsghdr *at = (const struct nlmsghdr *)buffer; NLMSG_OK(at, left);
             at = NLMSG_NEXT(at, left)) {
            if (at->nlmsg_seq != number)
                continue; /* of a request that was given up */
            if (at->nlmsg_type == NLMSG_DONE)
                return 0;
            if (at->nlmsg_type == NLMSG_ERROR)
                return -((const struct nlmsgerr *)NLMSG_DATA(at))->error;
            if (take != NULL)
                take(at, context);
        }
    }
}

static int ask(int netlink, struct netlink_request *request, int flags,
               void (*take)(const struct nlmsghdr *entry, void *context), void *context) {
    static uint32_t number;
    struct nlmsghdr *head = (struct nlmsghdr *)request->bytes;
    head->nlmsg_seq = ++number;
    head->nlmsg_flags |= (uint16_t)flags;
    if (send(netlink, head, head->nlmsg_len, 0) < 0)
        return errno;
    return answers(netlink, number, take, context);
}

int netlink_change(int netlink, struct netlink_request *request) {
    return ask(netlink, request, NLM_F_ACK, NULL, NULL);
}

int netlink_list(int netlink, struct netlink_request *request,
                 void (*take)(const struct nlmsghdr *entry, void *context), void *context) {
    return ask(netlink, request, NLM_F_DUMP, take, context);
}

const struct rtattr *netlink_find(const struct nlmsghdr *entry, size_t body, int type) {
    size_t used = NLMSG_ALIGN(NLMSG_LENGTH(body));
    if (entry->nlmsg_len < used)
        return NULL;
    unsigned int left = (unsigned int)(entry->nlmsg_len - used);
    const struct rtattr *at = (const struct rtattr *)((const unsigned char *)entry + used);
    for (; RTA_OK(at, left); at = RTA_NEXT(at, left))
        if (at->rta_type == type)
            return at;
    return NULL;
}
