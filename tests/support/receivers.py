"""A mail server and a webhook on this machine, which keep what they receive."""

import contextlib
import email
import email.policy
import html
import json
import re
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from tests.support.airflow_server import free_ports

SECRET = "T0123/very-secret-end"
"""The end of the webhook's address, which is its credential."""

TO = "night@example.com, duty@example.com"


class _Mailbox:
    """The mails that a mail server has received."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


class _Webhook(BaseHTTPRequestHandler):
    """Keeps the path and the content of each post."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, json.loads(content)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Receivers:
    """A mail server and a webhook, what they received, and the environment that names them."""

    def __init__(self, smtp_port: int, webhook: ThreadingHTTPServer) -> None:
        self.mailbox, self._webhook = _Mailbox(), webhook
        self.paths_and_posts: list[tuple[str, dict[str, str]]] = []
        webhook.posts, webhook.status = self.paths_and_posts, 200
        mail = {"from_email": "pipeline@example.com", "disable_ssl": True, "disable_tls": True}
        self.environment = {
            "CAPTION_NOTIFY_EMAIL": TO,
            "CAPTION_NOTIFY_WEBHOOK": "chat",
            "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(
                {"conn_type": "smtp", "host": "127.0.0.1", "port": smtp_port, "extra": mail}
            ),
            "AIRFLOW_CONN_CHAT": json.dumps(
                {
                    "conn_type": "http",
                    "host": f"http://127.0.0.1:{webhook.server_address[1]}/services",
                    "password": SECRET,
                }
            ),
        }

    @property
    def mails(self) -> list[tuple[str, str]]:
        """The subject and the text of each mail, which went to all addresses."""
        assert all(mail["To"] == TO and mail["From"] == "pipeline@example.com" for mail in self.mailbox.mails)
        return [(mail["Subject"], mail.get_body().get_content()) for mail in self.mailbox.mails]

    @property
    def posts(self) -> list[str]:
        """The text of each post as Slack displays it; it went to the complete address."""
        assert all(path == f"/services/{SECRET}" and post.keys() == {"text"} for path, post in self.paths_and_posts)
        return [html.unescape(post["text"]) for _, post in self.paths_and_posts]

    def have(self, subject: str, containing: str) -> bool:
        """Whether both have received a notification with this subject and about this."""
        return any(found == subject and containing in text for found, text in self.mails) and any(
            post.startswith(subject) and containing in post for post in self.posts
        )

    def sent(self, subject: str, containing: str = "") -> str:
        """The text of the only mail with this subject and about this; the webhook was posted the same."""
        [text] = [text for found, text in self.mails if found == subject and containing in text]
        [post] = [post for post in self.posts if post.startswith(f"{subject}\n\n") and containing in post]
        shown = html.unescape(re.sub("</?pre.*?>", "", text))
        assert shown.split() == post.removeprefix(subject).split()
        return shown

    def refuse_posts(self) -> None:
        """The webhook's service does not know the address any more."""
        self._webhook.status = 404

    def close_webhook(self) -> None:
        """Nobody listens at the webhook's address any more."""
        self._webhook.shutdown()
        self._webhook.server_close()


@contextlib.contextmanager
def open_receivers() -> Iterator[Receivers]:
    """A mail server and a webhook in threads of their own."""
    [port] = free_ports(1)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Webhook) as webhook:
        receivers = Receivers(port, webhook)
        threading.Thread(target=webhook.serve_forever).start()
        controller = Controller(receivers.mailbox, hostname="127.0.0.1", port=port)
        controller.start()
        yield receivers
        controller.stop()
        webhook.shutdown()
