/*
 * ptk-datapath: the process that answers packets. It has no other purpose than to be apart from
 * everything that may stall, grow or crash; the control process starts it, and it outlives that.
 *
 * Exit status: 0 after a drain or a hand-over, 1 when it could not start or replies were left
 * unsent, 2 for a wrong command line.
 */
#include "serve/ptk_datapath_options.h"
#include "serve/ptk_server.h"

#include <signal.h>
#include <stdio.h>
#include <time.h>

/* Parked between two rounds of housekeeping; true when a signal asks to end. */
static bool wait_for_signal(const sigset_t *signals)
{
    const struct timespec pause = {.tv_nsec = PTK_SERVER_KEEP_MS * 1000000l};
    return sigtimedwait(signals, NULL, &pause) > 0;
}

int main(int argc, char **argv)
{
    static struct ptk_server_config config; /* Large; and the server keeps pointers of it. */
    struct ptk_err err;
    const int parsed = ptk_datapath_options_parse(argc, argv, &config, &err);
    if (parsed > 0) {
        (void)fputs(PTK_DATAPATH_USAGE, stdout);
        return 0;
    }
    if (parsed < 0) {
        (void)fprintf(stderr, "ptk-datapath: %s\n", err.text);
        return 2;
    }

    /* Blocked before any thread exists, so that only the main thread takes them. A closed terminal
     * or a dead control process must not end this one. */
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGHUP, SIG_IGN);

    struct ptk_server *server = NULL;
    if (ptk_server_start(&server, &config, &err) != 0) {
        (void)fprintf(stderr, "ptk-datapath: %s\n", err.text);
        return 1;
    }
    while (ptk_server_keep(server) && !wait_for_signal(&signals)) {
    }
    const bool given = ptk_server_given(server);
    const uint64_t unsent = ptk_server_drain(server);
    ptk_server_stop(server);
    if (given) {
        (void)fprintf(stderr, "ptk-datapath: handed over\n");
        return 0;
    }
    if (unsent > 0) {
        (void)fprintf(stderr, "ptk-datapath: %llu replies could not be sent in time\n",
                      (unsigned long long)unsent);
        return 1;
    }
    (void)fprintf(stderr, "ptk-datapath: drained\n");
    return 0;
}
