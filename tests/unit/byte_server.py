"""A PTK1 server for tests of clients: ids are bytes, and a script may spoil the network.

The tokenizer is the twin of `tests/native/byte_tokenizer.h`, written from the protocol's tables
and not from the client's codec, so that both are held to the same golden packets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import threading
from collections.abc import Callable, Iterator

HEADER = struct.Struct("<HBBIQHHHBBII")
WIDTHS = {1: 2, 2: 3, 3: 4}
NONE = 0xFFFFFFFF

# What travels instead of a reply: the datagrams to send back for the n-th datagram received.
Script = Callable[[bytes, bytes, int], list[bytes]]


@dataclasses.dataclass(slots=True)
class Model:
    base: int = 0
    tag: int = 0x11111111
    name: str = "byte-level"
    source: int = 0
    settings: bytes = bytes(40)

    @property
    def id_format(self) -> int:
        return 1 if self.base == 0 else 2 if self.base == 1 << 16 else 3


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def unsealed(request: bytes) -> bytes:
    """Without a cookie and a tenant's code, which nobody checks here."""
    off = 32 + (16 if request[3] & 1 else 0) + (32 if request[3] & 2 else 0)
    return request[:3] + bytes([request[3] & ~3]) + request[4:32] + request[off:]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def default_models() -> dict[int, Model]:
    return {
        0: Model(0, 0x11111111),
        1: Model(1 << 16, 0x22222222),
        2: Model(1 << 24, 0x33333333),
    }


class ByteEngine:
    """Request bytes to reply bytes."""

    def __init__(self, *, datagram_len_max: int = 1472) -> None:
        self.models = default_models()
        self.datagram_len_max = datagram_len_max

    def answer(self, request: bytes) -> bytes:
        fields = HEADER.unpack_from(request)
        flags, op, model_id, tag = fields[2], fields[8], fields[7], fields[10]
        message = request[32:]
        assert fields[0] == 0x5450 and fields[1] == 0x11 and fields[3] == len(message)
        assert fields[5] == fields[6] == fields[9] == 0
        if flags:
            assert flags == 16 and crc32c(message) == fields[11]
        if op == 1:
            return self._reply(fields, 0, 0, message)
        model = self.models.get(model_id)
        if model is None:
            return self._reply(fields, 11, 0, b"")
        if tag not in (0, model.tag):
            return self._reply(fields, 12, model.tag, b"")
        if op == 2:
            return self._reply(fields, 0, model.tag, self._info(model))
        if op == 9:
            return self._reply(fields, 0, model.tag, model.settings)
        verdict, answer = self._batch(op, model, message)
        return self._reply(fields, verdict, model.tag, answer)

    def _reply(self, fields: tuple[int, ...], verdict: int, tag: int, message: bytes) -> bytes:
        crc = crc32c(message) if fields[2] and not verdict else 0
        flags = 16 if fields[2] and not verdict else 0
        head = (0x5450, 0x12, flags, len(message), fields[4], 0, 0, fields[7], fields[8])
        return HEADER.pack(*head, verdict, tag, crc) + message

    def _info(self, model: Model) -> bytes:
        formats = sum(1 << f for f in (0, *range(model.id_format, 4)))
        name = model.name.encode()
        limit = self.datagram_len_max
        ids = (model.base + 258, 258, 256, 257, NONE, NONE)
        ends = (80, len(name), max(self.models) + 1, model.source)
        head = (bytes(range(32)), *ids, limit - 32, limit, 0b1001111110, formats, *ends)
        return struct.pack("<32s10I4H", *head) + padded(name)

    def _batch(self, op: int, model: Model, message: bytes) -> tuple[int, bytes]:
        id_format, outputs, options, item_count, reply_len_max = struct.unpack_from(
            "<BBHHH", message
        )
        off = 8
        limit = None
        if options & 32:
            limit = struct.unpack_from("<II", message, off)
            off += 16
        lens_count = item_count * (2 if options & 4 else 1)
        room = min(reply_len_max or len(message) + 32, self.datagram_len_max) - 32
        if room < 8 + 8 * item_count:
            return 14, b""
        if op == 6:
            return 0, step(model, id_format, options, item_count, message[8:], room)
        lengths = struct.unpack_from(f"<{lens_count}I", message, off)
        off += 4 * lens_count + 7 & ~7
        ranges: list[list[tuple[int, int]]] = [[] for _ in range(item_count)]
        if options & 1024:
            counts = struct.unpack_from(f"<{item_count}I", message, off)
            off += 4 * item_count + 7 & ~7
            for item, count in enumerate(counts):
                for _ in range(count):
                    ranges[item].append(struct.unpack_from("<II", message, off))
                    off += 8
        if op == 4:
            return 0, decode(model, id_format, options, lengths, message[off:], room)
        texts = []
        for length in lengths:
            texts.append(message[off : off + length])
            off += length
        pairs = 2 if options & 4 else 1
        items = [texts[i : i + pairs] for i in range(0, len(texts), pairs)]
        id_format = id_format or model.id_format
        return 0, encode(model, op, id_format, outputs, options, items, ranges, limit, room)


