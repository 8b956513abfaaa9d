#define _GNU_SOURCE
#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/fib_rules.h>

#include "netlink.h"

#define ADDRESSES_MAX 64
#define RULES_MAX 16
#define CARRIER_TRIES 200
#define CARRIER_POLL_MS 5

/* -- what is wanted --------------------------------------------------------------------------- */

static bool parse_mac(const char *text, unsigned char *mac) {
    int used = 0;
    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2],
                  &mac[3], &mac[4], &mac[5], &used) == MAC_SIZE &&
           used == 17 && text[used] == 0;
}

static bool parse_length(const char *text, unsigned char *length) {
    char *end;
    unsigned long parsed = strtoul(text, &end, 10);
    *length = (unsigned char)parsed;
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && parsed >= 1 && parsed <= 32;
}

bool link_parse(char *text, struct link_identity *identity) {
    char *old_mac = strsep(&text, ","), *mac = strsep(&text, ",");
    char *address = strsep(&text, "/"), *length = strsep(&text, ",");
    memset(identity, 0, sizeof *identity);
    return text != NULL && parse_mac(old_mac, identity->old_mac) && parse_mac(mac, identity->mac) &&
           (identity->mac[0] & 1) == 0 &&
           inet_pton(AF_INET, address, &identity->address) == 1 &&
           parse_length(length, &identity->length) &&
           (*text == 0 || inet_pton(AF_INET, text, &identity->gateway) == 1);
}

/* -- what is there ---------------------------------------------------------------------------- */

struct seen_link {
    int index; /* 0: none */
    unsigned flags;
    unsigned char mac[MAC_SIZE];
};

struct search {
    const struct link_identity *identity;
    struct seen_link by_old, by_new;
};

/* Interfaces that are made of others (bridges, VLANs) share a MAC with one of these: the one that was
 * there first is the machine's own. */
static void keep(struct seen_link *found, const struct seen_link *seen, const unsigned char *mac) {
    if (memcmp(seen->mac, mac, MAC_SIZE) == 0 && (found->index == 0 || seen->index < found->index))
        *found = *seen;
}

static void see_link(const struct nlmsghdr *entry, void *context) {
    struct search *search = context;
    const struct ifinfomsg *body = NLMSG_DATA(entry);
    const struct rtattr *mac = netlink_find(entry, sizeof *body, IFLA_ADDRESS);
    if (mac == NULL || RTA_PAYLOAD(mac) != MAC_SIZE || body->ifi_flags & IFF_LOOPBACK)
        return;
    struct seen_link seen = {.index = body->ifi_index, .flags = body->ifi_flags};
    memcpy(seen.mac, RTA_DATA(mac), MAC_SIZE);
    if (search->identity->index == 0) {
        keep(&search->by_old, &seen, search->identity->old_mac);
        keep(&search->by_new, &seen, search->identity->mac);
    } else if (seen.index == search->identity->index) {
        search->by_old = seen;
    }
}

/* The interface by its index, or by its MAC as long as that is not known. */
static int look(int netlink, const struct link_identity *identity, struct seen_link *found) {
    struct search search = {.identity = identity};
    struct netlink_request request;
    const struct ifinfomsg all = {.ifi_family = AF_UNSPEC};
    netlink_begin(&request, RTM_GETLINK, 0, &all, sizeof all);
    int error = netlink_list(netlink, &request, see_link, &search);
    if (error != 0)
        return error;
    *found = search.by_old.index != 0 ? search.by_old : search.by_new;
    return found->index != 0 ? 0 : ENODEV;
}

int link_find(int netlink, struct link_identity *identity) {
    struct seen_link found;
    int error = look(netlink, identity, &found);
    identity->index = error == 0 ? found.index : 0;
    return error;
}

struct address {
    struct in_addr address;
    unsigned char length;
};

struct addresses {
    int index;
    size_t count;
    struct address list[ADDRESSES_MAX];
};

static void see_address(const struct nlmsghdr *entry, void *context) {
    struct addresses *seen = context;
    const struct ifaddrmsg *body = NLMSG_DATA(entry);
    const struct rtattr *local = netlink_find(entry, sizeof *body, IFA_LOCAL);
    if ((int)body->ifa_index != seen->index || local == NULL || seen->count == ADDRESSES_MAX)
        return;
    struct address *found = &seen->list[seen->count++];
    memcpy(&found->address, RTA_DATA(local), sizeof found->address);
    found->length = body->ifa_prefixlen;
}

static int list_addresses(int netlink, int index, struct addresses *seen) {
    struct netlink_request request;
    const struct ifaddrmsg all = {.ifa_family = AF_INET};
    *seen = (struct addresses){.index = index};
    netlink_begin(&request, RTM_GETADDR, 0, &all, sizeof all);
    return netlink_list(netlink, &request, see_address, seen);
}

