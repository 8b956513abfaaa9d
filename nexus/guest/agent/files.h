/* put, get, stat, list, mkdir. */
#ifndef FILES_H
#define FILES_H

#include "request.h"

void file_put(const struct request *request, int connection);
void file_get(const struct request *request, int connection);
void file_stat(const struct request *request, int connection);
void file_list(const struct request *request, int connection);
void file_mkdir(const struct request *request, int connection);

#endif
