#define _GNU_SOURCE
#include "health.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "answer.h"

/* 2: it knows identify. */
#define AGENT_VERSION "2"

static void mac_of(const struct ifaddrs *all, const char *name, char *text, size_t size) {
    text[0] = 0;
    for (const struct ifaddrs *at = all; at != NULL; at = at->ifa_next) {
        if (at->ifa_addr == NULL || at->ifa_addr->sa_family != AF_PACKET)
            continue;
        const struct sockaddr_ll *link = (const struct sockaddr_ll *)at->ifa_addr;
        if (strcmp(at->ifa_name, name) == 0 && link->sll_halen == 6) {
            const unsigned char *b = link->sll_addr;
            snprintf(text, size, "%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4],
                     b[5]);
        }
    }
}

static int ones(const void *mask, size_t length) {
    const unsigned char *bytes = mask;
    int count = 0;
    for (size_t at = 0; at < length; at++)
        count += __builtin_popcount(bytes[at]);
    return count;
}

/* Adds the address unless it is of no use outside the guest (loopback, link-local). */
static void add_address(struct answer *answer, const struct ifaddrs *all,
                        const struct ifaddrs *at) {
    char mac[18], text[INET6_ADDRSTRLEN];
    int length;
    if (at->ifa_addr == NULL || at->ifa_netmask == NULL || at->ifa_flags & IFF_LOOPBACK)
        return;
    if (at->ifa_addr->sa_family == AF_INET) {
        const struct sockaddr_in *address = (const struct sockaddr_in *)at->ifa_addr;
        const struct sockaddr_in *mask = (const struct sockaddr_in *)at->ifa_netmask;
        inet_ntop(AF_INET, &address->sin_addr, text, sizeof text);
        length = ones(&mask->sin_addr, sizeof mask->sin_addr);
    } else if (at->ifa_addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *address = (const struct sockaddr_in6 *)at->ifa_addr;
        const struct sockaddr_in6 *mask = (const struct sockaddr_in6 *)at->ifa_netmask;
        if (IN6_IS_ADDR_LINKLOCAL(&address->sin6_addr))
            return;
        inet_ntop(AF_INET6, &address->sin6_addr, text, sizeof text);
        length = ones(&mask->sin6_addr, sizeof mask->sin6_addr);
    } else {
        return;
    }
    mac_of(all, at->ifa_name, mac, sizeof mac);
    answer_add(answer, "addr", "%s,%s,%s/%d", at->ifa_name, mac, text, length);
}

void health_report(int connection) {
    struct answer answer = {.length = 0};
    char hostname[256] = "";
    struct sysinfo machine = {0};
    gethostname(hostname, sizeof hostname - 1);
    sysinfo(&machine);
    answer_add(&answer, "version", AGENT_VERSION);
    answer_add(&answer, "hostname", "%s", hostname);
    answer_add(&answer, "uptime_s", "%ld", machine.uptime);
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) == 0) {
        for (const struct ifaddrs *at = all; at != NULL; at = at->ifa_next)
            add_address(&answer, all, at);
        freeifaddrs(all);
    }
    answer_add(&answer, "ready", "1");
    answer_send(&answer, connection);
}
