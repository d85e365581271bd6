"""The conventional service that the benchmarks compare with: Hugging Face `tokenizers` behind HTTP.

What people run today: FastAPI on uvicorn with uvloop and httptools, one worker, the route and the
answer of vLLM's `/tokenize`. It takes nothing away from the comparison: access log off, no
validation beyond the body's model, the ids answered straight from the library.

    python bench/http_service.py --tokenizer tokenizer.json --host 10.0.0.1 --port 8000 [--core N]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import fastapi
import pydantic
import tokenizers
import uvicorn


class TokenizeRequest(pydantic.BaseModel):
    """The body of a request."""

    text: str
    add_special_tokens: bool = True


def create_app(tokenizer_path: Path) -> fastapi.FastAPI:
    """The application over one tokenizer.json."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    app = fastapi.FastAPI()

    @app.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> fastapi.responses.JSONResponse:
        encoding = tokenizer.encode(request.text, add_special_tokens=request.add_special_tokens)
        ids = encoding.ids
        return fastapi.responses.JSONResponse({"count": len(ids), "tokens": ids})

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--core", type=int, help="run on this core only")
    args = parser.parse_args()
    # A pool of Rust threads would not help one text at a time and would leave the given core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    uvicorn.run(
        create_app(args.tokenizer),
        host=args.host,
        port=args.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
