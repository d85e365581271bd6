"""The configuration door: precedence, refusals that help, and survival of anything."""

from __future__ import annotations

import doctest
import os
import pathlib
import random
import string

import pytest

from pintok_server.control import config, cores, memory
from pintok_server.control.config import ConfigError, HttpAddress, ModelChoice, resolve_settings
from pintok_server.control.cores import format_number_list, parse_number_list


def resolve(
    flags: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
    file: pathlib.Path | None = None,
) -> config.Settings:
    return resolve_settings(flags=flags or {}, environment=environment or {}, file=file)


@pytest.fixture
def write(tmp_path: pathlib.Path):
    def write_text(text: str) -> pathlib.Path:
        path = tmp_path / "pintok.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def test_settings_have_one_row_each() -> None:
    # A field without a row could be set by nothing; a row without a field would be lost.
    names = {field.name for field in config.dataclasses.fields(config.Settings)}
    assert names == {setting.key for setting in config.SETTINGS}


def test_flags_beat_environment_beats_file_beats_default(write) -> None:
    file = write("port: 1001\nidle: spin\npath: socket\n")
    environment = {"PINTOK_PORT": "1002", "PINTOK_IDLE": "adaptive"}
    assert resolve().port == 7265
    assert resolve(file=file).port == 1001
    assert resolve(environment=environment, file=file).port == 1002
    settings = resolve({"port": "1003"}, environment, file)
    assert (settings.port, settings.idle, settings.path) == (1003, "adaptive", "socket")


def test_every_setting_reads_alike_from_file_and_environment(write) -> None:
    values = {
        "cores": "2-4",
        "iface": "eth0",
        "models": "a=/m/a,b=/m/b",
        "profile": "hf-tokenizers-1.0",
        "port": "9",
        "address": "10.0.0.1,fe80::1",
        "path": "xdp",
        "xdp_mode": "drv",
        "zerocopy": "off",
        "queues": "0-2",
        "idle": "spin",
        "rx_checksum": "verify",
        "require": "hugepages,xdp",
        "models_max": "4",
        "cache": "2M",
        "message_len_max": "4M",
        "arena": "16M",
        "address_validation": "off",
        "stranger_percent": "30",
        "limit_address": "1000,2000000,0",
        "limit_network": "0,0,500000",
        "allow": "192.0.2.9/24,2001:db8::/32",
        "keys": "/etc/pintok/keys",
        "require_key": "on",
        "ring": "512",
        "frames": "4096",
        "http": "off",
        "instance": "x",
        "runtime_dir": "/tmp/x",
        "drain_timeout_s": "2.5",
    }
    assert set(values) == {setting.key for setting in config.SETTINGS}
    from_environment = resolve(environment={f"PINTOK_{k.upper()}": v for k, v in values.items()})
    from_file = resolve(file=write("".join(f"{k}: {v}\n" for k, v in values.items())))
    assert from_environment == from_file
    assert from_file.cores == (2, 3, 4)
    assert from_file.models == (ModelChoice("a", "/m/a"), ModelChoice("b", "/m/b"))
    assert from_file.profile == "hf-tokenizers-1.0"
    assert from_file.address == ("10.0.0.1", "fe80::1")
    assert from_file.http is None
    assert (from_file.cache, from_file.ring, from_file.frames) == (2 << 20, 512, 4096)
    assert (from_file.message_len_max, from_file.arena) == (4 << 20, 16 << 20)
    assert from_file.limit_address == (1000, 2000000, 0)
    assert from_file.limit_network == (0, 0, 500000)
    assert from_file.allow == ("192.0.2.0/24", "2001:db8::/32")


def test_file_takes_lists_and_mappings(write) -> None:
    file = write("cores: [2, 3]\nmodels:\n  chat: /m/chat\n  embed: /m/embed\naddress: ['::1']\n")
    settings = resolve(file=file)
    assert settings.cores == (2, 3)
    assert settings.models == (ModelChoice("chat", "/m/chat"), ModelChoice("embed", "/m/embed"))
    assert settings.address == ("::1",)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("xdp-mode: drv", "did you mean xdp_mode?"),
        ("core: 2", "did you mean cores?"),
        ("model: x", "did you mean models?"),
        ("port: 0", "whole number from 1 to 65535"),
        ("port: true", "true is not a whole number"),
        ("port: 7265.0", "7265.0 is not a whole number"),
        ("cores: 5-2", "runs backwards"),
        ("cores: []", "a list here holds numbers"),
        ("path: dpdk", "not one of auto, xdp, socket"),
        ("profile: hf-1", "not one of hf-tokenizers-0.23, hf-tokenizers-1.0"),
        ("require: hugepage", "did you mean hugepages?"),
        ("address: example.org", "not an IPv4 or IPv6 address"),
        ("iface: a/b", "cannot be the name of a network interface"),
        ("models: ['x=1', 'x=2']", "two models are called 'x'"),
        ("models: []", "0 models"),
        ("http: '::1:80'", "write an IPv6 address as [ADDRESS]:PORT"),
        ("port: 1\nport: 2", "is there twice"),
        ("a: &x 1\nport: *x", "aliases"),
        ("- 1", "holds a list"),
        ("port: [", "not valid YAML (line"),
        ("[" * 1000, "nested deeper"),
        ("\tx", "not valid YAML"),
        ("2: 3", "a key is not a text"),
        ("cache: 3M", "not a power of two"),
        ("cache: 1K", "not a power of two from 64K"),
        ("message_len_max: 32M", "more than the 16M"),
        ("ring: 100", "not a power of two"),
        ("address_validation: maybe", "not one of on, off"),
        ("stranger_percent: 0", "whole number from 1 to 100"),
        ("limit_address: 5", "not PACKETS,BYTES,MICROSECONDS"),
        ("limit_address: 1,2,3,4", "not PACKETS,BYTES,MICROSECONDS"),
        ("limit_network: 1,2,-3", "whole number from 0"),
        ("allow: 192.0.2.0/40", "not a network"),
        ("drain_timeout_s: .nan", "not a number of seconds"),
        ("port: " + "9" * 5000, ""),
    ],
)
def test_refusal_names_file_and_remedy(write, text: str, hint: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        resolve(file=path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message) < 400
    assert hint in message


def test_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="absent.yaml: cannot be read: No such file"):
        resolve(file=tmp_path / "absent.yaml")


