"""What any server of PTK1 must do, seen from outside: see conftest.py for how to name one.

The vocabulary does not matter: tests compare answers with each other, never with known ids.
"""

from __future__ import annotations

import os
import random
import struct

import pytest

from tests.conformance.peer import (
    HEADER,
    Info,
    Peer,
    crc32c,
    id_lists,
    patched,
    read_counts,
    read_encoding,
    read_info,
    read_steps,
    read_texts,
    read_windows,
    request,
    steps,
    texts,
)

HELLO = b"Hello, world! The quick brown fox jumps over the lazy dog 0123456789 times."
MANY = [
    "",
    "a",
    "Hello",
    "\u00fcber gro\u00df",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "\U0001f600 done",
    "x" * 40,
    "  two  spaces\n",
]


def encode(*items: bytes, **arguments: int) -> bytes:
    return request("encode", texts([[item] for item in items], **arguments))


# --- the door ------------------------------------------------------------------------------------


def test_ping_repeats_any_message(client: Peer, model: Info) -> None:
    """Of any length up to the datagram the server accepts, odd ones too."""
    limit = min(model.datagram_len_max, 1472)
    for length in (0, 1, 7, 8, 100, 1000, limit - 33, limit - 32):
        message = random.Random(length).randbytes(length)
        assert client.ask(request("ping", message)).message == message


@pytest.mark.parametrize(
    "datagram",
    [
        b"\0",
        b"PT",
        b"GET / HTTP/1.1\r\n\r\n" * 4,
        bytes(32),
        request("ping")[:31],
        patched(request("ping"), 0, 0x51),
        patched(request("ping"), 2, 0x12),
        patched(request("ping"), 2, 0x13),
        patched(request("ping"), 2, 0x22),
    ],
    ids=["byte", "magic", "http", "zeros", "short", "other", "reply", "need", "reply of version 2"],
)
def test_what_is_no_request_is_not_answered(client: Peer, datagram: bytes) -> None:
    """Or two servers, or a server and a stranger's service, could be made to talk forever."""
    assert client.is_silent(datagram)


HEADER_EDITS = [
    ("bad_version", 2, (0x01,)),
    ("bad_version", 2, (0x21,)),
    ("bad_version", 2, (0xF1,)),
    ("bad_type", 2, (0x10,)),
    ("bad_type", 2, (0x1F,)),
    ("bad_flags", 3, (0x08,)),
    ("bad_flags", 3, (0x40,)),
    ("bad_flags", 3, (0x80,)),
    ("bad_length", 4, (0xFF,)),
    ("bad_length", 4, (0, 0, 0, 0x80)),
    ("bad_flags", 16, (1,)),
    ("unknown_model", 20, (0xFF, 0xFF)),
    ("bad_op", 22, (0,)),
    ("bad_op", 22, (200,)),
    ("bad_flags", 23, (1,)),
    ("bad_flags", 28, (1,)),
]
PRELUDE_EDITS = [
    ("bad_option", 32, (5,)),
    ("bad_option", 32, (255,)),
    ("bad_flags", 33, (0x10,)),
    ("bad_option", 33, (0x08,)),
    ("bad_flags", 33, (0x80,)),
    ("bad_flags", 35, (0x80,)),
    ("bad_option", 34, (0x80, 0)),
    ("bad_option", 34, (0x40, 0)),
    ("bad_items", 36, (0, 0)),
    ("bad_items", 36, (1, 1)),
    ("bad_items", 36, (0xFF, 0xFF)),
    ("bad_length", 40, (0xFF, 0xFF, 0xFF, 0xFF)),
    ("bad_length", 40, (0,)),
    ("bad_flags", 44, (1,)),
    ("bad_flags", -1, (1,)),
]


