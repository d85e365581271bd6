"""The codec of the clients: golden packets, round trips through a twin server, hostile replies."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pintok import _codec, _exchange, _questions, _wire
from pintok._codec import Call, Target
from pintok._session import Ping
from pintok._wire import IdFormat, Verdict, WireOp, WireOptions
from pintok.encoding import PlainRange
from pintok.stream import Step
from tests.unit import packets
from tests.unit.byte_server import ByteEngine

PACKETS = packets.read_all()
ANSWERED = [packet for packet in PACKETS if packet.call is not None]
REFUSED = [packet for packet in PACKETS if packet.call is None and packet.reply]


def as_bytes(text: str | dict[str, str]) -> bytes:
    return text.encode() if isinstance(text, str) else bytes.fromhex(text["hex"])


def call_of(request: dict[str, Any]) -> Call:
    truncation = b""
    if "truncation" in request:
        truncation = struct.pack("<IIBB6x", *request["truncation"])
    return Call(
        WireOp[request["op"].upper()],
        request["options"],
        request["outputs"],
        request["id_format"],
        truncation,
    )


def target_of(request: dict[str, Any]) -> Target:
    return Target(
        request["model_id"], request["model_tag"], request["reply_len_max"], request["crc"]
    )


def build(request: dict[str, Any]) -> bytes:
    call, target, request_id = call_of(request), target_of(request), request["request_id"]
    if call.op == WireOp.PING:
        return _codec.build_message(call.op, target, request_id, bytes.fromhex(request["message"]))
    if call.op == WireOp.INFO:
        return _codec.build_info(target, request_id)
    if call.op == WireOp.SETTINGS:
        return _codec.build_settings(target, request_id)
    if call.op == WireOp.DECODE_STEP:
        steps = [Step(ids, *rest) for ids, *rest in request["items"]]
        _, items = _questions.step_items(steps, call.options)
    elif call.op == WireOp.DECODE:
        items = [
            _exchange.Item((len(ids),), _codec.build_ids(np.array(ids, np.uint32), call.id_format))
            for ids in request["items"]
        ]
    else:
        ranges = request.get("ranges", [()] * len(request["items"]))
        items = [
            _exchange.Item(
                tuple(len(as_bytes(text)) for text in texts),
                b"".join(map(as_bytes, texts)),
                _questions.range_bytes([PlainRange(*each) for each in plain]),
            )
            for texts, plain in zip(request["items"], ranges, strict=True)
        ]
    part = _exchange.Part(call, tuple(range(len(items))), tuple(items))
    return part.datagram(target, request_id)


@pytest.mark.parametrize("packet", ANSWERED, ids=lambda packet: packet.name)
def test_requests_are_built_byte_for_byte(packet: packets.Packet) -> None:
    """The C engine answers these very bytes; another byte here would be another protocol."""
    assert packet.call is not None
    assert build(packet.call).hex() == packet.request.hex()


@pytest.mark.parametrize("packet", ANSWERED, ids=lambda packet: packet.name)
def test_replies_are_parsed_to_what_was_meant(packet: packets.Packet) -> None:
    """The reply that the C engine gives means the recorded result."""
    assert packet.call is not None and packet.result is not None
    call = call_of(packet.call)
    reply = _codec.parse_reply(packet.reply, call.op)
    assert reply is not None
    assert reply.request_id == packet.call["request_id"]
    assert reply.verdict == packet.result["verdict"]
    if call.op == WireOp.PING:
        assert bytes(reply.message).hex() == packet.result["message"]
        return
    if call.op == WireOp.INFO:
        info = _codec.parse_info(reply)
        for name in ("name", "ids_end", "bos_id", "eos_id", "pad_id"):
            assert getattr(info, name) == packet.result[name]
        assert info.fingerprint == bytes(range(32)).hex()
        assert info.ops == {
            "ping", "info", "encode", "decode", "count", "decode_step", "settings"
        }  # fmt: skip
        return
    if call.op == WireOp.SETTINGS:
        assert _codec.parse_settings(reply) == _codec.FileSettings(None, None)
        return
    outcomes = _codec.parse_batch(reply.message, call, len(packet.call["items"]))
    for outcome, wanted in zip(outcomes, packet.result["items"], strict=True):
        assert outcome.verdict == wanted["verdict"]
        for name in ("ids", "offsets", "type_ids", "special_tokens_mask"):
            got = getattr(outcome, name)
            assert (None if got is None else got.tolist()) == wanted.get(name)
        if "count" in wanted:
            assert outcome.count == wanted["count"]
        assert outcome.text == wanted.get("text")
        assert list(outcome.windows) == wanted.get("windows", [])
        for name in ("hits", "dropped_count", "given_count"):
            assert getattr(outcome, name) == wanted.get(name, 0)


@pytest.mark.parametrize("packet", ANSWERED, ids=lambda packet: packet.name)
def test_the_twin_server_gives_the_golden_replies(packet: packets.Packet) -> None:
    """The server that the client's tests talk to keeps to the same packets as the C engine."""
    engine = ByteEngine()
    assert engine.answer(packet.request).hex() == packet.reply.hex()


