"""Messages in segments: what every server of PTK1 does with them.

The reference is the same server's answer to the same message in one datagram.
"""

from __future__ import annotations

import struct
import time

import pytest

from tests.conformance.peer import (
    HEADER,
    OPS,
    VERDICTS,
    Info,
    Peer,
    crc32c,
    id_lists,
    patched,
    read_encoding,
    request,
    steps,
    texts,
)

REQUEST, REPLY, NEED, PULL, CANCEL = 0x11, 0x12, 0x13, 0x14, 0x15
CRC, LAST = 16, 32
SEGMENT_LEN = 1024
WORKING = 1
UNKNOWN_REQUEST = VERDICTS["unknown_request"]

_ids = iter(range(int(time.time() * 1e6), 1 << 63))


def segment(
    message: bytes, request_id: int, index: int, *, last: bool = False, op: int = 3, crc: int = -1
) -> bytes:
    """Segment `index` of an encode."""
    announced = crc32c(message) if crc < 0 else crc
    flags = CRC | (LAST if last else 0)
    head = (0x5450, REQUEST, flags, len(message), request_id, index, SEGMENT_LEN, 0, op, 0, 0)
    part = message[index * SEGMENT_LEN : (index + 1) * SEGMENT_LEN]
    return HEADER.pack(*head, announced) + part


def control(kind: int, request_id: int, payload: bytes = b"", base: int = 0) -> bytes:
    return HEADER.pack(0x5450, kind, 0, 0, request_id, base, 0, 0, 3, 0, 0, 0) + payload


def pull(request_id: int, missing: int, grant: int = 64) -> bytes:
    """Asks for the segments whose bits are set, of the first 64."""
    return control(PULL, request_id, struct.pack("<HBBIQ", grant, 1, 0, 0, missing))


def receive(peer: Peer, request_id: int, seconds: float = 1.0) -> list[tuple[list[int], bytes]]:
    """Header fields and payload of what comes for a request, until it is quiet."""
    found = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        datagram = peer.receive(min(left, 0.3 if found else left))
        if datagram is None:
            break
        fields = list(HEADER.unpack_from(datagram))
        if fields[4] == request_id:
            found.append((fields, datagram[32:]))
    return found


def long_message() -> bytes:
    """Three segments and a bit, whose reply has several as well."""
    return texts([[b"ab cd! " * 460]], outputs=1, reply_len_max=1056)


