"""Several servers of the same model as one: rendezvous hashing, failing over, hedging.

    with Fleet(["10.0.0.7", "10.0.0.8:7265"], hedge_after=0.02) as fleet:
        ids = fleet.encode("Hello, world!")

Each text has an order of the servers that depends on its bytes and their names alone: equal texts
meet the same caches, and when a server goes only its own texts move. A server that does not answer
is asked last for a while. Answers of another generation of the model than the first are refused.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

from pintok._path import parse_server
from pintok._wire import Verdict
from pintok.client import Client
from pintok.encoding import Ids
from pintok.errors import RefusedError, TransportError

_T = TypeVar("_T")
_ELSEWHERE: Final = frozenset({Verdict.BUSY, Verdict.RATE_LIMITED})
_DOWN_SECONDS: Final = 1.0
_KEY_LEN_MAX: Final = 4096


class Fleet:
    """Thread-safe, blocking. Each attempt has the client's `timeout`; there are as many as servers.

    With `hedge_after`, a second server is asked as well when the first has not answered in so many
    seconds, and the earlier answer counts: requests are idempotent, so the other one is only work.
    """

    def __init__(
        self, servers: Sequence[str], *, hedge_after: float | None = None, **client: Any
    ) -> None:
        """`client` are keyword arguments of every `Client`. Nothing is sent yet."""
        if not servers or len(set(servers)) != len(servers):
            raise ValueError("servers must be different, and at least one")
        if hedge_after is not None and hedge_after <= 0:
            raise ValueError("hedge_after must be positive")
        self.hedge_after = hedge_after
        self._clients = {name: Client(*parse_server(name), **client) for name in servers}
        self._down: dict[str, float] = {}
        self._tag: int | None = None
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Close every client."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def order(self, key: str | bytes) -> list[str]:
        """The servers in the order in which they are asked for this text, those down at the end."""
        data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        data = data[:_KEY_LEN_MAX]

        def weight(name: str) -> bytes:
            return hashlib.blake2b(data, digest_size=8, key=name.encode()[:64]).digest()

        ranked = sorted(self._clients, key=weight, reverse=True)
        now = time.monotonic()
        return sorted(ranked, key=lambda name: self._down.get(name, 0.0) > now)

    def encode(self, text: str | bytes, **options: Any) -> Ids:
        """As `Client.encode`."""
        return self._ask(text, lambda client: client.encode(text, **options))

    def count(self, text: str | bytes, **options: Any) -> int:
        """As `Client.count`."""
        return self._ask(text, lambda client: client.count(text, **options))

    def decode(self, ids: Ids, **options: Any) -> str:
        """As `Client.decode`."""
        return self._ask(bytes(memoryview(ids)), lambda client: client.decode(ids, **options))

    # --- inside -------------------------------------------------------------------------------

    def _ask(self, key: str | bytes, call: Callable[[Client], _T]) -> _T:
        order = self.order(key)
        if self.hedge_after is not None and len(order) > 1:
            return self._hedged(order, call)
        error: Exception | None = None
        for name in order:
            try:
                return self._one(name, call)
            except TransportError as failure:
                error = failure
            except RefusedError as refusal:
                if refusal.verdict not in _ELSEWHERE:
                    raise
                error = refusal
        assert error is not None
        raise error

    def _one(self, name: str, call: Callable[[Client], _T]) -> _T:
        client = self._clients[name]
        try:
            answer = call(client)
        except TransportError:
            self._down[name] = time.monotonic() + _DOWN_SECONDS
            raise
        self._down.pop(name, None)
        with self._lock:
            if self._tag is None:
                self._tag = client.model_tag
            if self._tag != client.model_tag:
                raise RefusedError(
                    Verdict.MODEL_CHANGED, detail=f"{name} has another model than the others"
                )
        return answer

    def _hedged(self, order: list[str], call: Callable[[Client], _T]) -> _T:
        """The first good answer; the next server is asked when one has failed or is late."""
        with self._lock:
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=64)
            pool = self._pool
        waiting: set[concurrent.futures.Future[_T]] = set()
        error: Exception | None = None
        left = list(order)
        while left or waiting:
            if left and len(waiting) < 2:
                waiting.add(pool.submit(self._one, left.pop(0), call))
            more = left and len(waiting) < 2
            done, waiting = concurrent.futures.wait(
                waiting,
                timeout=self.hedge_after if more else None,
                return_when=concurrent.futures.FIRST_COMPLETED,
            )
            for future in done:
                failure = future.exception()
                if failure is None:
                    return future.result()
                refused = isinstance(failure, RefusedError) and failure.verdict not in _ELSEWHERE
                if refused or not isinstance(failure, TransportError | RefusedError):
                    raise failure
                error = failure
        assert error is not None
        raise error
