"""Bytes of PTK1 datagrams: builds requests, parses replies. No socket, no state.

`pintok._wire` holds the numbers; `native/gen/WIRE.md` is the reference. Parsing trusts nothing: a
reply whose parts contradict each other raises MalformedReply, and a datagram that is no reply to
this request is told apart by `reply_id` and `parse_reply` returning None.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from pintok import _wire
from pintok._wire import (
    IdFormat,
    Verdict,
    WireFlags,
    WireOp,
    WireOptions,
    WireOutputs,
    WireSettingsFlags,
)
from pintok.encoding import Direction, Ids, Padding, Strategy, Truncation
from pintok.errors import TransportError

try:
    from pintok import _native
except ImportError:  # the network client works without the core
    _native = None  # type: ignore[assignment]

VERSION_REQUEST: Final = _wire.WIRE_VERSION << 4 | _wire.WireType.REQUEST
VERSION_REPLY: Final = _wire.WIRE_VERSION << 4 | _wire.WireType.REPLY
HEADER: Final = _wire.WIRE_HEADER
HEADER_LEN: Final = _wire.WIRE_HEADER_LEN
PRELUDE: Final = _wire.WIRE_REQUEST
PRELUDE_LEN: Final = PRELUDE.size
ITEM_LEN: Final = _wire.WIRE_ITEM.size
NONE_ID: Final = 0xFFFFFFFF

# Header, prelude and item table of a request with one item.
_ONE_ITEM: Final = struct.Struct("<HBBIQHHHBBII" + "BBHHH" + "II")
ONE_ITEM_LEN: Final = _ONE_ITEM.size
_ENCODE: Final = int(WireOp.ENCODE)
# Plain integers: bit arithmetic on enum flags costs a microsecond each.
_CRC: Final = int(WireFlags.CRC)
_COOKIE = int(WireFlags.COOKIE)
_BUSY: Final = int(Verdict.BUSY)
_CHALLENGES = frozenset({int(Verdict.CHALLENGE), int(Verdict.BAD_COOKIE)})
_OFFSETS: Final = int(WireOutputs.OFFSETS)
_OFFSETS_SHORT: Final = int(WireOutputs.OFFSETS_SHORT)
_TYPE_IDS: Final = int(WireOutputs.TYPE_IDS)
_SPECIAL_TOKENS_MASK: Final = int(WireOutputs.SPECIAL_TOKENS_MASK)
_OVERFLOW: Final = int(WireOptions.OVERFLOW)
_RANGES: Final = int(WireOptions.RANGES)
STRATEGIES: Final[tuple[Strategy, ...]] = ("longest_first", "only_first", "only_second")
DIRECTIONS: Final[tuple[Direction, ...]] = ("right", "left")
"""Their places are the values of wire_strategy and wire_direction."""
_PADDING: Final = tuple(bytes(-n % 8) for n in range(8))
_REQUEST_ID: Final = struct.Struct("<8xQ")
_ID_LENS: Final[dict[int, int]] = {IdFormat.U16: 2, IdFormat.U24: 3, IdFormat.U32: 4}
_OUTCOME: Final = np.dtype(
    [("count", "<u4"), ("verdict", "u1"), ("hits", "u1"), ("window_count", "<u2")]
)


class MalformedReply(TransportError):
    """A reply to our request whose parts contradict each other."""

    code = "malformed_reply"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What the requests of one call have in common."""

    op: WireOp
    options: int = 0
    outputs: int = 0
    id_format: int = IdFormat.AUTO
    truncation: bytes = b""
    """A wire_truncation, when `options` announces one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Whom the requests of a client name, and what they accept as replies."""

    model_id: int = 0
    model_tag: int = _wire.WIRE_ANY_MODEL_TAG
    reply_len_max: int = 0
    checksum: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A verified reply header and its message: of a challenge, the cookie."""

    request_id: int
    model_id: int
    model_tag: int
    op: int
    verdict: int
    message: memoryview
    pause: float = 0.0
    """Of a refusal with busy: seconds after which to try again, where the server says so."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """One item of an answer; the arrays are copies, free of the datagram."""

    verdict: int
    count: int = 0
    ids: Ids | None = None
    offsets: npt.NDArray[np.uint32] | None = None
    type_ids: npt.NDArray[np.uint8] | None = None
    special_tokens_mask: npt.NDArray[np.uint8] | None = None
    text: str | None = None
    hits: int = 0
    """Tokens left as ordinary text because of ranges; 255 stands for more, too."""
    windows: tuple[int, ...] = ()
    """With overflow: how many ids each window has, in the order of the ids."""
    dropped_count: int = 0
    """Of a step: ids that leave the window."""
    given_count: int = 0
    """Of a step: ids that are context afterwards."""


# --- requests ---------------------------------------------------------------------------------


def build_one(options: int, target: Target, request_id: int, text: bytes) -> bytes:
    """An encode of one text to ids alone: as `build_batch` without checksum, byte for byte."""
    text_len = len(text)
    head = _ONE_ITEM.pack(
        _wire.WIRE_MAGIC,
        VERSION_REQUEST,
        0,
        PRELUDE_LEN + 8 + (text_len + 7 & ~7),
        request_id,
        0,
        0,
        target.model_id,
        _ENCODE,
        0,
        target.model_tag,
        0,
        0,
        0,
        options,
        1,
        target.reply_len_max,
        text_len,
        0,
    )
    return head + text + _PADDING[text_len % 8]


def build_batch(
    call: Call,
    target: Target,
    request_id: int,
    item_count: int,
    lengths: Sequence[int],
    data: bytes,
    ranges: Sequence[bytes] = (),
) -> bytes:
    """A request of encode, count, decode or decode_step.

    `lengths` is the item table: bytes of each text (two per pair), ids of each list, or the two
    halves of each wire_step; `data` is what they measure, without padding. `ranges` has the
    wire_ranges of each item when the call's options announce them.
    """
    message = build_batch_message(call, target, item_count, lengths, data, ranges)
    return build_message(call.op, target, request_id, message)


def build_batch_message(
    call: Call,
    target: Target,
    item_count: int,
    lengths: Sequence[int],
    data: bytes,
    ranges: Sequence[bytes] = (),
) -> bytes:
    """The message of `build_batch`."""
    tables = [_padded_table(lengths)]
    if call.options & _RANGES:
        tables += [_padded_table([len(item) // 8 for item in ranges]), *ranges]
    return b"".join(
        (
            PRELUDE.pack(
                call.id_format, call.outputs, call.options, item_count, target.reply_len_max
            ),
            call.truncation,
            *tables,
            data,
            _PADDING[len(data) % 8],
        )
    )


def _padded_table(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values) + _PADDING[4 * len(values) % 8]


def build_message(op: int, target: Target, request_id: int, message: bytes) -> bytes:
    """A request with this message."""
    header = HEADER.pack(
        _wire.WIRE_MAGIC,
        VERSION_REQUEST,
        _CRC if target.checksum else 0,
        len(message),
        request_id,
        0,
        0,
        target.model_id,
        op,
        0,
        target.model_tag,
        crc32c(message) if target.checksum else 0,
    )
    return header + message


def build_info(target: Target, request_id: int) -> bytes:
    """An info request, with room for the longest name."""
    room = bytes(_wire.WIRE_INFO_REQUEST_LEN - HEADER_LEN)
    return build_message(WireOp.INFO, target, request_id, room)


def build_ids(ids: Ids, id_format: int) -> bytes:
    """Ids in a format of fixed width that holds each of them."""
    if id_format == IdFormat.U16:
        return ids.astype("<u2").tobytes()
    wide = ids.astype("<u4", copy=False)
    if id_format == IdFormat.U32:
        return wide.tobytes()
    return np.ascontiguousarray(wide).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def narrowest_format(largest_id: int) -> IdFormat:
    """The narrowest fixed-width format that holds this id."""
    if largest_id < 1 << 16:
        return IdFormat.U16
    return IdFormat.U24 if largest_id < 1 << 24 else IdFormat.U32


def batch_len(
    call: Call, lens_count: int, data_len: int, item_count: int = 1, ranges_len: int = 0
) -> int:
    """Bytes of the datagram that build_batch makes."""
    table_len = 4 * lens_count + 7 & ~7
    if call.options & _RANGES:
        table_len += (4 * item_count + 7 & ~7) + ranges_len
    return HEADER_LEN + PRELUDE_LEN + len(call.truncation) + table_len + (data_len + 7 & ~7)


# --- replies ----------------------------------------------------------------------------------


def any_id(datagram: bytes | memoryview) -> int | None:
    """The request id of a datagram that begins as PTK1's do."""
    if len(datagram) < HEADER_LEN or datagram[0] != 0x50 or datagram[1] != 0x54:
        return None
    request_id: int = _REQUEST_ID.unpack_from(datagram)[0]
    return request_id


