"""What a server of PTK1 may answer to any datagram: a second reading of native/gen/WIRE.md.

    judged = judge(datagram, server, seal)     # before any state: refusal, silence, or what it asks
    items = answer(asked, tokenizer)           # the exact reply message, where it is simple

It shares the tables of constants with the server and no code. State (messages in segments, cookies,
keys) is the machine's, in wire_machine.py.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

from pintok import _wire
from pintok._wire import Verdict, WireFlags, WireOp, WireOptions, WireOutputs, WireType
from pintok.errors import RefusedError
from pintok.tokenizer import Tokenizer

HEADER_LEN = _wire.WIRE_HEADER_LEN
FLAGS_ALL = 0x37
BATCHES = (WireOp.ENCODE, WireOp.COUNT, WireOp.DECODE, WireOp.DECODE_STEP)
ENCODE_OPTIONS = 0x7FF & ~int(WireOptions.SKIP_SPECIAL_TOKENS)
COUNT_OPTIONS = ENCODE_OPTIONS & ~int(WireOptions.OFFSETS_CHARS | WireOptions.OVERFLOW)
SIMPLE_OPTIONS = int(WireOptions.ADD_SPECIAL_TOKENS | WireOptions.PARSE_SPECIAL)
WIDTHS = {1: 2, 2: 3, 3: 4}


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header, of whichever datagram."""

    magic: int
    version_type: int
    flags: int
    message_len: int
    request_id: int
    segment_idx: int
    segment_len: int
    model_id: int
    op: int
    verdict: int
    model_tag: int
    message_crc: int

    @property
    def type(self) -> int:
        return self.version_type & 15

    def pack(self) -> bytes:
        return _wire.WIRE_HEADER.pack(*dataclasses.astuple(self))


def header_of(datagram: bytes) -> Header:
    return Header(*_wire.WIRE_HEADER.unpack_from(datagram))


def extensions_len(flags: int) -> int:
    return 16 * (flags & 1) + 16 * (flags & 2) + 4 * (flags & 4)


