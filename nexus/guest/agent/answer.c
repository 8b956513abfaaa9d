#define _GNU_SOURCE
#include "answer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool add(struct answer *answer, const char *key, const char *format, va_list values) {
    size_t room = sizeof answer->text - answer->length;
    char *at = answer->text + answer->length;
    size_t used = answer->length > 0 ? 1 : 0; /* the zero byte before it */
    if (used < room) {
        int head = snprintf(at + used, room - used, "%s=", key);
        used += (size_t)head;
    }
    if (used < room) {
        int value = vsnprintf(at + used, room - used, format, values);
        used += value < 0 ? room : (size_t)value;
    }
    if (used >= room)
        return false;
    if (answer->length > 0)
        *at = 0;
    answer->length += used;
    return true;
}

bool answer_add(struct answer *answer, const char *key, const char *format, ...) {
    va_list values;
    va_start(values, format);
    bool fits = add(answer, key, format, values);
    va_end(values);
    return fits;
}

bool answer_send(struct answer *answer, int connection) {
    bool sent = frame_send(connection, 'R', answer->text, answer->length);
    answer->length = 0;
    return sent;
}

void fail(int connection, const char *code, const char *format, ...) {
    struct answer answer = {.length = 0};
    answer_add(&answer, "code", "%s", code);
    va_list values;
    va_start(values, format);
    add(&answer, "message", format, values);
    va_end(values);
    frame_send(connection, 'X', answer.text, answer.length);
}

void fail_errno(int connection, int error, const char *what) {
    const char *name = strerrorname_np(error);
    fail(connection, name != NULL ? name : "EIO", "%s: %s", what, strerror(error));
}
