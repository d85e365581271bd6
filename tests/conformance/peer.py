"""A client of PTK1 that can say anything, also what no client may say.

Written from the tables in `native/gen/WIRE.md` with `struct` alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import socket
import struct
import time
from collections.abc import Sequence
from typing import Self

HEADER = struct.Struct("<HBBIQHHHBBII")
OPS = {"ping": 1, "info": 2, "encode": 3, "decode": 4, "count": 5, "decode_step": 6, "settings": 9}
WIDTHS = {1: 2, 2: 3, 3: 4}
VERDICTS = {
    name: number
    for number, name in enumerate(
        "ok bad_magic bad_version bad_type bad_flags bad_length bad_op bad_option bad_items "
        "bad_format bad_utf8 unknown_model model_changed text_too_long reply_too_long unsupported "
        "bad_crc busy unknown_request challenge bad_cookie bad_key rate_limited not_allowed "
        "unknown_prefix bad_id replayed".split()
    )
}
ATTEMPTS_MAX = 8

_request_ids = itertools.count(random.SystemRandom().getrandbits(62))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def request(
    op: str,
    message: bytes = b"",
    *,
    model_id: int = 0,
    model_tag: int = 0,
    flags: int = 0,
    message_crc: int = 0,
) -> bytes:
    """A well-formed header and this message."""
    return (
        HEADER.pack(
            0x5450,
            0x11,
            flags,
            len(message),
            next(_request_ids),
            0,
            0,
            model_id,
            OPS[op],
            0,
            model_tag,
            message_crc,
        )
        + message
    )


def texts(
    items: Sequence[Sequence[bytes]],
    *,
    id_format: int = 0,
    outputs: int = 0,
    options: int = 3,
    reply_len_max: int = 1472,
) -> bytes:
    """The message of an encode or count; items of two texts are pairs."""
    if items and len(items[0]) == 2:
        options |= 4
    lengths = [len(text) for item in items for text in item]
    prelude = struct.pack("<BBHHH", id_format, outputs, options, len(items), reply_len_max)
    table = padded(struct.pack(f"<{len(lengths)}I", *lengths))
    return prelude + table + padded(b"".join(text for item in items for text in item))


def id_lists(
    items: Sequence[Sequence[int]], *, id_format: int, options: int = 0, reply_len_max: int = 1472
) -> bytes:
    """The message of a decode."""
    width = WIDTHS[id_format]
    prelude = struct.pack("<BBHHH", id_format, 0, options, len(items), reply_len_max)
    table = padded(struct.pack(f"<{len(items)}I", *map(len, items)))
    return prelude + table + padded(b"".join(i.to_bytes(width, "little") for j in items for i in j))


def steps(
    items: Sequence[tuple[Sequence[int], int, int, int]],
    *,
    id_format: int,
    options: int = 0,
    reply_len_max: int = 1472,
) -> bytes:
    """The message of a decode_step: ids, given, new and flags of each stream."""
    width = WIDTHS[id_format]
    prelude = struct.pack("<BBHHH", id_format, 0, options, len(items), reply_len_max)
    table = b"".join(struct.pack("<4H", len(ids), *rest) for ids, *rest in items)
    data = b"".join(i.to_bytes(width, "little") for ids, *_ in items for i in ids)
    return prelude + table + padded(data)


def patched(datagram: bytes, off: int, *values: int) -> bytes:
    """The datagram with other bytes at an offset."""
    return datagram[:off] + bytes(values) + datagram[off + len(values) :]


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A reply whose header was checked against its request."""

    verdict: int
    model_id: int
    model_tag: int
    flags: int
    message_crc: int
    message: bytes
    datagram_len: int


def check_reply(asked: bytes, datagram: bytes) -> Reply:
    """What every reply must satisfy, whatever it answers."""
    assert len(datagram) >= 32
    fields = HEADER.unpack_from(datagram)
    magic, version_type, flags, message_len, request_id, idx, seg, model_id, op, verdict = fields[
        :10
    ]
    model_tag, crc = fields[10:]
    wanted = HEADER.unpack_from(asked)
    assert magic == 0x5450 and version_type == 0x12
    assert request_id == wanted[4] and op == wanted[8] and model_id == wanted[7]
    assert flags in (0, 16) and idx == 0 and seg == 0
    message = datagram[32:]
    assert len(message) == message_len
    if verdict:
        assert not message and not flags and not crc
    assert crc == (crc32c(message) if flags else 0)
    return Reply(verdict, model_id, model_tag, flags, crc, message, len(datagram))