@pytest.mark.parametrize(("wanted", "off", "values"), HEADER_EDITS + PRELUDE_EDITS)
def test_each_wrong_field_has_its_verdict(
    client: Peer, wanted: str, off: int, values: tuple[int, ...]
) -> None:
    """One field at a time; the refusal is one header."""
    good = encode(HELLO)
    at = off if off >= 0 else len(good) + off
    assert client.verdict(good) == "ok"
    assert client.verdict(patched(good, at, *values)) == wanted


def test_requests_cut_anywhere_are_refused(client: Peer) -> None:
    """Both when message_len tells, and when it is made to agree."""
    good = encode(b"cut me", b"or me")
    for length in range(32, len(good)):
        cut = good[:length]
        assert client.verdict(cut) == "bad_length"
        assert client.verdict(patched(cut, 4, *struct.pack("<I", length - 32))) == "bad_length"


def test_longer_than_announced_is_refused(client: Peer) -> None:
    """Nobody may hide bytes behind a message."""
    good = encode(HELLO)
    assert client.verdict(good + bytes(8)) == "bad_length"
    longer = patched(good + bytes(8), 4, *struct.pack("<I", len(good) - 24))
    assert client.verdict(longer) == "bad_length"


def test_checksums(client: Peer) -> None:
    """A wrong one is refused, a right one is answered with another."""
    message = texts([[HELLO]])
    good = request("encode", message, flags=16, message_crc=crc32c(message))
    reply = client.ask(good)
    assert reply.verdict == 0 and reply.flags == 16  # check_reply verified it
    assert client.verdict(patched(good, 28, *struct.pack("<I", crc32c(message) ^ 1))) == "bad_crc"
    damaged = bytearray(good)
    damaged[50] ^= 1
    assert client.verdict(bytes(damaged)) == "bad_crc"


def test_random_datagrams_get_a_well_formed_reply_or_none(client: Peer) -> None:
    """Thousands of mutations: whatever comes back is a reply to its request, and in bounds."""
    seed = int(os.environ.get("PTK_SEED", "1"))
    chance = random.Random(seed)
    for number in range(2000):
        datagram = bytearray(
            chance.choice(
                [
                    encode(HELLO),
                    encode(b"a", b"", HELLO, outputs=7),
                    request("count", texts([[b"a", b"b"], [HELLO, b""]])),
                    request("decode", id_lists([[1, 2, 3], []], id_format=1)),
                    request("info", bytes(208)),
                    request("ping", b"12345"),
                ]
            )
        )
        for _ in range(chance.randint(1, 3)):
            at = chance.choice([n for n in range(len(datagram)) if n not in range(8, 16)])
            datagram[at] ^= 1 << chance.randrange(8)
        client.once(bytes(datagram), wait=0.002)  # check_reply looks at what comes, if any
        if number % 100 == 0:
            assert client.ask(request("ping")).verdict == 0, f"seed {seed}"


# --- models --------------------------------------------------------------------------------------


def test_info_describes_the_model(client: Peer, model: Info) -> None:
    """Its figures agree with each other."""
    assert 0 < model.vocab_len <= model.ids_end
    assert model.datagram_len_max >= 1200
    assert model.message_len_max >= model.datagram_len_max - 32 - 128
    assert model.models_end >= 1 and model.model_tag != 0
    assert model.fingerprint != bytes(32)
    assert model.ops & 0b111110 == 0b111110
    assert model.id_formats & 0b1001 == 0b1001


def test_info_is_never_longer_than_its_request(client: Peer, model: Info) -> None:
    """So that it cannot be used to amplify."""
    room = 80 + len(model.name.encode()) + 7 & ~7
    exact = client.ask(request("info", bytes(room)))
    assert read_info(exact).name == model.name and exact.datagram_len == 32 + room
    assert client.verdict(request("info", bytes(room - 8))) == "reply_too_long"
    assert client.verdict(request("info")) == "reply_too_long"
    assert client.verdict(request("info", bytes(207))) == "bad_length"
    assert client.verdict(request("info", bytes(207) + b"\1")) == "bad_flags"