def test_environment_slip_is_refused_and_strangers_are_left_alone() -> None:
    with pytest.raises(ConfigError, match=r"PINTOK_CORE \(did you mean PINTOK_CORES\?\)"):
        resolve(environment={"PINTOK_CORE": "2"})
    assert resolve(environment={"PINTOK_TEST_DATA": "/x", "PATH": "/bin"}) == resolve()


def test_variable_that_kubernetes_sets_is_explained() -> None:
    with pytest.raises(ConfigError, match="enableServiceLinks: false"):
        resolve(environment={"PINTOK_PORT": "udp://10.0.0.7:7265"})


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ({"path": "xdp"}, "--iface"),
        ({"path": "socket", "require": "xdp"}, "contradict"),
        ({"path": "socket", "zerocopy": "require"}, "contradict"),
        ({"zerocopy": "off", "require": "zerocopy"}, "contradict"),
        ({"xdp_mode": "skb", "require": "drv"}, "contradict"),
        ({"cores": "1-2", "queues": "0"}, "as many queues as cores"),
        ({"arena": "1M"}, "must hold two messages"),
        ({"require_key": "on"}, "name the keys with --keys"),
        ({"models": ("a", "b"), "models_max": "1"}, "2 models and --models-max 1: raise it"),
    ],
)
def test_contradictions_are_refused(flags: dict[str, object], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        resolve(flags)


def test_refusal_of_a_flag_names_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^--xdp-mode: 'x' is not one of"):
        resolve({"xdp_mode": "x"})
    with pytest.raises(ConfigError, match=r"^--model: "):
        resolve({"models": ("=",)})


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("default", "default", "default"),
        ("chat=Qwen/Qwen3-8B", "chat", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/m/qwen3", "qwen3", "/m/qwen3"),
        ("/m/qwen3/", "qwen3", "/m/qwen3/"),
        ("./tokenizer.json", "tokenizer", "./tokenizer.json"),
        ("m/gpt2/tokenizer.json", "gpt2", "m/gpt2/tokenizer.json"),
        ("/m/cl100k_base.tiktoken", "cl100k_base", "/m/cl100k_base.tiktoken"),
        ("/m/a=b/x", "x", "/m/a=b/x"),
        ("llama-3.1", "llama-3.1", "llama-3.1"),
        ("/m/llama-3.1", "llama-3.1", "/m/llama-3.1"),
    ],
)
def test_model_gets_its_name_from_the_source(text: str, name: str, source: str) -> None:
    assert config.parse_model(text) == ModelChoice(name=name, source=source)


def test_http_address_forms() -> None:
    assert config.parse_http("127.0.0.1:80") == HttpAddress("127.0.0.1", 80)
    assert str(config.parse_http("[::1]:80")) == "[::1]:80"
    for bad in ("localhost", ":80", "x:y", "x:70000", ""):
        with pytest.raises(ValueError):
            config.parse_http(bad)


def test_number_lists_survive_a_round_trip() -> None:
    seed = int(os.environ.get("PINTOK_SEED", "1"))
    rng = random.Random(seed)
    for _ in range(200):
        numbers = sorted(rng.sample(range(70), rng.randrange(1, 40)))
        text = format_number_list(numbers)
        assert list(parse_number_list(text)) == numbers, f"seed {seed}: {text}"
    assert format_number_list([]) == ""
    with pytest.raises(ValueError):
        parse_number_list("0-4000000000")


@pytest.mark.parametrize("module", [config, cores, memory])
def test_examples_in_docstrings_hold(module) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted and not outcome.failed


def test_configuration_door_survives_anything() -> None:
    # Whatever the bytes, the answer is settings or one short sentence: never another exception.
    seed = int(os.environ.get("PINTOK_SEED", "20250"))
    rng = random.Random(seed)
    valid = b"cores: 2-3\nmodels:\n  a: /m/a\nhttp: off\nrequire: [xdp]\niface: eth0\nport: 7265\n"
    alphabet = (string.printable + "&*!|>%@`\u2028\ud7ff\x00é").encode()
    for number in range(3000):
        data = bytearray(valid)
        for _ in range(rng.randrange(1, 12)):
            at = rng.randrange(len(data))
            what = rng.randrange(4)
            if what == 0:
                data[at] = rng.randrange(256)
            elif what == 1:
                data[at:at] = bytes(rng.choice(alphabet) for _ in range(rng.randrange(1, 9)))
            elif what == 2:
                del data[at : at + rng.randrange(1, 9)]
            else:
                data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 40)]
        try:
            document = config.read_document(bytes(data), where="f")
            values = config.parse_document(document, where="f")
            defaults = {setting.key: setting.default for setting in config.SETTINGS}
            config.check_together(config.Settings(**(defaults | values)))
        except ConfigError as error:
            assert len(str(error)) < 500, f"seed {seed}, case {number}"
