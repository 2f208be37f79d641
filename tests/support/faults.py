"""An S3 server that misbehaves on request: an HTTP proxy in front of a good one.

A request that no rule matches passes unchanged. The rules are tried in the order of their planning, and each takes the
requests that it matches until its times are up.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """A request as it came: ``target`` is the raw path and query, percent-encoded."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """Of the object, without its bucket; of a listing its prefix."""
        if self.is_listing:
            return self._query.get("prefix", [""])[0]
        return unquote(urlsplit(self.target).path).removeprefix("/").partition("/")[2]

    @property
    def is_listing(self) -> bool:
        """Whether it asks for a page of a listing."""
        return "list-type" in self._query

    @property
    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@dataclass(frozen=True)
class Answer:
    """The answer to a request. After ``lost_after`` bytes of the body the connection ends; each byte is followed by
    ``pause`` seconds.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    lost_after: int | None = None
    pause: float = 0


Pass = Callable[[], Answer]
"""Asks the server behind."""

Fault = Callable[[Request, Pass], Answer | None]
"""From a request to its answer; ``None`` ends the connection without one."""


def refused(status: int, code: str, message: str = "as planned") -> Fault:
    """An S3 error in place of the answer: 503 SlowDown, 500 InternalError, 403 AccessDenied."""

    def fault(request: Request, _: Pass) -> Answer:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        return Answer(status, [("Content-Type", "application/xml")], b"" if request.method == "HEAD" else body)

    return fault


def dropped(_: Request, __: Pass) -> None:
    """The connection ends and nothing has happened."""


def lost(_: Request, ask: Pass) -> None:
    """The request is carried out; the connection ends before it is answered."""
    ask()


def cut_off(after: int) -> Fault:
    """The connection ends ``after`` so many bytes of the body."""

    def fault(_: Request, ask: Pass) -> Answer:
        answer = ask()
        return Answer(answer.status, answer.headers, answer.body, lost_after=after)

    return fault


def dripping(pause: float) -> Fault:
    """The body comes byte by byte, ``pause`` seconds apart."""

    def fault(_: Request, ask: Pass) -> Answer:
        answer = ask()
        return Answer(answer.status, answer.headers, answer.body, pause=pause)

    return fault


def stale() -> Fault:
    """Each request is answered for ever as it was the first time."""
    recorded: dict[str, Answer] = {}

    def fault(request: Request, ask: Pass) -> Answer:
        if request.target not in recorded:
            recorded[request.target] = ask()
        return recorded[request.target]

    return fault


def after(action: Callable[[], object]) -> Fault:
    """Something happens just before the request is carried out."""

    def fault(_: Request, ask: Pass) -> Answer:
        action()
        return ask()

    return fault


def at_first(times: int, fault: Fault) -> Fault:
    """The fault meets each thing so many times; then that passes."""
    met = Counter[str]()

    def fault_at_first(request: Request, ask: Pass) -> Answer | None:
        met[request.target] += 1
        return fault(request, ask) if met[request.target] <= times else ask()

    return fault_at_first


@dataclass
class Rule:
    """Which requests a fault meets: ``times`` of a method's, whose key contains ``key``, after ``skip`` of them."""

    fault: Fault
    method: str
    key: str
    listings: bool
    times: float
    skip: int
    met: int = field(default=0, init=False)

    def takes(self, request: Request) -> bool:
        if request.method != self.method or request.is_listing != self.listings or self.key not in request.key:
            return False
        self.met += 1
        return self.skip < self.met <= self.skip + self.times


class Proxy:
    """The server's address, the requests that it got, and the rules of its faults."""

    def __init__(self, upstream: str) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._upstream = urlsplit(upstream).netloc
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def plan(
        self,
        fault: Fault,
        method: str = "GET",
        key: str = "",
        *,
        listings: bool = False,
        times: float = float("inf"),
        skip: int = 0,
    ) -> None:
        """Have the fault meet such requests from now on."""
        with self._lock:
            self._rules.append(Rule(fault, method, key, listings, times, skip))

    def behave(self) -> None:
        """Forget all plans and all requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def asked(self, method: str = "GET", key: str = "", *, listings: bool = False) -> int:
        """How many such requests came."""
        rule = Rule(dropped, method, key, listings, float("inf"), 0)
        with self._lock:
            return sum(rule.takes(request) for request in self.requests)

    def answer(self, request: Request) -> Answer | None:
        """As planned."""
        with self._lock:
            self.requests.append(request)
            # Each rule counts what it matches, whether or not an earlier one takes it.
            taken = [rule for rule in self._rules if rule.takes(request)]

        def ask() -> Answer:
            connection = HTTPConnection(self._upstream)
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(request.method, request.target, request.body, headers)
            response = connection.getresponse()
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
            answer = Answer(response.status, kept, response.read())
            connection.close()
            return answer

        return taken[0].fault(request, ask) if taken else ask()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            proxy.connections += 1

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = proxy.answer(Request(self.command, self.requestline.split(" ")[1], dict(self.headers), body))
            if answer is None:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name, _ in answer.headers) and answer.status != 204:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            try:
                self._send(answer)
            except (BrokenPipeError, ConnectionResetError):  # the client has had enough
                self.close_connection = True

        def _send(self, answer: Answer) -> None:
            if answer.lost_after is not None:
                self.wfile.write(answer.body[: answer.lost_after])
                self.close_connection = True
            elif answer.pause:
                for byte in answer.body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(answer.pause)
            else:
                self.wfile.write(answer.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - so http.server calls them

    return Handler
