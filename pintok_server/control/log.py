"""What the server says while it runs: one line an event, as text or as JSON, on standard error."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import TextIO


@dataclasses.dataclass(frozen=True, slots=True)
class Log:
    """Writes events to a stream: a sentence each, or with `json_lines` a JSON object each."""

    json_lines: bool = False
    stream: TextIO | None = None

    def say(self, event: str, text: str, **fields: object) -> None:
        """One line: the sentence, or an object with `time`, `event`, `text` and the fields.

        A reader that has gone away does not stop the server.
        """
        stream = self.stream if self.stream is not None else sys.stderr
        if self.json_lines:
            head = {"time": round(time.time(), 3), "event": event, "text": text}
            line = json.dumps(head | fields, ensure_ascii=False)
        else:
            line = text
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            return