def step(
    model: Model, id_format: int, options: int, item_count: int, data: bytes, room: int
) -> bytes:
    """Steps: what stands behind the context is given unless it ends in '~'."""
    width, off, table, states, texts = WIDTHS[id_format], 8 * item_count, b"", b"", b""
    tables_len = 8 + 8 * item_count + (4 * item_count + 7 & ~7)
    for item in range(item_count):
        count, given, new, flags = struct.unpack_from("<4H", data, 8 * item)
        ids = [
            int.from_bytes(data[off + width * i : off + width * (i + 1)], "little") - model.base
            for i in range(count)
        ]
        off += width * count
        given = given or count - new
        if ids and ids[-1] == ord("~") and not flags & 1:
            table += struct.pack("<IB3x", 0, 0)
            states += struct.pack("<HH", 0, given)
            continue
        text = shown(ids[given:], options)
        dropped = count if flags & 1 else given
        fits = tables_len + len(padded(texts + text)) <= room
        table += struct.pack("<IB3x", len(text) if fits else 0, 0 if fits else 14)
        states += struct.pack("<HH", dropped, count - dropped) if fits else bytes(4)
        texts += text if fits else b""
    return struct.pack("<BBHI", 0, 0, item_count, 0) + table + padded(states) + padded(texts)


def shown(units: list[int], options: int) -> bytes:
    text = b""
    for unit in units:
        if 0 <= unit < 256:
            text += bytes([unit])
        elif unit in (256, 257) and not options & 128:
            text += (b"<s>", b"</s>")[unit - 256]
    return text


def decode(
    model: Model, id_format: int, options: int, lengths: tuple[int, ...], data: bytes, room: int
) -> bytes:
    width, off, table, texts = WIDTHS[id_format], 0, b"", b""
    for length in lengths:
        units = []
        for _ in range(length):
            units.append(int.from_bytes(data[off : off + width], "little") - model.base)
            off += width
        text = shown(units, options)
        fits = 8 + 8 * len(lengths) + len(padded(texts + text)) <= room
        table += struct.pack("<IB3x", len(text) if fits else 0, 0 if fits else 14)
        texts += text if fits else b""
    return struct.pack("<BBHI", 0, 0, len(lengths), 0) + table + padded(texts)


def encode(
    model: Model,
    op: int,
    id_format: int,
    outputs: int,
    options: int,
    items: list[list[bytes]],
    ranges: list[list[tuple[int, int]]],
    limit: tuple[int, int] | None,
    room: int,
) -> bytes:
    table = b""
    lens: list[int] = []
    rows: list[tuple[int, int, int, int, int]] = []  # id, begin, end, type, special
    for texts, plain in zip(items, ranges, strict=True):
        verdict, mine = 0, []
        whole = b"".join(texts)
        hits = sum(whole[at : at + (size >> 1)].count(b"|") for at, size in plain)
        windows: list[int] = []
        if options & 1:
            mine.append((256, 0, 0, 0, 1))
        for kind, text in enumerate(texts):
            mine += [(byte, i, i + 1, kind, 0) for i, byte in enumerate(text)]
        if options & 1:
            mine.append((257, 0, 0, len(texts) - 1, 1))
        if limit is not None and options & 512:
            mine, windows = cut(mine, *limit)
        elif limit is not None:
            mine = mine[: limit[0]]
        if any(0xFF in text for text in texts):
            verdict, mine, windows = 10, [], []
        elif (
            op == 3
            and len(layout(model, id_format, outputs, rows + mine))
            + 8
            + 8 * len(items)
            + (4 * len(lens + windows) + 7 & ~7)
            > room
        ):
            verdict, mine, windows = 14, [], []
        table += struct.pack("<IBBH", len(mine), verdict, 0 if verdict else hits, len(windows))
        rows += mine if op == 3 else []
        lens += windows
    if op == 5:
        return struct.pack("<BBHI", 0, 0, len(items), 0) + table
    head = struct.pack("<BBHI", id_format, outputs, len(items), 0)
    sizes = padded(struct.pack(f"<{len(lens)}I", *lens))
    return head + table + sizes + layout(model, id_format, outputs, rows)


Row = tuple[int, int, int, int, int]


def cut(rows: list[Row], size: int, stride: int) -> tuple[list[Row], list[int]]:
    """Windows of all rows, one after another, and their lengths."""
    windows = [rows[:size]]
    begin = 0
    while begin + size < len(rows):
        begin += size - stride
        windows.append(rows[begin : begin + size])
    return [row for window in windows for row in window], [len(window) for window in windows]


def layout(
    model: Model, id_format: int, outputs: int, rows: list[tuple[int, int, int, int, int]]
) -> bytes:
    width = WIDTHS[id_format]
    data = padded(b"".join((row[0] + model.base).to_bytes(width, "little") for row in rows))
    if outputs & 1:
        code = "<HH" if outputs & 8 else "<II"
        data += padded(b"".join(struct.pack(code, row[1], row[2]) for row in rows))
    if outputs & 2:
        data += padded(bytes(row[3] for row in rows))
    if outputs & 4:
        data += padded(bytes(row[4] for row in rows))
    return data


class ByteServer:
    """The engine behind a UDP socket on the loopback; `script` decides what really goes back."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.engine = ByteEngine()
        self.received: list[bytes] = []
        self.script: Script = lambda request, reply, number: [reply]
        self.longest = 65507
        """Longer datagrams do not get here."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        self._sock.bind((host, port))
        self._sock.settimeout(0.05)
        self.host = host
        self.port: int = self._sock.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                request, sender = self._sock.recvfrom(65536)
            except TimeoutError:
                continue
            if len(request) > min(self.longest, self.engine.datagram_len_max):
                continue
            number = len(self.received)
            self.received.append(request)
            for datagram in self.script(request, self.engine.answer(unsealed(request)), number):
                self._sock.sendto(datagram, sender)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sock.close()


@contextlib.contextmanager
def serving(*, host: str = "127.0.0.1", port: int = 0) -> Iterator[ByteServer]:
    server = ByteServer(host=host, port=port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
