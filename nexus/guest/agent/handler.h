/* One connection: reads what the host asks for, does it, and is done. */
#ifndef HANDLER_H
#define HANDLER_H

_Noreturn void handler_run(int connection);

#endif
