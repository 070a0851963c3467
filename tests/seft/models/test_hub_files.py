"""Errors of the hub never contain the signed link to a file."""

import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from seft.errors import SourceError
from seft.models import hub_files
from seft.models.hub_files import hub_errors, read_part
from tests.hub import use_hub
from tests.serving import Quiet

SIGNATURE = "?X-Amz-Signature=secret"


class _Redirecting(Quiet, BaseHTTPRequestHandler):
    """Redirects each request to a signed link. The link answers 503, or sends one byte after another."""

    trickles = False

    def do_GET(self) -> None:
        if SIGNATURE not in self.path:
            self.send_response(302)
            self.send_header("Location", self.path + SIGNATURE)
            self.end_headers()
        elif not self.trickles:
            self.send_response(503)
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the client leaves before the end
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.05)


class _Trickling(_Redirecting):
    trickles = True


@pytest.mark.parametrize(
    ("server", "reason"), [(_Redirecting, "HfHubHTTPError, status 503"), (_Trickling, "ReadTimeout")]
)
def test_the_error_of_a_file_says_the_reason_and_not_the_signed_link(
    server: type[BaseHTTPRequestHandler], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "HUB_SECONDS", 0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), server) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        use_hub(monkeypatch, f"http://127.0.0.1:{hub.server_port}", tmp_path)
        with pytest.raises(SourceError) as caught, hub_errors("owner/name", None):
            read_part("owner/name", "config.json", 0, 1 << 20, revision="main", token=None)
        hub.shutdown()
    assert caught.value.code == hub_files.UNREACHABLE
    assert f"owner/name: {reason}." in str(caught.value)
    assert "secret" not in str(caught.value)
