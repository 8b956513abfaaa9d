/* Who a network interface is: its MAC, its IPv4 address and the way out through it. */
#ifndef LINK_H
#define LINK_H

#include <stdbool.h>

#include <netinet/in.h>

#define MAC_SIZE 6

struct link_identity {
    unsigned char old_mac[MAC_SIZE], mac[MAC_SIZE];
    struct in_addr address;
    unsigned char length;   /* of the network's prefix, in bits */
    struct in_addr gateway; /* 0.0.0.0: there is none */
    int index;              /* the interface, once it is found */
};

/* Reads OLDMAC,NEWMAC,IP/LEN,GATEWAY, in which the gateway may be empty; false when it is not that.
 * The text is changed. */
bool link_parse(char *text, struct link_identity *identity);

/* Finds the interface that has the old MAC, or has the new one already; 0, or an errno: ENODEV. */
int link_find(int netlink, struct link_identity *identity);

/* Gives the interface its MAC, this one address, and routes through it. One that has them already
 * stays up. `first` takes the default route for itself, others only where there is none. 0, or an
 * errno, and then `what` says at which step. */
int link_identify(int netlink, const struct link_identity *identity, bool first,
                  const char **what);

/* Tells the neighbours the address (RFC 5227: an announcement), once the link can send. Nobody waits
 * for it: they would find out by themselves, later. */
void link_announce(int netlink, const struct link_identity *identity);

#endif