@pytest.mark.parametrize("packet", REFUSED, ids=lambda packet: packet.name)
def test_refusals_are_understood(packet: packets.Packet) -> None:
    """A refusal is one header; its verdict has a text in the shared table."""
    op = packet.reply[22]
    reply = _codec.parse_reply(packet.reply, op)
    assert reply is not None and len(packet.reply) == 32
    assert Verdict(reply.verdict).name.lower() and reply.verdict in _wire.VERDICT_TEXTS


def test_one_text_is_built_the_short_way_to_the_same_bytes() -> None:
    """The fast path may not be another dialect."""
    for text in (b"", b"a", b"1234567", b"12345678", b"123456789", "\u00fc".encode() * 100):
        for target in (Target(), Target(3, 0xDEADBEEF, 1472)):
            call = Call(WireOp.ENCODE, 3)
            slow = _codec.build_batch(call, target, 2**64 - 1, 1, [len(text)], text)
            assert _codec.build_one(3, target, 2**64 - 1, text) == slow


def test_checksum_is_crc32c() -> None:
    """The published check value; the C side is held to it too."""
    assert _codec.crc32c(b"123456789") == 0xE3069283
    assert _codec.crc32c(b"") == 0


@given(st.lists(st.integers(0, 2**32 - 1), max_size=60))
def test_ids_survive_each_format_that_holds_them(values: list[int]) -> None:
    """Narrow formats are made by slicing; nothing may be lost or shifted."""
    narrowest = _codec.narrowest_format(max(values, default=0))
    ids = np.array(values, np.uint32)
    for id_format in range(narrowest, IdFormat.U32 + 1):
        data = _codec.build_ids(ids, id_format)
        assert len(data) == len(values) * (id_format + 1)
        assert _codec.parse_ids(memoryview(data), 0, len(values), id_format).tolist() == values


texts = st.binary(max_size=40)
# Short offsets are asked for with offsets only.
outputs_asked = st.integers(0, 15).filter(lambda outputs: outputs & 9 != 8)
items = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)