def has_extensions(datagram: bytes) -> bool:
    """Whether limits, keys and cookies are judged: the bytes are a client's of this version."""
    if len(datagram) < HEADER_LEN or datagram[:2] != b"PT" or datagram[2] not in (0x11, 0x14, 0x15):
        return False
    flags = datagram[3]
    return not flags & ~FLAGS_ALL and len(datagram) - HEADER_LEN >= extensions_len(flags)


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """What is known of the server: its models by slot as tags, and its bounds."""

    tags: dict[int, int]
    ids_end: int
    name_len: int
    message_len_max: int


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A datagram that is right in itself."""

    header: Header
    body: bytes
    """The message, the segment, or window and words of a pull."""


SILENCE = "silence"
Judged = Verdict | str | Asked


def judge(datagram: bytes) -> Judged:
    """The first thing that is wrong: a verdict, or SILENCE; else what is asked."""
    if len(datagram) < HEADER_LEN or datagram[:2] != b"PT":
        return SILENCE
    head = header_of(datagram)
    if head.type in (WireType.REPLY, WireType.NEED):
        return SILENCE
    if head.version_type >> 4 != _wire.WIRE_VERSION:
        return Verdict.BAD_VERSION
    if head.type not in (WireType.REQUEST, WireType.PULL, WireType.CANCEL):
        return Verdict.BAD_TYPE
    if head.flags & ~FLAGS_ALL or head.verdict:
        return Verdict.BAD_FLAGS
    if not head.flags & WireFlags.CRC and head.message_crc:
        return Verdict.BAD_FLAGS
    body = datagram[HEADER_LEN + extensions_len(head.flags) :]
    whole = len(datagram) - HEADER_LEN >= extensions_len(head.flags)
    if head.type == WireType.REQUEST and head.segment_len == 0:
        return _judge_request(head, body, whole)
    if not whole:
        return Verdict.BAD_LENGTH
    if head.flags & WireFlags.PREFIX:
        return Verdict.UNSUPPORTED
    if head.type == WireType.REQUEST:
        return _judge_segment(head, body)
    return _judge_control(head, body)


def _judge_request(head: Header, body: bytes, whole: bool) -> Judged:
    if head.message_len > _wire.WIRE_MESSAGE_LEN_MAX or not whole:
        return Verdict.BAD_LENGTH
    if head.segment_idx or head.flags & WireFlags.LAST_FLIGHT:
        return Verdict.BAD_FLAGS
    if len(body) != head.message_len:
        return Verdict.BAD_LENGTH
    if head.flags & WireFlags.PREFIX:
        return Verdict.UNSUPPORTED
    if head.flags & WireFlags.CRC and crc32c(body) != head.message_crc:
        return Verdict.BAD_CRC
    if head.op in (WireOp.PREFIX_PUT, WireOp.PREFIX_DROP):
        return Verdict.UNSUPPORTED
    if head.op not in (WireOp.PING, WireOp.INFO, WireOp.SETTINGS, *BATCHES):
        return Verdict.BAD_OP
    return Asked(head, body)


def _judge_segment(head: Header, body: bytes) -> Judged:
    if not head.flags & WireFlags.CRC:
        return Verdict.BAD_FLAGS
    each = head.segment_len
    if (
        not 0 < head.message_len <= _wire.WIRE_MESSAGE_LEN_MAX
        or each < _wire.WIRE_SEGMENT_LEN_MIN
        or each % 8
        or head.segment_idx * each >= head.message_len
        or len(body) != min(each, head.message_len - head.segment_idx * each)
    ):
        return Verdict.BAD_LENGTH
    if head.op in BATCHES:
        return Asked(head, body)
    if head.op in (WireOp.PING, WireOp.INFO, WireOp.SETTINGS):
        return Verdict.BAD_OPTION
    known = head.op in (WireOp.PREFIX_PUT, WireOp.PREFIX_DROP)
    return Verdict.UNSUPPORTED if known else Verdict.BAD_OP


def _judge_control(head: Header, body: bytes) -> Judged:
    cancel = head.type == WireType.CANCEL
    if head.flags & (WireFlags.CRC | WireFlags.LAST_FLIGHT) or (cancel and head.segment_idx):
        return Verdict.BAD_FLAGS
    if head.message_len or head.segment_len:
        return Verdict.BAD_LENGTH
    if cancel:
        return Verdict.BAD_LENGTH if body else Asked(head, body)
    if len(body) < 8:
        return Verdict.BAD_LENGTH
    _, words, state, reserved = struct.unpack_from("<HBBI", body)
    if state or reserved:
        return Verdict.BAD_FLAGS
    if words > _wire.WIRE_WINDOW_WORDS_MAX or len(body) != 8 + 8 * words:
        return Verdict.BAD_LENGTH
    return Asked(head, body)


# --- the message ---------------------------------------------------------------------------------


class _Reader:
    """Takes fields off a message; raises _Wrong with the verdict of the first bad one."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.off = 0

    def take(self, length: int) -> bytes:
        if len(self.data) - self.off < length:
            raise _Wrong(Verdict.BAD_LENGTH)
        self.off += length
        return self.data[self.off - length : self.off]

    def table(self, length: int) -> bytes:
        data = self.take(length + -length % 8)
        _want(not any(data[length:]), Verdict.BAD_FLAGS)
        return data[:length]


class _Wrong(Exception):
    pass


