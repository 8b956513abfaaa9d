/* identify: makes a guest that was loaded from a snapshot somebody of its own. */
#ifndef IDENTITY_H
#define IDENTITY_H

#include "request.h"

void identity_take(const struct request *request, int connection);

#endif