@given(items, st.booleans(), st.booleans(), outputs_asked, st.integers(0, 2), st.booleans())
def test_round_trip_through_the_twin_server(
    pairs: list[tuple[bytes, bytes]],
    with_pair: bool,
    special: bool,
    outputs: int,
    model_id: int,
    checksum: bool,
) -> None:
    """Whatever is asked for comes back, for every combination of outputs, formats and items."""
    options = (WireOptions.ADD_SPECIAL_TOKENS if special else 0) | (
        WireOptions.PAIR if with_pair else 0
    )
    call = Call(WireOp.ENCODE, int(options), outputs)
    parts = [pair if with_pair else pair[:1] for pair in pairs]
    packed = tuple(_exchange.Item(tuple(map(len, part)), b"".join(part)) for part in parts)
    part = _exchange.Part(call, tuple(range(len(packed))), packed)
    engine = ByteEngine(datagram_len_max=65507)
    target = Target(model_id, reply_len_max=65507, checksum=checksum)
    reply = _codec.parse_reply(engine.answer(part.datagram(target, 5)), WireOp.ENCODE)
    assert reply is not None and reply.verdict == Verdict.OK
    base = engine.models[model_id].base
    for texts_in, outcome in zip(
        parts, _codec.parse_batch(reply.message, call, len(parts)), strict=True
    ):
        if any(0xFF in text for text in texts_in):
            assert outcome.verdict == Verdict.BAD_UTF8 and outcome.ids is None
            continue
        wanted = [base + byte for text in texts_in for byte in text]
        if special:
            wanted = [base + 256, *wanted, base + 257]
        assert outcome.ids is not None and outcome.ids.tolist() == wanted
        assert (outcome.offsets is not None) == bool(outputs & 1)
        assert (outcome.type_ids is not None) == bool(outputs & 2)
        assert (outcome.special_tokens_mask is not None) == bool(outputs & 4)


def parse_anything(datagram: bytes, call: Call, item_count: int) -> None:
    """Parse as a client would; the only exception may be MalformedReply."""
    reply = _codec.parse_reply(datagram, call.op)
    if reply is None or reply.verdict != Verdict.OK:
        return
    try:
        if call.op == WireOp.INFO:
            _codec.parse_info(reply)
        elif call.op != WireOp.PING:
            _codec.parse_batch(reply.message, call, item_count)
            if call.op == WireOp.ENCODE and item_count == 1:
                _codec.parse_one_ids(reply.message)
    except _codec.MalformedReply:
        pass


@settings(max_examples=500)
@given(st.data())
def test_damaged_replies_raise_nothing_else(data: st.DataObject) -> None:
    """A hostile or broken server must not be able to crash a client, nor feed it shifted ids."""
    packet = data.draw(st.sampled_from(ANSWERED))
    assert packet.call is not None
    reply = bytearray(packet.reply)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(reply) - 1))
        reply[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(reply)))
    call = call_of(packet.call)
    count = len(packet.call.get("items", [0]))
    parse_anything(bytes(reply), call, count)
    cut_reply = bytearray(reply[:cut])
    if cut >= 32:
        struct.pack_into("<I", cut_reply, 4, cut - 32)
    parse_anything(bytes(cut_reply), call, count)


@pytest.mark.parametrize("packet", ANSWERED, ids=lambda packet: packet.name)
def test_replies_cut_at_every_byte_are_not_taken(packet: packets.Packet) -> None:
    """A cut reply whose length field agrees with it is still refused."""
    assert packet.call is not None
    call = call_of(packet.call)
    for cut in range(len(packet.reply)):
        reply = bytearray(packet.reply[:cut])
        assert _codec.parse_reply(reply, call.op) is None
        if cut < 32 or call.op in (WireOp.PING, WireOp.INFO) or packet.call["crc"]:
            continue
        struct.pack_into("<I", reply, 4, cut - 32)
        parsed = _codec.parse_reply(reply, call.op)
        assert parsed is not None
        with pytest.raises(_codec.MalformedReply):
            if call.op == WireOp.SETTINGS:
                _codec.parse_settings(parsed)
            else:
                _codec.parse_batch(parsed.message, call, len(packet.call["items"]))


def test_the_message_of_a_ping_is_what_its_datagram_carries() -> None:
    """Any part of a conversation has one, also those that never travel in segments."""
    ping = Ping(300, checksum=False)
    target = Target()
    assert ping.message(target) == ping.datagram(target, 7)[_codec.HEADER_LEN :]
    assert len(ping.message(target)) == 300 - _codec.HEADER_LEN
