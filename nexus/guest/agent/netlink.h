/* Asking the kernel about links, addresses, routes and rules, and changing them (man 7 rtnetlink). */
#ifndef NETLINK_H
#define NETLINK_H

#include <stddef.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#define NETLINK_MESSAGE_MAX 1024

/* One request: a header, a body of the type's own, attributes. */
struct netlink_request {
    _Alignas(struct nlmsghdr) unsigned char bytes[NETLINK_MESSAGE_MAX];
};

/* A socket to ask at, or -1 and errno. */
int netlink_open(void);

void netlink_begin(struct netlink_request *request, int type, int flags, const void *body,
                   size_t size);

/* Adds an attribute. Requests are ours and small: what would not fit is a mistake, and aborts. */
void netlink_add(struct netlink_request *request, int type, const void *value, size_t size);

/* Sends a request that changes something; 0, or why the kernel refused it. */
int netlink_change(int netlink, struct netlink_request *request);

/* Sends a request for a list and hands over each of its entries; 0, or an errno. */
int netlink_list(int netlink, struct netlink_request *request,
                 void (*take)(const struct nlmsghdr *entry, void *context), void *context);

/* An attribute of an entry whose body has this size, or NULL. */
const struct rtattr *netlink_find(const struct nlmsghdr *entry, size_t body, int type);

#endif
