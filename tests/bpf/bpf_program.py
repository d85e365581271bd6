"""Runs a compiled XDP program inside the kernel without attaching it: a thin wrapper around libbpf.

Independent of the C loader on purpose: what is tested is the object file alone.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import ipaddress
import os
import pathlib
import socket
import struct

XDP_DROP = 1
XDP_PASS = 2
XDP_REDIRECT = 4

_AF_XDP = 44
_SOL_XDP = 283
_XDP_RX_RING = 2
_REPO = pathlib.Path(__file__).resolve().parents[2]


class _TestRunOpts(ctypes.Structure):
    """`struct bpf_test_run_opts` of libbpf 1.x."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def object_path() -> pathlib.Path:
    """The object under test: `PINTOK_BPF_OBJECT`, or the one of the release build."""
    default = _REPO / "native" / "build" / "release" / "ptk_steer.bpf.o"
    return pathlib.Path(os.environ.get("PINTOK_BPF_OBJECT", default))


class SteerProgram:
    """The loaded program for one port, a set of destination addresses and a list of networks.

    Raises OSError when the kernel refuses it; close() frees it.
    """

    def __init__(
        self, *, port: int, addresses: list[str], reason_count: int, networks: tuple[str, ...] = ()
    ) -> None:
        self._lib = ctypes.CDLL(ctypes.util.find_library("bpf") or "libbpf.so.1", use_errno=True)
        for name in ("bpf_object__open_file", "bpf_object__find_map_by_name", "bpf_map__name"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.bpf_object__find_program_by_name.restype = ctypes.c_void_p
        self._reason_count = reason_count
        self._object = ctypes.c_void_p(
            self._lib.bpf_object__open_file(str(object_path()).encode(), None)
        )
        if not self._object:
            raise OSError(ctypes.get_errno(), f"{object_path()}: cannot be opened")
        value = struct.pack("!H", port) + struct.pack("H", bool(networks))
        rodata = self._lib.bpf_object__find_map_by_name(self._object, b".rodata")
        self._check(
            self._lib.bpf_map__set_initial_value(
                ctypes.c_void_p(rodata), value, ctypes.c_size_t(len(value))
            ),
            "set port and list",
        )
        self._check(self._lib.bpf_object__load(self._object), "load")
        program = self._lib.bpf_object__find_program_by_name(self._object, b"ptk_steer")
        self._fd = self._lib.bpf_program__fd(ctypes.c_void_p(program))
        self._sockets: list[socket.socket] = []
        for address in addresses:
            self._check(
                self._lib.bpf_map_update_elem(
                    self._map_fd(b"ptk_addresses"),
                    address_key(address),
                    b"\x01",
                    ctypes.c_uint64(0),
                ),
                "add address",
            )

        for network in networks:
            self._check(
                self._lib.bpf_map_update_elem(
                    self._map_fd(b"ptk_networks"),
                    network_key(network),
                    b"\x01",
                    ctypes.c_uint64(0),
                ),
                "add network",
            )

    @staticmethod
    def _check(code: int, what: str) -> None:
        if code < 0:
            raise OSError(-code, f"{what}: {os.strerror(-code)}")

    def _map_fd(self, name: bytes) -> int:
        handle = self._lib.bpf_object__find_map_by_name(self._object, name)
        return int(self._lib.bpf_map__fd(ctypes.c_void_p(handle)))

    def add_socket(self, queue: int) -> None:
        """Put an AF_XDP socket (without packet memory: nothing is sent to it) into slot `queue`."""
        xsk = socket.socket(_AF_XDP, socket.SOCK_RAW)
        self._sockets.append(xsk)
        xsk.setsockopt(_SOL_XDP, _XDP_RX_RING, struct.pack("I", 64))
        self._check(
            self._lib.bpf_map_update_elem(
                self._map_fd(b"ptk_sockets"),
                struct.pack("I", queue),
                struct.pack("I", xsk.fileno()),
                ctypes.c_uint64(0),
            ),
            "add socket",
        )

    def run(self, frame: bytes, *, repeat: int = 1) -> int:
        """The program's verdict for `frame`, at least 14 bytes; it must not change the frame."""
        out = ctypes.create_string_buffer(len(frame) + 256)
        data = ctypes.create_string_buffer(frame, len(frame))
        opts = _TestRunOpts(
            sz=ctypes.sizeof(_TestRunOpts),
            data_in=ctypes.addressof(data),
            data_out=ctypes.addressof(out),
            data_size_in=len(frame),
            data_size_out=len(out),
            repeat=repeat,
        )
        self._check(self._lib.bpf_prog_test_run_opts(self._fd, ctypes.byref(opts)), "run")
        assert out.raw[: opts.data_size_out] == frame
        return int(opts.retval)

    def reasons(self) -> list[int]:
        """All counters, summed over the CPUs."""
        cpus = self._lib.libbpf_num_possible_cpus()
        values = (ctypes.c_uint64 * cpus)()
        totals = []
        for index in range(self._reason_count):
            self._check(
                self._lib.bpf_map_lookup_elem(
                    self._map_fd(b"ptk_reasons"), struct.pack("I", index), values
                ),
                "read counter",
            )
            totals.append(sum(values))
        return totals

    def close(self) -> None:
        """Free the program, its maps and the sockets."""
        for xsk in self._sockets:
            xsk.close()
        self._lib.bpf_object__close(self._object)


def address_key(address: str) -> bytes:
    """The 16-byte map key of an address: IPv4 as IPv4-mapped IPv6."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return b"\x00" * 10 + b"\xff\xff" + socket.inet_pton(socket.AF_INET, address)


def network_key(network: str) -> bytes:
    """The map key of a network: bits that count, of the 16 bytes of address_key."""
    parsed = ipaddress.ip_network(network)
    bits = parsed.prefixlen + (96 if parsed.version == 4 else 0)
    return struct.pack("I", bits) + address_key(str(parsed.network_address))
