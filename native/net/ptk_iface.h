/*
 * What the kernel says about a network interface. Set-up and housekeeping only; changes nothing.
 */
#ifndef PTK_IFACE_H
#define PTK_IFACE_H

#include "base/ptk_base.h"
#include "base/ptk_err.h"
#include "net/ptk_address.h"

#include <net/if.h>

#define PTK_IFACE_DRIVER_CAP 32u

struct ptk_iface {
    char name[IF_NAMESIZE];
    uint32_t index;
    uint32_t mtu;
    uint32_t queue_count;              /* receive queues in use; 1 when the driver does not say */
    int numa_node;                     /* PTK_NUMA_NODE_ANY when unknown */
    bool up;                           /* administratively up and with a carrier */
    bool virtual_driver;               /* may deliver partial checksums from local senders */
    char driver[PTK_IFACE_DRIVER_CAP]; /* "" when the driver does not say */
};

/* ptk_iface_read asks for everything; -ENODEV names an interface that does not exist. */
int ptk_iface_read(const char *name, struct ptk_iface *iface, struct ptk_err *err);

/*
 * ptk_iface_addresses adds the unicast addresses of interface `name`, or with NULL of all
 * interfaces, to the set. Returns 0 or a negative errno. The set may stay empty.
 */
int ptk_iface_addresses(const char *name, struct ptk_address_set *set, struct ptk_err *err);

/* What changes at run time. */
enum ptk_iface_link {
    PTK_IFACE_LINK_GONE = 0, /* no such interface any more */
    PTK_IFACE_LINK_DOWN,
    PTK_IFACE_LINK_UP,
};

/* The receive queues that the interface has now, asked over `socket_fd`; 0 when the driver does not
 * say. */
uint32_t ptk_iface_queues(const char *name, int socket_fd);

/* ptk_iface_link asks over `socket_fd`, any IP socket in the interface's namespace. */
enum ptk_iface_link ptk_iface_link(const struct ptk_iface *iface, int socket_fd);

#endif
