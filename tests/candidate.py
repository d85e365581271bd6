"""Answers for texts with the installed tokenizers 1.0: run by the interpreter of its environment.

Reads JSON lines {"path", "texts", "pairs", "ids"} and writes for each {"ids": ids of each text with
and without special tokens, "pairs": ids of pairs, "decoded": texts of ids} or {"error": sentence}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import tokenizers


def answer(request: dict[str, Any]) -> dict[str, Any]:
    theirs = tokenizers.Tokenizer.from_file(request["path"])
    theirs.truncation = theirs.padding = None
    encode: Any = theirs.encode

    def ids(text: Any, special: bool) -> Any:
        try:
            return encode(text, add_special_tokens=special).ids
        except BaseException as error:  # A panic of the library is one of these.
            return f"{type(error).__name__}: {error}"

    return {
        "ids": [[ids(text, True), ids(text, False)] for text in request["texts"]],
        "pairs": [ids(tuple(pair), True) for pair in request.get("pairs", [])],
        "decoded": [
            [theirs.decode(one, skip_special_tokens=skip) for skip in (False, True)]
            for one in request.get("ids", [])
        ],
    }


def main() -> None:
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