def _want(condition: bool, verdict: Verdict) -> None:
    if not condition:
        raise _Wrong(verdict)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A message of encode, count, decode or decode_step."""

    op: int
    id_format: int
    outputs: int
    options: int
    item_count: int
    reply_len_max: int
    items: list[bytes]
    """The texts, or the ids, of each item."""

    @property
    def tables_len(self) -> int:
        steps = 4 * self.item_count if self.op == WireOp.DECODE_STEP else 0
        return 8 + 8 * self.item_count + steps + -steps % 8


def read_batch(op: int, message: bytes) -> Batch | Verdict:
    """The parts of a batch, or the verdict of the first one that is wrong."""
    try:
        return _read_batch(op, _Reader(message))
    except _Wrong as wrong:
        verdict: Verdict = wrong.args[0]
        return verdict


def _check_prelude(op: int, id_format: int, outputs: int, options: int, count: int) -> None:
    ids_in = op in (WireOp.DECODE, WireOp.DECODE_STEP)
    _want(not outputs & ~15 and not options & ~0x7FF, Verdict.BAD_FLAGS)
    _want(id_format <= 4, Verdict.BAD_OPTION)
    if op == WireOp.COUNT:
        _want(id_format == 0, Verdict.BAD_OPTION)
    _want(not (ids_in and id_format == 0), Verdict.BAD_OPTION)
    _want(id_format != 4, Verdict.UNSUPPORTED)
    allowed = {WireOp.ENCODE: ENCODE_OPTIONS, WireOp.COUNT: COUNT_OPTIONS}.get(
        WireOp(op), int(WireOptions.SKIP_SPECIAL_TOKENS)
    )
    _want(not options & ~allowed and (op == WireOp.ENCODE or not outputs), Verdict.BAD_OPTION)
    for option, needed in (
        (options & WireOptions.OFFSETS_CHARS, outputs & WireOutputs.OFFSETS),
        (outputs & WireOutputs.OFFSETS_SHORT, outputs & WireOutputs.OFFSETS),
        (options & WireOptions.ENCODE_SPECIAL_TOKENS, options & WireOptions.PARSE_SPECIAL),
        (options & WireOptions.OVERFLOW, options & WireOptions.TRUNCATION),
    ):
        _want(not option or bool(needed), Verdict.BAD_OPTION)
    _want(0 < count <= _wire.WIRE_ITEMS_MAX, Verdict.BAD_ITEMS)


def _read_ranges(reader: _Reader, lengths: list[int]) -> None:
    counts = struct.unpack(f"<{len(lengths)}I", reader.table(4 * len(lengths)))
    _want(sum(counts) <= _wire.WIRE_RANGES_MAX, Verdict.BAD_ITEMS)
    ranges = iter(list(struct.iter_unpack("<II", reader.table(8 * sum(counts)))))
    for count, length in zip(counts, lengths, strict=True):
        end = 0
        for _ in range(count):
            begin, packed = next(ranges)
            inside = begin >= end and packed >> 1 > 0 and begin + (packed >> 1) <= length
            _want(inside, Verdict.BAD_LENGTH)
            end = begin + (packed >> 1)


def _read_batch(op: int, reader: _Reader) -> Batch:
    id_format, outputs, options, count, reply_len_max = struct.unpack("<BBHHH", reader.take(8))
    _check_prelude(op, id_format, outputs, options, count)
    if options & WireOptions.TRUNCATION:
        strategy, direction, *reserved = reader.take(16)[8:]
        _want(not any(reserved), Verdict.BAD_FLAGS)
        _want(strategy <= 2 and direction <= 1, Verdict.BAD_OPTION)
    texts = 2 if options & WireOptions.PAIR else 1
    if op == WireOp.DECODE_STEP:
        steps = list(struct.iter_unpack("<4H", reader.table(8 * count)))
        for ids, given, new, flags in steps:
            _want(not flags & ~1, Verdict.BAD_FLAGS)
            _want(given + new <= ids, Verdict.BAD_LENGTH)
        lengths = [step[0] for step in steps]
    else:
        each = struct.unpack(f"<{texts * count}I", reader.table(4 * texts * count))
        lengths = [sum(each[at : at + texts]) for at in range(0, len(each), texts)]
    if options & WireOptions.RANGES:
        _read_ranges(reader, lengths)
    if op in (WireOp.DECODE, WireOp.DECODE_STEP):
        lengths = [length * WIDTHS[id_format] for length in lengths]
    rest = len(reader.data) - reader.off
    _want(sum(lengths) + -sum(lengths) % 8 == rest, Verdict.BAD_LENGTH)
    data = reader.table(sum(lengths))
    items, at = [], 0
    for length in lengths:
        items.append(data[at : at + length])
        at += length
    return Batch(op, id_format, outputs, options, count, reply_len_max, items)


def narrowest(ids_end: int) -> int:
    return 1 if ids_end <= 1 << 16 else 2 if ids_end <= 1 << 24 else 3


def exact_reply(batch: Batch, tokenizer: Tokenizer, ids_end: int) -> bytes | None:
    """The message that answers a simple batch without any limit of length; None for others."""
    if batch.outputs or batch.options & ~SIMPLE_OPTIONS or batch.op == WireOp.DECODE_STEP:
        return None
    width = WIDTHS[batch.id_format or narrowest(ids_end)]
    table, data = b"", b""
    for item in batch.items:
        count, part, verdict = _exact_item(batch, item, width, tokenizer)
        table += struct.pack("<IBBH", count, verdict, 0, 0)
        data += part
    id_format = (batch.id_format or narrowest(ids_end)) if batch.op == WireOp.ENCODE else 0
    head = struct.pack("<BBHI", id_format, 0, batch.item_count, 0)
    return head + table + data + bytes(-len(data) % 8)


def _exact_item(
    batch: Batch, item: bytes, width: int, tokenizer: Tokenizer
) -> tuple[int, bytes, int]:
    """Count, bytes behind the table, and verdict of one item."""
    if batch.op == WireOp.DECODE:
        ids = [int.from_bytes(item[i : i + width], "little") for i in range(0, len(item), width)]
        text = tokenizer.decode(ids).encode()
        return len(text), text, 0
    try:
        ids = tokenizer.encode(
            item,
            add_special_tokens=bool(batch.options & WireOptions.ADD_SPECIAL_TOKENS),
            parse_special="all" if batch.options & WireOptions.PARSE_SPECIAL else "none",
        ).tolist()
    except RefusedError as refused:
        return 0, b"", int(refused.verdict)
    if batch.op == WireOp.COUNT:
        return len(ids), b"", 0
    return len(ids), b"".join(i.to_bytes(width, "little") for i in ids), 0


# --- what an answer may be -----------------------------------------------------------------------

Check = Callable[[bytes], bool]
"""Whether the message of an answer is right."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A message that answers: what it may be, and the largest datagram that may carry it."""

    right: Check
    datagram_len_max: int