def reply_id(datagram: bytes | memoryview) -> int | None:
    """The request that a datagram answers; None when it is not a PTK1 reply at all."""
    if (
        len(datagram) < HEADER_LEN
        or datagram[0] != _wire.WIRE_MAGIC & 0xFF
        or datagram[1] != _wire.WIRE_MAGIC >> 8
        or datagram[2] != VERSION_REPLY
    ):
        return None
    request_id: int = _REQUEST_ID.unpack_from(datagram)[0]
    return request_id


def parse_reply(datagram: bytes | memoryview, op: int) -> Reply | None:
    """The reply to a request of `op`, or None for a datagram that is damaged or of another kind."""
    if reply_id(datagram) is None:
        return None
    (
        _magic,
        _version,
        flags,
        message_len,
        request_id,
        segment_idx,
        segment_len,
        model_id,
        reply_op,
        verdict,
        model_tag,
        message_crc,
    ) = HEADER.unpack_from(datagram)
    if reply_op != op or segment_idx or segment_len:
        return None
    message = memoryview(datagram)[HEADER_LEN:]
    if flags == _COOKIE and verdict in _CHALLENGES and len(message) == _wire.WIRE_COOKIE.size:
        return Reply(request_id, model_id, model_tag, reply_op, verdict, message)
    if flags & ~_CRC:
        return None
    if len(message) != message_len:
        return None
    if flags and crc32c(message) != message_crc:
        return None
    pause = message_crc / 1e6 if verdict == _BUSY and not flags else 0.0
    return Reply(request_id, model_id, model_tag, reply_op, verdict, message, pause)