def test_tag_names_the_model(client: Peer, model: Info) -> None:
    """A request may name the tag it expects; another is refused, and the reply tells the tag."""
    tag = model.model_tag
    message = texts([[HELLO]])
    assert client.ask(request("encode", message)).model_tag == tag
    assert client.ask(request("encode", message, model_tag=tag)).verdict == 0
    refused = client.ask(request("encode", message, model_tag=tag ^ 1))
    assert (refused.verdict, refused.model_tag) == (12, tag)
    assert client.ask(request("encode", message, model_id=0xFFFE)).model_tag == 0
    assert client.verdict(request("ping", model_id=1)) == "bad_option"
    assert client.verdict(request("ping", model_tag=1)) == "bad_option"


# --- encode, count, decode ----------------------------------------------------------------------


def test_items_are_independent(client: Peer) -> None:
    """A text has the same ids alone and in company, and count agrees."""
    items = [text.encode() for text in MANY]
    together = read_encoding(client.ask(encode(*items)), len(items))
    counts = read_counts(client.ask(request("count", texts([[i] for i in items]))), len(items))
    for item, answer, (count, verdict) in zip(items, together, counts, strict=True):
        alone = read_encoding(client.ask(encode(item)), 1)[0]
        assert alone == answer and answer.verdict == verdict == 0
        assert len(answer.ids) == answer.count == count


def test_every_format_says_the_same(client: Peer, model: Info) -> None:
    """Auto is the narrowest; a wider one may be asked for, a narrower one is refused."""
    auto = client.ask(encode(HELLO))
    ids = read_encoding(auto, 1)[0].ids
    narrowest = 1 if model.ids_end <= 1 << 16 else 2 if model.ids_end <= 1 << 24 else 3
    assert auto.message[0] == narrowest
    assert max(ids) < model.ids_end
    for id_format in (1, 2, 3):
        if id_format < narrowest:
            assert client.verdict(encode(HELLO, id_format=id_format)) == "bad_format"
            assert not model.id_formats >> id_format & 1
            continue
        assert model.id_formats >> id_format & 1
        reply = client.ask(encode(HELLO, id_format=id_format))
        assert reply.message[0] == id_format
        assert read_encoding(reply, 1)[0].ids == ids


@pytest.mark.parametrize("outputs", [*range(8), 9, 15])
@pytest.mark.parametrize("unit", [0, 64], ids=["bytes", "chars"])
def test_outputs_do_not_change_the_ids(client: Peer, outputs: int, unit: int) -> None:
    """Each array has one row per id, offsets lie in the text and never go back."""
    if unit and not outputs & 1:
        assert client.verdict(encode(b"a", outputs=outputs, options=unit)) == "bad_option"
        return
    items = [text.encode() for text in MANY]
    plain = read_encoding(client.ask(encode(*items, options=3)), len(items))
    message = texts([[i] for i in items], outputs=outputs, options=3 | unit, reply_len_max=1472)
    answers = read_encoding(client.ask(request("encode", message)), len(items), outputs)
    for text, bare, answer in zip(MANY, plain, answers, strict=True):
        assert answer.ids == bare.ids
        length = len(text) if unit else len(text.encode())
        assert all(begin <= end <= length for begin, end in answer.offsets)
        inside = [
            span
            for span, special in zip(answer.offsets, answer.special_tokens_mask, strict=True)
            if not special
        ]
        assert outputs & 5 != 5 or [begin for begin, _ in inside] == sorted(b for b, _ in inside)
        assert set(answer.special_tokens_mask) <= {0, 1}


