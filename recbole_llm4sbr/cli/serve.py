"""Verb `serve`: recommendations over HTTP, with a page to try them."""

import socket
from contextlib import suppress
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.cli.parsing import Arguments, Option, Verb

USAGE = """\
usage: recbole-llm4sbr serve --checkpoint=FILE[,FILE...] [--host=127.0.0.1] [--port=8000] [--key=value ...]

Serves trained models over the same items: POST /recommend, GET /health, GET /items?q=, the API's description under /docs, and a page at /
on which a person types titles and sees what every model recommends, side by side. Needs `pip install 'recbole-llm4sbr[serve]'`.

  recbole-llm4sbr serve --checkpoint=plain.pth,enhanced.pth --names=plain,enhanced
  recbole-llm4sbr serve --checkpoint=srgnn.pth,gcegnn.pth --ensemble=true        both, and both together as a third
  curl -s 127.0.0.1:8000/recommend -H 'Content-Type: application/json' -d '{"sessions": [["Toy Story", "Aladdin"]], "topn": 5}'
"""


def run(arguments: Arguments) -> int:
    """Load the models and serve until interrupted."""
    options = arguments.options
    if not options["checkpoint"]:
        raise UserError("serve needs --checkpoint=FILE, the file that `train` named")
    names = options["names"] or []
    if names and (len(names) != len(options["checkpoint"]) or len(set(names)) < len(names)):
        raise UserError(
            f"--names={','.join(names)} must be a name of its own for each of the {len(options['checkpoint'])} checkpoints"
        )
    if options["ensemble"] and len(options["checkpoint"]) < 2:
        raise UserError("--ensemble=true needs two checkpoints or more")
    try:
        import uvicorn
    except ImportError:
        raise UserError("serve needs FastAPI and uvicorn: pip install 'recbole-llm4sbr[serve]'") from None
    address = _bound(options["host"], options["port"])
    settings: dict[str, Any] = dict(arguments.settings)
    named = settings.pop("model", None)
    from recbole_llm4sbr.quick_start import Recommender
    from recbole_llm4sbr.recommend.server import create_app

    classes = [named] if named else []
    loaded = [Recommender.load(each, classes=classes, **settings) for each in options["checkpoint"]]
    if any(each.catalogue.tokens != loaded[0].catalogue.tokens for each in loaded):
        raise UserError("the checkpoints rank different items; serve those of one data set together")
    models = dict(zip(names or _titles([each.title for each in loaded]), loaded))
    if options["ensemble"]:
        together = Recommender.together(loaded)
        models[together.title] = together
    host = in_url(options["host"])
    print(f"serving {', '.join(models)} at http://{host}:{options['port']}/ (end with Ctrl+C)", flush=True)
    app = create_app(models, reached_as(options["host"]), options["allow_ask"])
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[address])
    return 0


def in_url(host: str) -> str:
    """A host as it stands in an address.

    >>> in_url("::1"), in_url("127.0.0.1")
    ('[::1]', '127.0.0.1')
    """
    return f"[{host}]" if ":" in host else host


def reached_as(host: str) -> list[str]:
    """The names under which a service that listens at a host is reached; older Starlette compares what stands before the first colon."""
    return ["*"] if host in ("0.0.0.0", "::") else [in_url(host), in_url(host).partition(":")[0], "localhost"]


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, taken before models are loaded.

    Raises:
        UserError: it is in use, or none of this machine's.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(
            f"cannot listen at {host}:{port} ({getattr(error, 'strerror', None) or error}); choose another --port or --host"
        ) from None
    return bound


def _titles(titles: list[str]) -> list[str]:
    """The titles, numbered where several are alike."""
    return [f"{title} ({place})" if titles.count(title) > 1 else title for place, title in enumerate(titles, 1)]


VERB = Verb(
    "serve",
    "recommendations over HTTP, with a page to try them",
    USAGE,
    run,
    (
        Option("checkpoint", "files that `train` named", None, "names"),
        Option("names", "what each is called, with commas; by default its model and intents", None, "names"),
        Option("ensemble", "serve all checkpoints together as one model more, their log-probabilities added", False, "flag"),
        Option("host", "address to listen at; 0.0.0.0 opens the service to the network", "127.0.0.1"),
        Option("port", "port to listen at", 8000, "whole", least=1),
        Option("allow_ask", 'requests may have the LLM asked ("intents": "ask")', False, "flag"),
    ),
    takes_files=False,
)