def parse_one_ids(message: memoryview) -> tuple[int, Ids | None]:
    """Verdict and ids of the answer to `build_one`: `parse_batch` for one item."""
    if len(message) < 16 or message[1] != 0 or message[2] != 1 or message[3] != 0:
        raise MalformedReply("the server's reply has another shape than the request")
    count, verdict = struct.unpack_from("<IB", message, 8)
    if verdict != Verdict.OK:
        return verdict, None
    id_format = message[0]
    id_len = _ID_LENS.get(id_format)
    if id_len is None or len(message) != 16 + (count * id_len + 7 & ~7):
        raise MalformedReply("the lengths in the server's reply contradict each other")
    return verdict, parse_ids(message, 16, count, id_format)


def parse_ids(message: memoryview, off: int, count: int, id_format: int) -> Ids:
    """`count` ids of a fixed-width format: a fresh uint32 array."""
    if id_format == IdFormat.U16:
        return np.frombuffer(message, "<u2", count, off).astype(np.uint32)
    if id_format == IdFormat.U32:
        return np.frombuffer(message, "<u4", count, off).astype(np.uint32)
    wide = np.zeros((count, 4), np.uint8)
    wide[:, :3] = np.frombuffer(message, np.uint8, 3 * count, off).reshape(count, 3)
    return wide.view("<u4").reshape(count)


def parse_batch(message: memoryview, call: Call, item_count: int) -> list[Outcome]:
    """The outcomes of an encode, count or decode answer, one per item of the request."""
    table_end = PRELUDE_LEN + ITEM_LEN * item_count
    if len(message) < table_end:
        raise MalformedReply("the server's reply is shorter than its item table")
    id_format, outputs, count_there, reserved = _wire.WIRE_REPLY.unpack_from(message)
    if count_there != item_count or outputs != call.outputs or reserved:
        raise MalformedReply("the server's reply has another shape than the request")
    table = np.frombuffer(message, _OUTCOME, item_count, PRELUDE_LEN)
    counts: list[int] = table["count"].tolist()
    verdicts: list[int] = table["verdict"].tolist()
    if any(count for count, verdict in zip(counts, verdicts, strict=True) if verdict):
        raise MalformedReply("a refused item of the server's reply has a count")
    hits: list[int] = table["hits"].tolist()
    if call.op == WireOp.COUNT:
        if len(message) != table_end:
            raise MalformedReply("the lengths in the server's reply contradict each other")
        rows = zip(verdicts, counts, hits, strict=True)
        return [Outcome(verdict, count, hits=hit) for verdict, count, hit in rows]
    if call.op == WireOp.DECODE:
        return _parse_texts(message, table_end, counts, verdicts)
    if call.op == WireOp.DECODE_STEP:
        return _parse_steps(message, table_end, counts, verdicts)
    windows: list[tuple[int, ...]] = [()] * item_count
    if call.options & _OVERFLOW:
        windows, table_end = _parse_windows(message, table_end, table["window_count"], counts)
    encodings = _parse_encodings(message, table_end, id_format, outputs, counts, verdicts)
    if not call.options & (_OVERFLOW | _RANGES):
        return encodings
    return [
        dataclasses.replace(encoding, hits=hit, windows=lens)
        for encoding, hit, lens in zip(encodings, hits, windows, strict=True)
    ]