def test_pairs(client: Peer) -> None:
    """Two texts an item; without special tokens their ids follow each other."""
    first, second = HELLO[:20], HELLO[20:]
    message = texts([[first, second], [b"", b"x"]], outputs=2, options=2)
    answers = read_encoding(client.ask(request("encode", message)), 2, 2)
    alone = read_encoding(client.ask(encode(first, second, b"", b"x", options=2)), 4)
    assert answers[0].ids == alone[0].ids + alone[1].ids
    assert answers[1].ids == alone[2].ids + alone[3].ids


def test_bad_text_fails_alone(client: Peer) -> None:
    """Invalid UTF-8 of every sort; the neighbours are answered."""
    bad = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"ab\x80"]
    for text in bad:
        answers = read_encoding(client.ask(encode(b"ok", text, b"go")), 3)
        assert [answer.verdict for answer in answers] == [0, 10, 0]
        assert answers[0].ids == read_encoding(client.ask(encode(b"ok")), 1)[0].ids
    counts = read_counts(client.ask(request("count", texts([[b"ok"], [bad[0]]]))), 2)
    assert counts[1] == (0, 10) and counts[0][1] == 0


def test_item_table_limits(client: Peer, model: Info) -> None:
    """256 items are served, 257 refused, none refused."""
    full = request("count", texts([[b""]] * 100, reply_len_max=1472))
    assert (
        read_counts(client.ask(full), 100)
        == [read_counts(client.ask(request("count", texts([[b""]]))), 1)[0]] * 100
    )
    assert client.verdict(request("count", texts([[b""]] * 257))) == "bad_items"
    assert client.verdict(request("count", texts([]))) == "bad_items"
    most = request("count", texts([[b""]] * 256, reply_len_max=2088))
    wanted = "ok" if model.datagram_len_max >= 2088 else "reply_too_long"
    assert client.verdict(most) == wanted


def test_reply_limits_are_exact(client: Peer) -> None:
    """The longest reply the client accepts is given; with a byte less, the item is refused."""
    for outputs in (0, 7, 15):
        whole = client.ask(encode(HELLO, outputs=outputs))
        answer = read_encoding(whole, 1, outputs)[0]
        exact = client.ask(encode(HELLO, outputs=outputs, reply_len_max=whole.datagram_len))
        assert read_encoding(exact, 1, outputs)[0] == answer
        less = client.ask(encode(HELLO, outputs=outputs, reply_len_max=whole.datagram_len - 1))
        assert read_encoding(less, 1, outputs)[0].verdict == 14
    assert client.verdict(encode(HELLO, reply_len_max=48)) == "ok"
    assert client.verdict(encode(HELLO, reply_len_max=47)) == "reply_too_long"
    asked = encode(b"a" * 8, b"b" * 8, reply_len_max=0)
    assert client.ask(asked).datagram_len <= len(asked)


def test_decode_accepts_every_format(client: Peer, model: Info) -> None:
    """The same ids in two, three and four bytes are the same text; unknown ids are left out."""
    ids = read_encoding(client.ask(encode(HELLO, options=2)), 1)[0].ids
    wanted = None
    for id_format in (1, 2, 3):
        if max(ids) >= 256 ** (id_format + 1):
            continue
        reply = client.ask(request("decode", id_lists([ids, [], ids[:1]], id_format=id_format)))
        answers = read_texts(reply, 3)
        assert [verdict for verdict, _ in answers] == [0, 0, 0] and answers[1][1] == ""
        wanted = wanted or answers
        assert answers == wanted
    beyond = id_lists([[*ids, 0xFFFFFFFF, model.ids_end], ids], id_format=3)
    (_, text), (_, plain) = read_texts(client.ask(request("decode", beyond)), 2)
    assert text == plain
    for id_format, verdict in ((0, "bad_option"), (4, "unsupported"), (9, "bad_option")):
        good = request("decode", id_lists([ids], id_format=3))
        assert client.verdict(patched(good, 32, id_format)) == verdict
    assert (
        client.verdict(request("decode", id_lists([ids], id_format=3, options=1))) == "bad_option"
    )


