"""The HTTP service: recommendations as JSON, and a page on which a person tries them. Needs the extra `[serve]` (FastAPI, uvicorn).

Models are those that the command line named; no request names a file. Bodies, sessions and titles are bounded, the LLM is asked only where
the service was started with `--allow_ask`, and only requests for the hosts that it serves are answered.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.recommend.recommender import Recommender

MOST_SESSIONS, MOST_ITEMS, MOST_TOPN, MOST_LETTERS = 64, 500, 200, 500
MOST_BYTES = 1_000_000  # of a request
_PAGE = Path(__file__).parent / "page"
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"


def create_app(
    models: Mapping[str, Recommender], hosts: Sequence[str] = ("127.0.0.1", "localhost"), allow_ask: bool = False
) -> Any:
    """The application over trained models by name, all over the same catalogue.

    Args:
        models: what is served; the first is the one that answers where a request names none.
        hosts: names under which the service is reached; `*` for any.
        allow_ask: whether a request may have the LLM asked.

    Raises:
        UserError: FastAPI is not installed.
    """
    try:
        from fastapi import Body, FastAPI, HTTPException, Query
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import FileResponse, JSONResponse
        from pydantic import BaseModel, ConfigDict, Field
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise UserError("serve needs FastAPI and uvicorn: pip install 'recbole-llm4sbr[serve]'") from None
    first = next(iter(models))
    lock = threading.Lock()  # a model holds the intents of one request at a time

    Item = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)] | Annotated[int, Field(strict=True)]

    class Asked(BaseModel):
        """Sessions to recommend for; items are named by id or title, in click order; a whole number is the id of its digits."""

        model_config = ConfigDict(extra="forbid")
        sessions: Annotated[list[Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS)]], Field(min_length=1)]
        topn: Annotated[int, Field(ge=1, le=MOST_TOPN)] = 10
        intents: Literal["stored", "nearest", "none", "ask"] = "stored"
        model: Annotated[str, Field(max_length=MOST_LETTERS)] = first

    app = FastAPI(title="recbole-llm4sbr", version=__version__, description="Recommendations of trained session models.")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(_Bounded)

    @app.exception_handler(UserError)
    def refused(_: Any, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Any, error: RequestValidationError) -> JSONResponse:
        """As FastAPI's own answer, without what was sent: that may hold what no JSON can (NaN, half a character)."""
        found = [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]
        return JSONResponse({"detail": json.loads(printable(json.dumps(found, ensure_ascii=False)))}, 422)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the service answers, with what."""
        return {"status": "ok", "models": list(models), "items": len(models[first].catalogue.number), "version": __version__}

    @app.get("/items")
    def items(q: Annotated[str, Query(min_length=1, max_length=MOST_LETTERS)]) -> list[dict[str, str]]:
        """Up to ten items whose id is `q` or whose title holds it."""
        catalogue = models[first].catalogue
        return [{"item": catalogue.tokens[each], "title": catalogue.titles[each]} for each in catalogue.containing(q, 10)]

    @app.post("/recommend")
    def recommend(asked: Annotated[Asked, Body()]) -> dict[str, Any]:
        """The best items of each session, where its intents came from, and the items that they were localized to."""
        if asked.model not in models:
            raise HTTPException(404, f"no model {asked.model!r} is served; choose one of {', '.join(models)}")
        if len(asked.sessions) > MOST_SESSIONS:
            raise HTTPException(422, f"{len(asked.sessions)} sessions are more than {MOST_SESSIONS}; ask several times")
        if asked.intents == "ask" and not allow_ask:
            raise HTTPException(403, "this service does not ask the LLM; start it with --allow_ask")
        recommender = models[asked.model]
        numbers = [recommender.numbers(session, str(place)) for place, session in enumerate(asked.sessions)]
        with lock:
            scores, found = recommender.ranked(numbers, asked.intents)
        return {"model": asked.model, "results": recommender.described(numbers, scores, found, asked.topn)}

    for path, name in (("/", "index.html"), ("/page.js", "page.js"), ("/page.css", "page.css")):
        app.get(path, include_in_schema=False)(_file(_PAGE / name, FileResponse))
    return app


def _file(path: Path, response: Any) -> Any:
    def read() -> Any:
        return response(path, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})

    return read


class _Bounded:
    """Refuses bodies of more than `MOST_BYTES`, also such as do not say how long they are."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MOST_BYTES:
                await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"application/json")]})
                await send({"type": "http.response.body", "body": b'{"detail":"the request is larger than 1 MB"}'})
                return
            if not message.get("more_body") or message["type"] == "http.disconnect":
                break
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)