def settle(
    asked: Asked, server: Server, tokenizer: Tokenizer, *, room: int, stated: int
) -> Verdict | Answer:
    """What a message is answered with.

    `room` is what the link carries, `stated` the length of the request: what a client accepts
    that says nothing else.
    """
    head, message = asked.header, asked.body
    if head.op == WireOp.PING:
        if head.model_id or head.model_tag:
            return Verdict.BAD_OPTION
        return Answer(lambda got: got == message, room)
    tag = server.tags.get(head.model_id)
    if tag is None:
        return Verdict.UNKNOWN_MODEL
    if head.model_tag not in (0, tag):
        return Verdict.MODEL_CHANGED
    if head.op in (WireOp.INFO, WireOp.SETTINGS):
        if len(message) % 8:
            return Verdict.BAD_LENGTH
        if any(message):
            return Verdict.BAD_FLAGS
        name = server.name_len + -server.name_len % 8
        length = _wire.WIRE_INFO.size + name if head.op == WireOp.INFO else 40
        if length > len(message):
            return Verdict.REPLY_TOO_LONG
        return Answer(lambda got: len(got) == length, room)
    batch = read_batch(head.op, message)
    if isinstance(batch, Verdict):
        return batch
    too_narrow = 0 < batch.id_format < narrowest(server.ids_end)
    if head.op == WireOp.ENCODE and too_narrow:
        return Verdict.BAD_FORMAT
    if head.segment_len and batch.outputs & WireOutputs.OFFSETS_SHORT:
        if sum(map(len, batch.items)) > 0xFFFF:
            return Verdict.BAD_OPTION
    return _settle_batch(batch, server, tokenizer, room=room, stated=stated, head=head)


def _settle_batch(
    batch: Batch, server: Server, tokenizer: Tokenizer, *, room: int, stated: int, head: Header
) -> Verdict | Answer:
    datagram_len_max = min(batch.reply_len_max or stated, room)
    exact = exact_reply(batch, tokenizer, server.ids_end)
    if head.segment_len:
        cap = _wire.WIRE_MESSAGE_LEN_MAX
    else:
        cap = datagram_len_max - HEADER_LEN
        if cap < batch.tables_len:
            return Verdict.REPLY_TOO_LONG

    def right(got: bytes) -> bool:
        if exact is not None and len(exact) <= cap:
            return got == exact
        return len(got) <= cap and _is_reply(batch, got, exact)

    return Answer(right, datagram_len_max)


def _is_reply(batch: Batch, got: bytes, exact: bytes | None) -> bool:
    """Whether the tables agree with the request; each item is as it must be, or too long."""
    if len(got) < batch.tables_len or len(got) % 8 or got[4:8] != bytes(4):
        return False
    outputs, item_count = struct.unpack_from("<BH", got, 1)
    if item_count != batch.item_count or outputs & ~batch.outputs:
        return False
    for at in range(batch.item_count):
        count, verdict = struct.unpack_from("<IB", got, 8 + 8 * at)
        if verdict and count:
            return False
        if exact is not None:
            wanted = struct.unpack_from("<IB", exact, 8 + 8 * at)
            if (count, verdict) != wanted and verdict != Verdict.REPLY_TOO_LONG:
                return False
    return True