def test_decode_reply_limit(client: Peer) -> None:
    """A text that does not fit is refused in its item; the next one that fits is answered."""
    ids = read_encoding(client.ask(encode(HELLO, options=2)), 1)[0].ids
    message = id_lists([ids, ids[:1]], id_format=3, reply_len_max=32 + 8 + 16 + 16)
    answers = read_texts(client.ask(request("decode", message)), 2)
    assert answers[0] == (14, "") and answers[1][0] == 0


def test_truncation(client: Peer) -> None:
    """max_length holds for every item; what is not offered is refused by name."""
    plain = texts([[HELLO], [b"a"]], options=2 | 32)
    for limit in (1, 3, 1000):
        truncation = struct.pack("<IIBB6x", limit, 0, 0, 0)
        reply = client.ask(request("encode", plain[:8] + truncation + plain[8:]))
        answers = read_encoding(reply, 2)
        whole = read_encoding(client.ask(encode(HELLO, b"a", options=2)), 2)
        if answers[0].verdict == 15:
            pytest.skip("this server does not offer truncation for this model")
        for answer, full in zip(answers, whole, strict=True):
            assert answer.ids == full.ids[:limit]
    for fields, wanted in (
        ((3, 0, 3, 0, 0), "bad_option"),
        ((3, 0, 0, 2, 0), "bad_option"),
        ((3, 0, 0, 0, 1), "bad_flags"),
    ):
        truncation = struct.pack("<IIBB5xB", *fields)
        message = plain[:8] + truncation + plain[8:]
        assert client.verdict(request("encode", message)) == wanted


def test_windows_cover_the_text(client: Peer, model: Info) -> None:
    """Every window is a run of the uncut ids, and neighbours share as many as was asked for."""
    plain = texts([[HELLO], [b"a"], [b""]], options=2 | 32 | 512)
    whole = read_encoding(client.ask(encode(HELLO, b"a", b"", options=2)), 3)
    for limit, stride, direction in ((4, 0, 0), (4, 2, 0), (4, 3, 1), (1000, 7, 0)):
        truncation = struct.pack("<IIBB6x", limit, stride, 0, direction)
        reply = client.ask(request("encode", plain[:8] + truncation + plain[8:]))
        for windows, full in zip(read_windows(reply, 3), whole, strict=True):
            step, ids = limit - stride, full.ids
            begins = range(0, max(len(ids) - stride, 1), step)
            if direction == 0:
                wanted = [ids[at : at + limit] for at in begins]
            else:
                ends = [len(ids) - at for at in begins]
                wanted = [ids[max(end - limit, 0) : end] for end in ends]
            assert windows == wanted
    unbounded = texts([[HELLO]], options=2 | 512)
    assert client.verdict(request("encode", unbounded)) == "bad_option"


def test_steps_give_the_text_bit_by_bit(client: Peer) -> None:
    """Whatever the server's model: the chunks and the flush are the text, and windows stay small.

    Many streams share each datagram; none knows of the others.
    """
    streams = [read_encoding(client.ask(encode(t.encode(), options=2)), 1)[0].ids for t in MANY]
    windows: list[list[int]] = [[] for _ in streams]
    given = [0] * len(streams)
    chunks = [""] * len(streams)
    rounds = max(map(len, streams)) + 1
    for number in range(rounds):
        asked = []
        for place, ids in enumerate(streams):
            new = ids[number : number + 1]
            flush = number == rounds - 1
            windows[place] += new
            asked.append((windows[place], given[place], len(new), int(flush)))
        reply = client.ask(request("decode_step", steps(asked, id_format=3)))
        for place, (verdict, text, dropped, kept) in enumerate(read_steps(reply, len(streams))):
            assert verdict == 0
            windows[place] = windows[place][dropped:]
            given[place] = kept
            chunks[place] += text
            assert len(windows[place]) <= 16
    wanted = read_texts(client.ask(request("decode", id_lists(streams, id_format=3))), len(MANY))
    assert chunks == [text for _, text in wanted]
    assert windows == [[] for _ in streams]


