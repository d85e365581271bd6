/* What may change around a running server: the link, the interface itself, its queues. Nothing of
 * it ends the server; each change is said once and counted. */
#include "serve/ptk_server_private.h"

static void watch_link(struct ptk_server *server)
{
    static const char *const TEXTS[] = {
        [PTK_IFACE_LINK_GONE] = "is gone: packets can only come by other interfaces",
        [PTK_IFACE_LINK_DOWN] = "is down or has no carrier",
        [PTK_IFACE_LINK_UP] = "is up again",
    };
    const enum ptk_iface_link link = ptk_iface_link(&server->iface, server->link_fd);
    if (link != server->link) {
        ptk_server_tell("interface %s %s", server->iface.name, TEXTS[link]);
        server->link = link;
        server->link_changes++;
    }
}

/* The program looks its queue's socket up for each packet, so more queues or fewer need no step of
 * ours: those without a poller are the kernel's socket's. */
static void watch_queues(struct ptk_server *server)
{
    const uint32_t queues = server->link == PTK_IFACE_LINK_GONE
                                ? 0
                                : ptk_iface_queues(server->iface.name, server->link_fd);
    if (queues == 0 || queues == server->queues_present) {
        return;
    }
    ptk_server_tell("interface %s has %u queues now and had %u: packets of queues without a poller "
                    "are answered by the kernel's socket; restart to serve them",
                    server->iface.name, queues, server->queues_present);
    server->queues_present = queues;
    server->queue_changes++;
}

void ptk_server_watch(struct ptk_server *server)
{
    uint64_t *process = server->segment.process;
    if (server->iface.index == 0) {
        ptk_stats_store(&process[PTK_PROCESS_LINK_UP], 1);
        return;
    }
    watch_link(server);
    watch_queues(server);
    ptk_stats_store(&process[PTK_PROCESS_LINK_UP], server->link == PTK_IFACE_LINK_UP);
    ptk_stats_store(&process[PTK_PROCESS_LINK_CHANGES], server->link_changes);
    ptk_stats_store(&process[PTK_PROCESS_QUEUES], server->queues_present);
    ptk_stats_store(&process[PTK_PROCESS_QUEUE_CHANGES], server->queue_changes);
}