static bool has(const struct addresses *seen, struct in_addr address) {
    for (size_t at = 0; at < seen->count; at++)
        if (seen->list[at].address.s_addr == address.s_addr)
            return true;
    return false;
}

/* -- rules ------------------------------------------------------------------------------------ */

/* What comes from an address may leave by a table of its own (`ip rule add from ADDRESS`, as the
 * busybox guest has it for all NICs but the first). These rules go over to the new address. */
struct rules {
    const struct addresses *old;
    struct in_addr wanted;
    size_t count;
    struct netlink_request list[RULES_MAX];
    uint32_t tables[RULES_MAX];
};

static void see_rule(const struct nlmsghdr *entry, void *context) {
    struct rules *rules = context;
    const struct fib_rule_hdr *body = NLMSG_DATA(entry);
    const struct rtattr *source = netlink_find(entry, sizeof *body, FRA_SRC);
    const struct rtattr *table = netlink_find(entry, sizeof *body, FRA_TABLE);
    struct in_addr from;
    if (body->src_len != 32 || source == NULL || table == NULL || rules->count == RULES_MAX ||
        entry->nlmsg_len > NETLINK_MESSAGE_MAX)
        return;
    memcpy(&from, RTA_DATA(source), sizeof from);
    if (from.s_addr != rules->wanted.s_addr && !has(rules->old, from))
        return;
    memcpy(&rules->tables[rules->count], RTA_DATA(table), sizeof *rules->tables);
    memcpy(rules->list[rules->count].bytes, entry, entry->nlmsg_len);
    rules->count++;
}

static int list_rules(int netlink, struct rules *rules) {
    struct netlink_request request;
    const struct fib_rule_hdr all = {.family = AF_INET};
    netlink_begin(&request, RTM_GETRULE, 0, &all, sizeof all);
    return netlink_list(netlink, &request, see_rule, rules);
}

static int change_rule(int netlink, struct netlink_request *rule, int type, int flags) {
    struct nlmsghdr *head = (struct nlmsghdr *)rule->bytes;
    head->nlmsg_type = (uint16_t)type;
    head->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    return netlink_change(netlink, rule);
}

static int move_rules(int netlink, struct rules *rules) {
    for (size_t at = 0; at < rules->count; at++) {
        struct netlink_request *rule = &rules->list[at];
        const struct nlmsghdr *entry = (const struct nlmsghdr *)rule->bytes;
        void *from = RTA_DATA(netlink_find(entry, sizeof(struct fib_rule_hdr), FRA_SRC));
        if (memcmp(from, &rules->wanted, sizeof rules->wanted) == 0)
            continue;
        int error = change_rule(netlink, rule, RTM_DELRULE, 0);
        if (error != 0 && error != ENOENT)
            return error;
        memcpy(from, &rules->wanted, sizeof rules->wanted);
        error = change_rule(netlink, rule, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL);
        if (error != 0 && error != EEXIST)
            return error;
    }
    return 0;
}

/* -- changes ---------------------------------------------------------------------------------- */

static int set_link(int netlink, int index, bool up, const unsigned char *mac) {
    struct netlink_request request;
    const struct ifinfomsg body = {
        .ifi_index = index, .ifi_flags = up ? IFF_UP : 0, .ifi_change = IFF_UP};
    netlink_begin(&request, RTM_NEWLINK, 0, &body, sizeof body);
    if (mac != NULL)
        netlink_add(&request, IFLA_ADDRESS, mac, MAC_SIZE);
    return netlink_change(netlink, &request);
}

static int change_address(int netlink, int index, int type, int flags, struct in_addr address,
                          unsigned char length) {
    struct netlink_request request;
    const struct ifaddrmsg body = {
        .ifa_family = AF_INET, .ifa_prefixlen = length, .ifa_index = (unsigned)index};
    netlink_begin(&request, type, flags, &body, sizeof body);
    netlink_add(&request, IFA_LOCAL, &address, sizeof address);
    netlink_add(&request, IFA_ADDRESS, &address, sizeof address);
    return netlink_change(netlink, &request);
}

static int flush(int netlink, const struct addresses *old) {
    for (size_t at = 0; at < old->count; at++) {
        int error = change_address(netlink, old->index, RTM_DELADDR, 0, old->list[at].address,
                                   old->list[at].length);
        if (error != 0 && error != EADDRNOTAVAIL) /* it went along with another one */
            return error;
    }
    return 0;
}

