/* exec: one program, its streams carried as frames until it ends or the host goes away. */
#ifndef EXEC_H
#define EXEC_H

#include "request.h"

void exec_run(const struct request *request, int connection);

#endif