class Peer:
    """A connected socket; every method waits for the reply to its own request id."""

    def __init__(self, host: str, port: int) -> None:
        family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        self._sock.connect(sockaddr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, datagram: bytes) -> None:
        self._sock.send(datagram)

    def receive(self, wait: float) -> bytes | None:
        """The next datagram within `wait` seconds."""
        self._sock.settimeout(wait)
        try:
            return self._sock.recv(65536)
        except (TimeoutError, ConnectionRefusedError):
            return None

    def once(self, datagram: bytes, *, wait: float = 0.5) -> Reply | None:
        """One attempt; replies to other requests are passed over."""
        self._sock.send(datagram)
        deadline = time.monotonic() + wait
        while (left := deadline - time.monotonic()) > 0:
            received = self.receive(left)
            if received is not None and received[8:16] == datagram[8:16]:
                return check_reply(datagram, received)
        return None

    def ask(self, datagram: bytes) -> Reply:
        """The reply, after as many attempts as a lossy path may need."""
        for _ in range(ATTEMPTS_MAX):
            reply = self.once(datagram)
            if reply is not None:
                return reply
        raise AssertionError(f"no reply to {datagram[:40].hex(' ')}")

    def verdict(self, datagram: bytes) -> str:
        """The name of the verdict; a refusal may not be longer than what it refuses."""
        reply = self.ask(datagram)
        assert reply.verdict == 0 or reply.datagram_len <= len(datagram)
        return next(name for name, number in VERDICTS.items() if number == reply.verdict)

    def is_silent(self, datagram: bytes) -> bool:
        """Whether nothing comes back: a ping sent behind it is answered first."""
        self._sock.send(datagram)
        ping = request("ping")
        for _ in range(ATTEMPTS_MAX):
            self._sock.send(ping)
            received = self.receive(0.5)
            if received is not None:
                return received[8:16] == ping[8:16]
        raise AssertionError("the server does not answer pings")


@dataclasses.dataclass(frozen=True, slots=True)
class Info:
    model_tag: int
    fingerprint: bytes
    ids_end: int
    vocab_len: int
    message_len_max: int
    datagram_len_max: int
    ops: int
    id_formats: int
    name: str
    models_end: int


