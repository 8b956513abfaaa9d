/* Answers made of fields, `key=value`, with a zero byte between them. */
#ifndef ANSWER_H
#define ANSWER_H

#include <stdbool.h>
#include <stddef.h>

#include "frame.h"

struct answer {
    size_t length;
    char text[FRAME_MAX];
};

/* Adds a field; false, and nothing is added, when it does not fit. */
bool answer_add(struct answer *answer, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Sends the fields as an 'R' frame and begins anew; false when the host has gone. */
bool answer_send(struct answer *answer, int connection);

/* Sends an 'X' frame: the operation failed, with a word for programs and a text for people. */
void fail(int connection, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same for an errno: its name, and `what`: its text. */
void fail_errno(int connection, int error, const char *what);

#endif