def _parse_windows(
    message: memoryview, off: int, window_counts: npt.NDArray[np.uint16], counts: list[int]
) -> tuple[list[tuple[int, ...]], int]:
    """The lengths of every item's windows, and where they end."""
    total = int(window_counts.sum(dtype=np.int64))
    end = off + (4 * total + 7 & ~7)
    if len(message) < end:
        raise MalformedReply("the server's reply is shorter than its windows")
    lens: list[int] = np.frombuffer(message, "<u4", total, off).tolist()
    windows = []
    begin = 0
    for window_count, count in zip(window_counts.tolist(), counts, strict=True):
        windows.append(tuple(lens[begin : begin + window_count]))
        if sum(windows[-1]) != count:
            raise MalformedReply("the windows in the server's reply do not make up their item")
        begin += window_count
    return windows, end


def _parse_steps(
    message: memoryview, off: int, counts: list[int], verdicts: list[int]
) -> list[Outcome]:
    end = off + (4 * len(counts) + 7 & ~7)
    if len(message) < end:
        raise MalformedReply("the server's reply is shorter than its item table")
    states = np.frombuffer(message, "<u2", 2 * len(counts), off).reshape(-1, 2).tolist()
    return [
        dataclasses.replace(outcome, dropped_count=dropped, given_count=given)
        for outcome, (dropped, given) in zip(
            _parse_texts(message, end, counts, verdicts), states, strict=True
        )
    ]


def _parse_texts(
    message: memoryview, off: int, counts: list[int], verdicts: list[int]
) -> list[Outcome]:
    if len(message) != (off + sum(counts) + 7 & ~7):
        raise MalformedReply("the lengths in the server's reply contradict each other")
    outcomes = []
    for count, verdict in zip(counts, verdicts, strict=True):
        text = None
        if verdict == Verdict.OK:
            try:
                text = str(message[off : off + count], "utf-8")
            except UnicodeDecodeError:
                raise MalformedReply("the server's text is not UTF-8") from None
        outcomes.append(Outcome(verdict, count, text=text))
        off += count
    return outcomes


def _parse_encodings(
    message: memoryview,
    off: int,
    id_format: int,
    outputs: int,
    counts: list[int],
    verdicts: list[int],
) -> list[Outcome]:
    total = sum(counts)
    id_len = _ID_LENS.get(id_format)
    if id_len is None:
        raise MalformedReply(f"the server's reply has ids in the undefined format {id_format}")
    padded = total + 7 & ~7
    ids_off, off = off, off + (total * id_len + 7 & ~7)
    offset_code, offset_len = ("<u2", 4) if outputs & _OFFSETS_SHORT else ("<u4", 8)
    offsets_off, off = off, off + (offset_len * total + 7 & ~7 if outputs & _OFFSETS else 0)
    types_off, off = off, off + (padded if outputs & _TYPE_IDS else 0)
    mask_off, off = off, off + (padded if outputs & _SPECIAL_TOKENS_MASK else 0)
    if len(message) != off:
        raise MalformedReply("the lengths in the server's reply contradict each other")

    ids = parse_ids(message, ids_off, total, id_format)
    offsets = types = mask = None
    if outputs & _OFFSETS:
        offsets = np.frombuffer(message, offset_code, 2 * total, offsets_off).astype(np.uint32)
        offsets = offsets.reshape(total, 2)
    if outputs & _TYPE_IDS:
        types = np.frombuffer(message, np.uint8, total, types_off).copy()
    if outputs & _SPECIAL_TOKENS_MASK:
        mask = np.frombuffer(message, np.uint8, total, mask_off).copy()
    outcomes = []
    begin = 0
    for count, verdict in zip(counts, verdicts, strict=True):
        rows = slice(begin, begin + count)
        begin += count
        if verdict != Verdict.OK:
            outcomes.append(Outcome(verdict))
            continue
        outcomes.append(
            Outcome(
                verdict,
                count,
                ids=ids[rows],
                offsets=None if offsets is None else offsets[rows],
                type_ids=None if types is None else types[rows],
                special_tokens_mask=None if mask is None else mask[rows],
            )
        )
    return outcomes