static int add_default(int netlink, const struct link_identity *identity, uint32_t table,
                       int flags) {
    struct netlink_request request;
    const bool direct = identity->gateway.s_addr == 0;
    const struct rtmsg body = {.rtm_family = AF_INET,
                               .rtm_protocol = RTPROT_BOOT,
                               .rtm_scope = direct ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE,
                               .rtm_type = RTN_UNICAST};
    netlink_begin(&request, RTM_NEWROUTE, NLM_F_CREATE | flags, &body, sizeof body);
    netlink_add(&request, RTA_TABLE, &table, sizeof table);
    netlink_add(&request, RTA_OIF, &identity->index, sizeof identity->index);
    if (!direct)
        netlink_add(&request, RTA_GATEWAY, &identity->gateway, sizeof identity->gateway);
    return netlink_change(netlink, &request);
}

static int add_routes(int netlink, const struct link_identity *identity, bool first,
                      const struct rules *rules) {
    for (size_t at = 0; at < rules->count; at++) {
        uint32_t table = rules->tables[at];
        if (table == RT_TABLE_MAIN || table == RT_TABLE_LOCAL || table == RT_TABLE_DEFAULT)
            continue;
        int error = add_default(netlink, identity, table, NLM_F_REPLACE);
        if (error != 0)
            return error;
    }
    if (identity->gateway.s_addr == 0)
        return 0;
    int error = add_default(netlink, identity, RT_TABLE_MAIN, first ? NLM_F_REPLACE : NLM_F_EXCL);
    return error == EEXIST ? 0 : error;
}

/* Down and up again: no route, neighbour or link-local address of the old identity stays. */
static int make_anew(int netlink, const struct link_identity *identity,
                     const struct addresses *old, const char **what) {
    const int index = identity->index;
    *what = "taking the link down";
    int error = set_link(netlink, index, false, NULL);
    if (error != 0)
        return error;
    *what = "the old addresses";
    if ((error = flush(netlink, old)) != 0)
        return error;
    *what = "the new MAC";
    if ((error = set_link(netlink, index, false, identity->mac)) != 0)
        return error;
    *what = "the new address";
    error = change_address(netlink, index, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE,
                           identity->address, identity->length);
    if (error != 0)
        return error;
    *what = "taking the link up";
    return set_link(netlink, index, true, NULL);
}

int link_identify(int netlink, const struct link_identity *identity, bool first,
                  const char **what) {
    static struct addresses old;
    static struct rules rules;
    struct seen_link seen;
    *what = "reading what is there";
    rules = (struct rules){.old = &old, .wanted = identity->address};
    int error = look(netlink, identity, &seen);
    if (error == 0)
        error = list_addresses(netlink, identity->index, &old);
    if (error == 0)
        error = list_rules(netlink, &rules);
    if (error != 0)
        return error;
    *what = "the rules of the old address";
    if ((error = move_rules(netlink, &rules)) != 0)
        return error;
    bool same = seen.flags & IFF_UP && memcmp(seen.mac, identity->mac, MAC_SIZE) == 0 &&
                old.count == 1 && old.list[0].address.s_addr == identity->address.s_addr &&
                old.list[0].length == identity->length;
    if (!same && (error = make_anew(netlink, identity, &old, what)) != 0)
        return error;
    *what = "the routes";
    return add_routes(netlink, identity, first, &rules);
}

/* -- announcing ------------------------------------------------------------------------------- */

/* A link that was just taken up can send a moment later. */
static void wait_for_carrier(int netlink, const struct link_identity *identity) {
    struct seen_link seen;
    for (int tries = 0; tries < CARRIER_TRIES; tries++) {
        if (look(netlink, identity, &seen) != 0 || seen.flags & IFF_RUNNING)
            return;
        poll(NULL, 0, CARRIER_POLL_MS);
    }
}

void link_announce(int netlink, const struct link_identity *identity) {
    struct ether_arp arp = {.ea_hdr = {.ar_hrd = htons(ARPHRD_ETHER),
                                       .ar_pro = htons(ETH_P_IP),
                                       .ar_hln = MAC_SIZE,
                                       .ar_pln = sizeof(struct in_addr),
                                       .ar_op = htons(ARPOP_REQUEST)}};
    struct sockaddr_ll everyone = {.sll_family = AF_PACKET,
                                   .sll_protocol = htons(ETH_P_ARP),
                                   .sll_ifindex = identity->index,
                                   .sll_halen = MAC_SIZE};
    int packets = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (packets < 0)
        return;
    memset(everyone.sll_addr, 0xff, MAC_SIZE);
    memcpy(arp.arp_sha, identity->mac, MAC_SIZE);
    memcpy(arp.arp_spa, &identity->address, sizeof arp.arp_spa);
    memcpy(arp.arp_tpa, &identity->address, sizeof arp.arp_tpa);
    wait_for_carrier(netlink, identity);
    sendto(packets, &arp, sizeof arp, 0, (const struct sockaddr *)&everyone, sizeof everyone);
    close(packets);
}
