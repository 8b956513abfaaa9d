#include "request.h"

#include <stdlib.h>
#include <string.h>

static bool number(const char *text, int base, unsigned long most, unsigned long *out) {
    char *end;
    if (*text < '0' || *text > '9')
        return false; /* strtoul would take a sign or spaces */
    *out = strtoul(text, &end, base);
    return *end == 0 && *out <= most;
}

static const char *absolute(const char *value, const char **out) {
    *out = value;
    return value[0] == '/' ? NULL : "a path must be absolute";
}

static const char *size(const char *value, unsigned short *out) {
    unsigned long parsed;
    if (!number(value, 10, 65535, &parsed))
        return "rows and cols are numbers up to 65535";
    *out = (unsigned short)parsed;
    return NULL;
}

static const char *variable(char *value, char **out) {
    *out = value;
    char *equals = strchr(value, '=');
    return equals != NULL && equals != value ? NULL : "env is NAME=VALUE";
}

struct lists {
    size_t args, env, nics, dns;
};

/* The fields of identify, whose values are checked where they are used. */
static bool take_identity(const char *key, char *value, struct request *request,
                          struct lists *lists) {
    if (strcmp(key, "hostname") == 0)
        request->hostname = value;
    else if (strcmp(key, "machine_id") == 0)
        request->machine_id = value;
    else if (strcmp(key, "entropy") == 0)
        request->entropy = value;
    else if (strcmp(key, "time_ms") == 0)
        request->time_ms = value;
    else if (strcmp(key, "nic") == 0)
        request->nics[lists->nics++] = value;
    else if (strcmp(key, "dns") == 0)
        request->dns[lists->dns++] = value;
    else
        return false;
    return true;
}

static const char *take(const char *key, char *value, struct request *request,
                        struct lists *lists) {
    unsigned long parsed;
    if (take_identity(key, value, request, lists))
        return NULL;
    if (strcmp(key, "op") == 0)
        request->op = value;
    else if (strcmp(key, "arg") == 0)
        request->args[lists->args++] = value;
    else if (strcmp(key, "env") == 0)
        return variable(value, &request->env[lists->env++]);
    else if (strcmp(key, "path") == 0)
        return absolute(value, &request->path);
    else if (strcmp(key, "cwd") == 0)
        return absolute(value, &request->cwd);
    else if (strcmp(key, "user") == 0)
        request->user = value;
    else if (strcmp(key, "rows") == 0)
        return size(value, &request->rows);
    else if (strcmp(key, "cols") == 0)
        return size(value, &request->cols);
    else if (strcmp(key, "tty") == 0) {
        if (!number(value, 10, 1, &parsed))
            return "tty is 0 or 1";
        request->tty = parsed == 1;
    } else if (strcmp(key, "mode") == 0) {
        if (!number(value, 8, 07777, &parsed))
            return "mode is an octal number up to 7777";
        request->mode = (mode_t)parsed;
    }
    return NULL;
}

static size_t count_fields(const char *payload, size_t length) {
    size_t count = 1;
    for (size_t at = 0; at < length; at++)
        count += payload[at] == 0;
    return count;
}

const char *request_parse(char *payload, size_t length, struct request *request) {
    size_t fields = count_fields(payload, length);
    struct lists lists = {0};
    *request = (struct request){
        .mode = 0644,
        .user = "root",
        .args = calloc(fields + 1, sizeof(char *)),
        .env = calloc(fields + 1, sizeof(char *)),
        .nics = calloc(fields + 1, sizeof(char *)),
        .dns = calloc(fields + 1, sizeof(char *)),
    };
    if (request->args == NULL || request->env == NULL || request->nics == NULL ||
        request->dns == NULL)
        return "no memory";
    for (char *field = payload; field < payload + length; field += strlen(field) + 1) {
        char *equals = strchr(field, '=');
        if (*field == 0)
            continue;
        if (equals == NULL)
            return "a field is key=value";
        *equals = 0;
        char *value = equals + 1;
        const char *problem = take(field, value, request, &lists);
        if (problem != NULL)
            return problem;
        field = value;
    }
    return request->op != NULL ? NULL : "op is missing";
}
