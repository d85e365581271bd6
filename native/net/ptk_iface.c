/* Interface facts by ioctl: they follow the network namespace, files under /sys do not always. */
#include "net/ptk_iface.h"

#include "base/ptk_huge.h"

#include <errno.h>
#include <ifaddrs.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Drivers whose receive path can carry a partial checksum: their sender is on the same host. */
static const char *const VIRTUAL_DRIVERS[] = {"veth",   "tun",   "virtio_net",
                                              "bridge", "dummy", "netkit"};

static struct ifreq request_for(const char *name)
{
    struct ifreq request;
    memset(&request, 0, sizeof request);
    (void)snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    return request;
}

static void read_driver(struct ptk_iface *iface, int socket_fd)
{
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq request = request_for(iface->name);
    request.ifr_data = (void *)&info;
    if (ioctl(socket_fd, SIOCETHTOOL, &request) != 0) {
        return;
    }
    memcpy(iface->driver, info.driver, sizeof iface->driver);
    iface->driver[sizeof iface->driver - 1] = '\0';
    for (size_t i = 0; i < PTK_ARRAY_LEN(VIRTUAL_DRIVERS); i++) {
        iface->virtual_driver |= strcmp(iface->driver, VIRTUAL_DRIVERS[i]) == 0;
    }
}

uint32_t ptk_iface_queues(const char *name, int socket_fd)
{
    struct ethtool_channels channels = {.cmd = ETHTOOL_GCHANNELS};
    struct ifreq request = request_for(name);
    request.ifr_data = (void *)&channels;
    if (ioctl(socket_fd, SIOCETHTOOL, &request) != 0) {
        return 0;
    }
    return channels.combined_count + channels.rx_count;
}

static int read_numa_node(const char *name)
{
    char path[128];
    (void)snprintf(path, sizeof path, "/sys/class/net/%s/device/numa_node", name);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return PTK_NUMA_NODE_ANY; /* A virtual device, or /sys of another namespace. */
    }
    char text[16] = "";
    const bool read = fgets(text, sizeof text, file) != NULL;
    (void)fclose(file); /* Nothing was written. */
    return read ? (int)strtol(text, NULL, 10) : PTK_NUMA_NODE_ANY;
}

int ptk_iface_read(const char *name, struct ptk_iface *iface, struct ptk_err *err)
{
    memset(iface, 0, sizeof *iface);
    const unsigned index = if_nametoindex(name);
    if (index == 0 || strlen(name) >= sizeof iface->name) {
        return ptk_err_set(err, -ENODEV, "interface %s: there is none of this name (see ip link)",
                           name);
    }
    (void)snprintf(iface->name, sizeof iface->name, "%s", name);
    iface->index = index;
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = request_for(name);
    if (fd < 0 || ioctl(fd, SIOCGIFMTU, &request) != 0) {
        const int code = -errno;
        if (fd >= 0) {
            (void)close(fd);
        }
        return ptk_err_set(err, code, "interface %s: cannot be read: %s", name, strerror(-code));
    }
    iface->mtu = (uint32_t)request.ifr_mtu;
    read_driver(iface, fd);
    const uint32_t queues = ptk_iface_queues(name, fd);
    iface->queue_count = queues > 0 ? queues : 1;
    iface->numa_node = read_numa_node(name);
    iface->up = ptk_iface_link(iface, fd) == PTK_IFACE_LINK_UP;
    (void)close(fd);
    return 0;
}

int ptk_iface_addresses(const char *name, struct ptk_address_set *set, struct ptk_err *err)
{
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) != 0) {
        const int code = -errno;
        return ptk_err_set(err, code, "addresses cannot be read: %s", strerror(-code));
    }
    int code = 0;
    for (const struct ifaddrs *item = list; item != NULL && code == 0; item = item->ifa_next) {
        if (item->ifa_addr == NULL || (name != NULL && strcmp(item->ifa_name, name) != 0)) {
            continue;
        }
        struct ptk_address address;
        if (item->ifa_addr->sa_family == AF_INET) {
            const struct sockaddr_in *ipv4 = (const void *)item->ifa_addr;
            address = ptk_address_from_ipv4(&ipv4->sin_addr);
        } else if (item->ifa_addr->sa_family == AF_INET6) {
            const struct sockaddr_in6 *ipv6 = (const void *)item->ifa_addr;
            address = ptk_address_from_ipv6(&ipv6->sin6_addr);
        } else {
            continue;
        }
        code = ptk_address_set_add(set, &address, err);
    }
    freeifaddrs(list);
    return code;
}

enum ptk_iface_link ptk_iface_link(const struct ptk_iface *iface, int socket_fd)
{
    struct ifreq request = request_for(iface->name);
    if (ioctl(socket_fd, SIOCGIFINDEX, &request) != 0 ||
        (uint32_t)request.ifr_ifindex != iface->index) {
        return PTK_IFACE_LINK_GONE;
    }
    request = request_for(iface->name);
    if (ioctl(socket_fd, SIOCGIFFLAGS, &request) != 0) {
        return PTK_IFACE_LINK_GONE;
    }
    const unsigned flags = (unsigned short)request.ifr_flags;
    const bool up = (flags & IFF_UP) != 0 && (flags & IFF_RUNNING) != 0;
    return up ? PTK_IFACE_LINK_UP : PTK_IFACE_LINK_DOWN;
}
