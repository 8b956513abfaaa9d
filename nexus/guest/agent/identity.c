#define _GNU_SOURCE
#include "identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "answer.h"
#include "clock.h"
#include "entropy.h"
#include "link.h"
#include "names.h"
#include "netlink.h"

#define NICS_MAX 32

struct identity {
    unsigned char entropy[ENTROPY_MAX];
    size_t entropy_length;
    bool has_time;
    long long time_ms;
    struct link_identity nics[NICS_MAX];
    size_t nic_count;
};

/* -- the request, checked before anything is changed ------------------------------------------ */

static bool parse_hex(const char *text, unsigned char *bytes, size_t *length) {
    size_t digits = strlen(text);
    *length = digits / 2;
    if (digits % 2 != 0 || *length < ENTROPY_MIN || *length > ENTROPY_MAX ||
        strspn(text, "0123456789abcdefABCDEF") != digits)
        return false;
    for (size_t at = 0; at < *length; at++)
        sscanf(text + 2 * at, "%2hhx", &bytes[at]);
    return true;
}

static bool parse_time(const char *text, long long *time_ms) {
    size_t digits = strlen(text);
    if (digits == 0 || digits > 15 || strspn(text, "0123456789") != digits)
        return false;
    *time_ms = strtoll(text, NULL, 10);
    return true;
}

static bool is_address(const char *text) {
    unsigned char bytes[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, text, bytes) == 1 || inet_pton(AF_INET6, text, bytes) == 1;
}

static const char *check(const struct request *request, struct identity *identity) {
    memset(identity, 0, sizeof *identity);
    if (request->hostname != NULL && !names_is_host(request->hostname))
        return "hostname: up to 64 letters, digits, dots and dashes";
    if (request->machine_id != NULL && !names_is_machine_id(request->machine_id))
        return "machine_id: 32 digits of 0-9 and a-f";
    if (request->entropy != NULL &&
        !parse_hex(request->entropy, identity->entropy, &identity->entropy_length))
        return "entropy: 32 to 256 bytes in hexadecimal digits";
    identity->has_time = request->time_ms != NULL;
    if (identity->has_time && !parse_time(request->time_ms, &identity->time_ms))
        return "time_ms: milliseconds since 1970";
    for (char **server = request->dns; *server != NULL; server++)
        if (!is_address(*server))
            return "dns: an IP address";
    for (char **nic = request->nics; *nic != NULL; nic++) {
        if (identity->nic_count == NICS_MAX)
            return "nic: 32 at most";
        if (!link_parse(*nic, &identity->nics[identity->nic_count++]))
            return "nic: OLDMAC,NEWMAC,IP/LEN,GATEWAY";
    }
    return NULL;
}

static void describe(const unsigned char *mac, char *text, size_t size) {
    snprintf(text, size, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
             mac[5]);
}

/* All interfaces are found before the first is changed: what was one's old MAC may become another's
 * new one. */
static bool find_all(int netlink, struct identity *identity, int connection) {
    for (size_t at = 0; at < identity->nic_count; at++) {
        int error = link_find(netlink, &identity->nics[at]);
        if (error == 0)
            continue;
        char mac[18];
        describe(identity->nics[at].old_mac, mac, sizeof mac);
        if (error == ENODEV)
            fail(connection, "no-such-nic", "no network interface has the address %s", mac);
        else
            fail_errno(connection, error, "the network interfaces");
        return false;
    }
    return true;
}

/* -- what it changes, the network last: who reaches the guest there finds all else done --------- */

static int set_network(int netlink, const struct identity *identity, const char **what) {
    static char text[64];
    bool first = true;
    for (size_t at = 0; at < identity->nic_count; at++) {
        const struct link_identity *nic = &identity->nics[at];
        const char *step;
        int error = link_identify(netlink, nic, first, &step);
        if (error != 0) {
            snprintf(text, sizeof text, "NIC %zu: %s", at, step);
            *what = text;
            return error;
        }
        first = first && nic->gateway.s_addr == 0;
    }
    for (size_t at = 0; at < identity->nic_count; at++)
        link_announce(netlink, &identity->nics[at]);
    return 0;
}

static int apply(const struct request *request, const struct identity *identity, int netlink,
                 const char **what) {
    int error = 0;
    *what = "the kernel's random numbers";
    if (identity->entropy_length > 0)
        error = entropy_add(identity->entropy, identity->entropy_length);
    if (error == 0 && identity->has_time) {
        *what = "the clock";
        error = clock_set(identity->time_ms);
    }
    if (error == 0 && request->hostname != NULL)
        error = names_set_host(request->hostname, what);
    if (error == 0 && request->machine_id != NULL)
        error = names_set_machine_id(request->machine_id, what);
    if (error == 0 && request->dns[0] != NULL)
        error = names_set_servers(request->dns, what);
    if (error == 0 && identity->nic_count > 0) {
        char address[INET_ADDRSTRLEN];
        inet_ntop(AF_INET, &identity->nics[0].address, address, sizeof address);
        error = names_set_address(address, what);
        if (error == 0)
            error = set_network(netlink, identity, what);
    }
    return error;
}

/* Two hosts' programs that ask at once (one was started anew) would find each other's links down:
 * one after the other. The lock ends with this process. */
static void wait_for_turn(void) {
    int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root >= 0)
        flock(root, LOCK_EX);
}

void identity_take(const struct request *request, int connection) {
    static struct identity identity;
    const char *what = check(request, &identity);
    if (what != NULL) {
        fail(connection, "EINVAL", "%s", what);
        return;
    }
    int netlink = identity.nic_count > 0 ? netlink_open() : -1;
    if (identity.nic_count > 0 && netlink < 0) {
        fail_errno(connection, errno, "netlink");
        return;
    }
    wait_for_turn();
    if (!find_all(netlink, &identity, connection))
        return;
    int error = apply(request, &identity, netlink, &what);
    if (error != 0) {
        fail_errno(connection, error, what);
        return;
    }
    struct answer answer = {.length = 0};
    answer_add(&answer, "ok", "1");
    answer_send(&answer, connection);
}