def answer(peer: Peer, request_id: int) -> bytes:
    """The whole reply, with pulls for what has not come."""
    parts: dict[int, bytes] = {}
    count = 0
    for _ in range(20):
        for fields, payload in receive(peer, request_id):
            if fields[1] != REPLY:
                continue
            assert fields[9] == 0 and fields[2] == CRC and fields[6] % 8 == 0
            each = fields[6] or fields[3]
            count = -(-fields[3] // each)
            assert len(payload) == min(each, fields[3] - fields[5] * each)
            assert len(payload) + 32 <= 1056
            parts[fields[5]] = payload
            crc = fields[11]
        if count and len(parts) == count:
            message = b"".join(parts[index] for index in range(count))
            assert crc32c(message) == crc
            return message
        missing = sum(1 << i for i in range(min(count or 64, 64)) if i not in parts)
        peer.send(pull(request_id, missing))
    raise AssertionError("the reply does not become complete")


@pytest.fixture
def message(client: Peer) -> bytes:
    """A message in segments; the test is skipped where the server has none."""
    wanted = long_message()
    client.send(segment(wanted, request_id := next(_ids), 0, last=True))
    if any(fields[9] == 15 for fields, _ in receive(client, request_id)):
        pytest.skip("this server does not offer segments")
    client.send(control(CANCEL, request_id))
    return wanted


def send_all(peer: Peer, message: bytes, request_id: int, order: list[int], *, op: int = 3) -> None:
    for at, index in enumerate(order):
        peer.send(segment(message, request_id, index, last=at == len(order) - 1, op=op))


def with_ranges(message: bytes, count: int) -> bytes:
    """The message of one text with so many ranges of two bytes of ordinary text."""
    table = struct.pack("<II", count, 0)
    ranges = b"".join(struct.pack("<II", 4 * at, 2 << 1) for at in range(count))
    options = int.from_bytes(message[2:4], "little") | 1024
    return patched(message[:16] + table + ranges + message[16:], 2, *options.to_bytes(2, "little"))


def every_operation() -> dict[str, tuple[str, bytes]]:
    """Messages of several segments, of each operation and each part that makes them long."""
    text = b"ab cd! " * 400
    ids = [65 + at % 26 for at in range(900)]
    return {
        "encode": ("encode", texts([[text], [b"ab"]], reply_len_max=1056)),
        "pairs": ("encode", texts([[text, b"end"]], reply_len_max=1056)),
        "ranges": ("encode", with_ranges(texts([[text]], reply_len_max=1056), 600)),
        "count": ("count", texts([[text]], reply_len_max=1056)),
        "decode": ("decode", id_lists([ids, ids[:7]], id_format=3, reply_len_max=1056)),
        "steps": (
            "decode_step",
            steps(
                [(ids[at : at + 3], 0, 3, at % 2) for at in range(250)],
                id_format=3,
                reply_len_max=1056,
            ),
        ),
    }


@pytest.mark.parametrize("name", every_operation())
def test_every_operation_travels_in_segments(client: Peer, message: bytes, name: str) -> None:
    """The answer is that of the same message, or of its parts, in one datagram each."""
    op, long = every_operation()[name]
    request_id = next(_ids)
    send_all(client, long, request_id, list(range(-(-len(long) // SEGMENT_LEN))), op=OPS[op])
    got = answer(client, request_id)
    client.send(control(CANCEL, request_id))
    item_count = struct.unpack_from("<H", got, 2)[0]
    assert item_count == struct.unpack_from("<H", long, 4)[0]
    items = [struct.unpack_from("<IB", got, 8 + 8 * at) for at in range(item_count)]
    assert all(verdict == 0 for _, verdict in items)
    if op == "encode" and name != "pairs":
        short = texts([[b"ab cd! " * 40]], reply_len_max=1400)
        once = read_encoding(client.ask(request("encode", short)), 1)[0]
        assert items[0][0] > 5 * once.count > 0
    if op == "decode":
        text_off = 8 + 8 * item_count
        short_list = id_lists([[65 + at for at in range(7)]], id_format=3, reply_len_max=1400)
        reply = client.ask(request("decode", short_list)).message
        first, second = items[0][0], items[1][0]
        assert got[text_off + first :][:second] == reply[16 : 16 + second]


def test_ids_of_a_long_text_are_those_of_a_short_one(client: Peer, message: bytes) -> None:
    """A text that fits a datagram has the same ids in segments, with others beside it."""
    texts_here = [b"Hello, world!", b"ab cd! " * 60, "größer".encode()]
    body = texts([[each] for each in [*texts_here, b"x y " * 800]], reply_len_max=1056)
    request_id = next(_ids)
    send_all(client, body, request_id, list(range(-(-len(body) // SEGMENT_LEN))))
    got = answer(client, request_id)
    client.send(control(CANCEL, request_id))
    width = {1: 2, 2: 3, 3: 4}[got[0]]
    at = 8 + 8 * 4
    for place, text in enumerate(texts_here):
        count = struct.unpack_from("<I", got, 8 + 8 * place)[0]
        data = got[at : at + width * count]
        ids = [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]
        once = read_encoding(client.ask(request("encode", texts([[text]]))), 1)[0]
        assert ids == once.ids
        at += width * count


def test_a_number_is_its_sources(client: Peer, address: tuple[str, int], message: bytes) -> None:
    """Another source with the same request id has a message of its own."""
    request_id = next(_ids)
    short = texts([[b"another one"]], reply_len_max=1056)
    client.send(segment(message, request_id, 0))
    with Peer(*address) as other:
        other.send(segment(short, request_id, 0, last=True))
        assert answer(other, request_id) == other.ask(request("encode", short)).message
        other.send(control(CANCEL, request_id))
    send_all(client, message, request_id, [1, 2, 3])
    assert answer(client, request_id)
    client.send(control(CANCEL, request_id))


def test_a_message_that_is_too_long_is_refused(client: Peer, model: Info, message: bytes) -> None:
    """By the first segment of it, whichever that is."""
    head = segment(message, next(_ids), 1)
    too_long = patched(head, 4, *(model.message_len_max // 8 * 8 + 8).to_bytes(4, "little"))
    if model.message_len_max >= 16 << 20:
        pytest.skip("this server takes the longest message there is")
    client.send(too_long)
    (fields, payload) = receive(client, HEADER.unpack_from(head)[4])[0]
    assert (fields[9], payload) == (VERDICTS["text_too_long"], b"")


def test_a_pull_gets_what_it_names(client: Peer, message: bytes) -> None:
    """In ascending order, no more than it grants, and nothing that the reply has not."""
    request_id = next(_ids)
    send_all(client, message, request_id, [0, 1, 2, 3])
    whole = answer(client, request_id)
    count = -(-len(whole) // 1024)
    assert count >= 3
    for missing, grant, wanted in (
        (0b101, 64, [0, 2]),
        (0b111, 2, [0, 1]),
        (0b111, 0, []),
        (1 << count, 64, []),
        (0, 64, []),
    ):
        client.send(pull(request_id, missing, grant))
        parts = [fields[5] for fields, _ in receive(client, request_id, 0.5)]
        assert parts == wanted
    client.send(control(CANCEL, request_id))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [0, 0, 1, 3, 3, 2]])
def test_order_and_doubles_do_not_matter(client: Peer, message: bytes, order: list[int]) -> None:
    """The same message has the same answer in one datagram, where the link carries it."""
    request_id = next(_ids)
    send_all(client, message, request_id, order)
    got = answer(client, request_id)
    client.send(control(CANCEL, request_id))
    other = next(_ids)
    send_all(client, message, other, [0, 1, 2, 3])
    assert answer(client, other) == got
    client.send(control(CANCEL, other))
    assert got[1] == 1 and struct.unpack_from("<IB", got, 8)[1] == 0


def test_one_segment_has_the_datagrams_answer(client: Peer, message: bytes) -> None:
    """A short message may be a segment too, and its reply is one datagram."""
    short = texts([[b"Hello, world!"]], reply_len_max=1056)
    request_id = next(_ids)
    client.send(segment(short, request_id, 0, last=True))
    assert answer(client, request_id) == client.ask(request("encode", short)).message
    client.send(control(CANCEL, request_id))


def test_need_names_what_is_missing(client: Peer, message: bytes) -> None:
    """After a flight, and never in more bytes than it answers."""
    request_id = next(_ids)
    client.send(segment(message, request_id, 0))
    client.send(segment(message, request_id, 2, last=True))
    needs = [f for f in receive(client, request_id) if f[0][1] == NEED]
    assert len(needs) == 1
    fields, payload = needs[0]
    grant, words, state, reserved = struct.unpack_from("<HBBI", payload)
    assert fields[3] == len(message) and fields[6] == SEGMENT_LEN and fields[5] == 0
    assert grant >= 1 and words == 1 and state == 0 and reserved == 0
    assert struct.unpack_from("<Q", payload, 8)[0] == 0b1010
    client.send(control(CANCEL, request_id))


def test_contradictions_are_refused_and_change_nothing(client: Peer, message: bytes) -> None:
    """Another length, another checksum; then the message goes on."""
    request_id = next(_ids)
    client.send(segment(message, request_id, 0))
    client.send(segment(message + bytes(8), request_id, 1, crc=crc32c(message)))
    client.send(segment(message, request_id, 1, crc=1))
    verdicts = [fields[9] for fields, _ in receive(client, request_id)]
    assert verdicts == [VERDICTS["bad_length"], VERDICTS["bad_crc"]]
    send_all(client, message, request_id, [1, 2, 3])
    assert answer(client, request_id)
    client.send(control(CANCEL, request_id))


def test_wrong_checksum_of_the_whole(client: Peer, message: bytes) -> None:
    """Found when everything is there."""
    request_id = next(_ids)
    for index in range(4):
        client.send(segment(message, request_id, index, last=index == 3, crc=5))
    found = [fields for fields, _ in receive(client, request_id) if fields[1] == REPLY]
    assert found and all(fields[9] == VERDICTS["bad_crc"] for fields in found)


@pytest.mark.parametrize(
    ("wanted", "off", "value"),
    [
        ("bad_flags", 3, 0),
        ("bad_length", 19, 3),
        ("bad_length", 18, 1),
        ("bad_length", 16, 9),
        ("bad_option", 22, 1),
        ("bad_op", 22, 99),
        ("bad_flags", 23, 1),
    ],
)
def test_each_wrong_field(client: Peer, message: bytes, wanted: str, off: int, value: int) -> None:
    """One at a time; the refusal is one header."""
    request_id = next(_ids)
    datagram = bytearray(segment(message, request_id, 1))
    datagram[off] = value
    if wanted == "bad_flags" and off == 3:
        datagram[28:32] = bytes(4)
    client.send(bytes(datagram))
    found = receive(client, request_id)
    assert [fields[9] for fields, _ in found] == [VERDICTS[wanted]]
    assert all(not payload for _, payload in found)


def test_pull_and_cancel_of_what_is_not_there(client: Peer, message: bytes) -> None:
    """A pull is refused by name, a cancel is not answered, and neither is what comes late."""
    request_id = next(_ids)
    client.send(pull(request_id, 1))
    assert [fields[9] for fields, _ in receive(client, request_id)] == [UNKNOWN_REQUEST]
    client.send(segment(message, request_id, 0))
    client.send(control(CANCEL, request_id))
    client.send(segment(message, request_id, 1, last=True))
    assert receive(client, request_id, 0.3) == []