def build_settings(target: Target, request_id: int) -> bytes:
    """A settings request, with room for the reply."""
    return build_message(WireOp.SETTINGS, target, request_id, bytes(_wire.WIRE_SETTINGS.size))


@dataclasses.dataclass(frozen=True, slots=True)
class FileSettings:
    """What a model's own file sets; used only where it is asked for."""

    truncation: Truncation | None
    padding: Padding | None


def parse_settings(reply: Reply) -> FileSettings:
    """The settings of a settings reply."""
    message = reply.message
    if len(message) != _wire.WIRE_SETTINGS.size:
        raise MalformedReply("the server's settings have another length")
    fields = dict(
        zip(_wire.WIRE_SETTINGS_FIELDS, _wire.WIRE_SETTINGS.unpack_from(message), strict=True)
    )
    flags = fields["flags"]
    truncation = padding = None
    try:
        if flags & WireSettingsFlags.TRUNCATION:
            truncation = Truncation(
                fields["truncation_max"],
                fields["truncation_stride"],
                strategy=STRATEGIES[fields["truncation_strategy"]],
                direction=DIRECTIONS[fields["truncation_direction"]],
            )
        if flags & WireSettingsFlags.PADDING:
            fixed = flags & WireSettingsFlags.PADDING_FIXED
            padding = Padding(
                direction=DIRECTIONS[fields["padding_direction"]],
                pad_id=fields["padding_id"],
                pad_type_id=fields["padding_type_id"],
                length=fields["padding_len"] if fixed else None,
                pad_to_multiple_of=fields["padding_multiple"] or None,
            )
    except IndexError:
        raise MalformedReply("the server's settings have an undefined value") from None
    return FileSettings(truncation, padding)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server says about one of its models."""

    model_id: int
    name: str
    tag: int
    """Changes with the model; every reply carries it."""
    fingerprint: str
    """SHA-256 over everything that decides the ids, in hex."""
    ids_end: int
    """Largest id plus one."""
    vocab_len: int
    """Ids in use, added tokens included."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    message_len_max: int
    """Largest message the server accepts, in bytes."""
    datagram_len_max: int
    """Largest UDP payload the server accepts and sends, in bytes."""
    ops: frozenset[str]
    id_formats: frozenset[str]
    models_end: int
    """Largest model id in use plus one."""
    source: int
    """The format the model was compiled from: a value of the image's `image_source`."""


def parse_info(reply: Reply) -> ModelInfo:
    """The model an info reply describes."""
    message = reply.message
    if len(message) < _wire.WIRE_INFO.size:
        raise MalformedReply("the server's info is too short")
    fields = dict(zip(_wire.WIRE_INFO_FIELDS, _wire.WIRE_INFO.unpack_from(message), strict=True))
    name = bytes(message[fields["name_off"] : fields["name_off"] + fields["name_len"]])
    if len(name) != fields["name_len"]:
        raise MalformedReply("the name in the server's info is cut off")
    return ModelInfo(
        model_id=reply.model_id,
        name=name.decode("utf-8", "replace"),
        tag=reply.model_tag,
        fingerprint=fields["fingerprint"].hex(),
        ids_end=fields["ids_end"],
        vocab_len=fields["vocab_len"],
        bos_id=_optional(fields["bos_id"]),
        eos_id=_optional(fields["eos_id"]),
        pad_id=_optional(fields["pad_id"]),
        unk_id=_optional(fields["unk_id"]),
        message_len_max=fields["message_len_max"],
        datagram_len_max=fields["datagram_len_max"],
        ops=frozenset(op.name.lower() for op in WireOp if fields["ops"] >> op & 1),
        id_formats=frozenset(f.name.lower() for f in IdFormat if fields["id_formats"] >> f & 1),
        models_end=fields["models_end"],
        source=fields["source"],
    )


def _optional(token_id: int) -> int | None:
    return None if token_id == NONE_ID else token_id


# --- checksum ---------------------------------------------------------------------------------


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC32C_TABLE: Final = _crc32c_table()


def crc32c_python(data: bytes | memoryview) -> int:
    """CRC32C (Castagnoli) of the bytes; about 0.1 us a byte. The definition of `crc32c`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


crc32c: Final[Callable[[bytes | memoryview], int]] = (
    crc32c_python if _native is None else _native.crc32c
)
"""CRC32C of the bytes: by the native core where it is built."""