def test_steps_that_contradict_themselves_are_refused(client: Peer) -> None:
    good = request("decode_step", steps([([65, 66], 1, 1, 0)], id_format=3))
    assert client.verdict(good) == "ok"
    assert client.verdict(patched(good, 42, 2)) == "bad_length"
    assert client.verdict(patched(good, 44, 2)) == "bad_length"
    assert client.verdict(patched(good, 40, 3)) == "bad_length"
    assert client.verdict(patched(good, 46, 2)) == "bad_flags"
    assert client.verdict(patched(good, 32, 0)) == "bad_option"
    assert client.verdict(patched(good, 34, 1)) == "bad_option"


def test_ranges_without_tokens_change_nothing(client: Peer) -> None:
    """Ordinary text is ordinary text; what cannot be a range is refused."""
    plain = texts([[HELLO], [b"abc"]], options=2 | 1024)

    def asked(counts: tuple[int, int], *ranges: tuple[int, int]) -> bytes:
        table = struct.pack("<II", *counts)
        packed = b"".join(struct.pack("<II", *each) for each in ranges)
        return request("encode", plain[:16] + table + packed + plain[16:])

    def words(begin: int, size: int, every: int = 0) -> tuple[int, int]:
        return begin, size << 1 | every

    wanted = read_encoding(client.ask(encode(HELLO, b"abc", options=2)), 2)
    for ranges in ((), (words(0, len(HELLO)),), (words(1, 3), words(4, 2, 1))):
        reply = client.ask(asked((len(ranges), 0), *ranges))
        assert [a.ids for a in read_encoding(reply, 2)] == [a.ids for a in wanted]
    for bad in ((words(0, 0),), (words(2, 2), words(3, 1)), (words(len(HELLO), 1),)):
        assert client.verdict(asked((len(bad), 0), *bad)) == "bad_length"
    assert client.verdict(asked((0, 1), words(0, 4))) == "bad_length"
    assert client.verdict(asked((5000, 0))) == "bad_items"
    assert client.verdict(asked((1, 0))) == "bad_length"


def test_settings_are_as_long_as_they_are(client: Peer) -> None:
    reply = client.ask(request("settings", bytes(40)))
    assert reply.verdict == 0 and len(reply.message) == 40 and not any(reply.message[28:])
    assert client.verdict(request("settings", bytes(32))) == "reply_too_long"
    assert client.verdict(request("settings", bytes(39))) == "bad_length"
    assert client.verdict(request("settings", b"\1" + bytes(39))) == "bad_flags"


def test_what_is_defined_but_not_offered_is_refused_by_name(client: Peer) -> None:
    """Or it works; a third way does not exist. Segments, extensions and later operations."""
    good = encode(HELLO)
    cookie = patched(good[:32] + bytes(16) + good[32:], 3, 1)
    for datagram in (
        patched(good, 18, 0xB0, 4),
        patched(good, 22, 7),
        patched(good, 22, 8),
        patched(good, 2, 0x14),
        patched(good, 2, 0x15),
        cookie,
    ):
        reply = client.once(datagram)
        assert reply is None or reply.verdict != 0 or datagram == cookie


def test_replies_come_from_the_address_asked(client: Peer, address: tuple[str, int]) -> None:
    """A connected socket would not see any other; here an unconnected one looks."""
    import socket

    family, _, _, _, sockaddr = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1.0)
        asked = encode(HELLO)
        for _ in range(8):
            sock.sendto(asked, sockaddr)
            try:
                reply, sender = sock.recvfrom(65536)
            except TimeoutError:
                continue
            assert sender[:2] == sockaddr[:2]
            assert HEADER.unpack_from(reply)[4] == HEADER.unpack_from(asked)[4]
            return
    raise AssertionError("no reply")