def read_info(reply: Reply) -> Info:
    assert reply.verdict == 0 and len(reply.message) >= 80
    fields = struct.unpack_from("<32s10I4H", reply.message)
    name_off, name_len, models_end, _source = fields[11:]
    name = reply.message[name_off : name_off + name_len]
    assert len(name) == name_len <= 128 and name_off >= 80
    assert len(reply.message) == name_off + len(padded(name))
    assert not any(reply.message[name_off + name_len :])
    return Info(
        reply.model_tag,
        fields[0],
        fields[1],
        fields[2],
        fields[7],
        fields[8],
        fields[9],
        fields[10],
        name.decode(),
        models_end,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """An item of an answer."""

    verdict: int
    count: int
    ids: list[int]
    offsets: list[tuple[int, int]]
    type_ids: list[int]
    special_tokens_mask: list[int]


def read_encoding(reply: Reply, item_count: int, outputs: int = 0) -> list[Answer]:
    """The items of an encode answer; every length, padding and reserved byte is checked."""
    assert reply.verdict == 0
    message = reply.message
    id_format, outputs_there, count_there, reserved = struct.unpack_from("<BBHI", message)
    assert (outputs_there, count_there, reserved) == (outputs, item_count, 0)
    table = read_table(message, item_count)
    total = sum(count for count, _ in table)
    off = 8 + 8 * item_count
    width = WIDTHS[id_format]
    data, off = take(message, off, width * total)
    ids = [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]
    offsets: list[tuple[int, int]] = [(0, 0)] * total
    type_ids, mask = [0] * total, [0] * total
    if outputs & 1:
        data, off = take(message, off, (4 if outputs & 8 else 8) * total)
        offsets = list(struct.iter_unpack("<HH" if outputs & 8 else "<II", data))
    if outputs & 2:
        data, off = take(message, off, total)
        type_ids = list(data)
    if outputs & 4:
        data, off = take(message, off, total)
        mask = list(data)
    assert off == len(message)
    answers, begin = [], 0
    for count, verdict in table:
        rows = slice(begin, begin + count)
        answers.append(Answer(verdict, count, ids[rows], offsets[rows], type_ids[rows], mask[rows]))
        begin += count
    return answers


def read_counts(reply: Reply, item_count: int) -> list[tuple[int, int]]:
    """Count and verdict of each item of a count answer."""
    assert reply.verdict == 0 and len(reply.message) == 8 + 8 * item_count
    assert reply.message[:8] == struct.pack("<BBHI", 0, 0, item_count, 0)
    return read_table(reply.message, item_count)


def read_texts(reply: Reply, item_count: int) -> list[tuple[int, str]]:
    """Verdict and text of each item of a decode answer."""
    assert reply.verdict == 0
    assert reply.message[:8] == struct.pack("<BBHI", 0, 0, item_count, 0)
    table = read_table(reply.message, item_count)
    data, off = take(reply.message, 8 + 8 * item_count, sum(count for count, _ in table))
    assert off == len(reply.message)
    answers, begin = [], 0
    for count, verdict in table:
        answers.append((verdict, data[begin : begin + count].decode()))
        begin += count
    return answers


def read_steps(reply: Reply, item_count: int) -> list[tuple[int, str, int, int]]:
    """Verdict, text, dropped and given of each item of a decode_step answer."""
    assert reply.verdict == 0
    assert reply.message[:8] == struct.pack("<BBHI", 0, 0, item_count, 0)
    table = read_table(reply.message, item_count)
    states, off = take(reply.message, 8 + 8 * item_count, 4 * item_count)
    data, off = take(reply.message, off, sum(count for count, _ in table))
    assert off == len(reply.message)
    answers, begin = [], 0
    for (count, verdict), state in zip(table, struct.iter_unpack("<HH", states), strict=True):
        answers.append((verdict, data[begin : begin + count].decode(), *state))
        begin += count
    return answers


def read_windows(reply: Reply, item_count: int) -> list[list[list[int]]]:
    """The ids of every window of every item of an encode answer with windows, ids alone."""
    assert reply.verdict == 0
    message = reply.message
    id_format, outputs, count_there, reserved = struct.unpack_from("<BBHI", message)
    assert (outputs, count_there, reserved) == (0, item_count, 0)
    entries = list(struct.iter_unpack("<IBBH", message[8 : 8 + 8 * item_count]))
    total = sum(windows for *_, windows in entries)
    sizes, off = take(message, 8 + 8 * item_count, 4 * total)
    lens = [size for (size,) in struct.iter_unpack("<I", sizes)]
    width = WIDTHS[id_format]
    data, off = take(message, off, width * sum(lens))
    assert off == len(message)
    ids = [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]
    items, begin = [], 0
    for count, verdict, hits, windows in entries:
        assert verdict == hits == 0
        assert sum(lens[:windows]) == count
        item = []
        for size in lens[:windows]:
            item.append(ids[begin : begin + size])
            begin += size
        del lens[:windows]
        items.append(item)
    return items


def read_table(message: bytes, item_count: int) -> list[tuple[int, int]]:
    assert len(message) >= 8 + 8 * item_count
    table = []
    for count, verdict, reserved in struct.iter_unpack("<IB3s", message[8 : 8 + 8 * item_count]):
        assert reserved == bytes(3)
        assert verdict == 0 or count == 0
        table.append((count, verdict))
    return table


def take(message: bytes, off: int, data_len: int) -> tuple[bytes, int]:
    """`data_len` bytes and where their padding ends; the padding must be zero."""
    end = off + data_len
    padded_end = end + -data_len % 8
    assert padded_end <= len(message) and not any(message[end:padded_end])
    return message[off:end], padded_end
