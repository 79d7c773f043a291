"""Runs on a node: reads and writes through the API server of a kubeconfig every 100 ms, and writes down how that went.

    python3 api_client.py KUBECONFIG LOG keep|new NAME

keep: over one connection, which is made anew once when it is found closed, as every HTTP library does; new: over a connection for
each call. NAME: the ConfigMap in `default` that it writes to. One line of JSON a call: [began, seconds, "GET" or "PATCH", answer],
the times in seconds since the epoch; the answer is the HTTP status, with Retry-After if that is said, or why there was none. Only the standard library, for this is
copied to the node.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

PROGRAM = Path(__file__)
EVERY_S = 0.1
PATIENCE_S = 10.0
WHERE = "/api/v1/namespaces/default/configmaps"


class Client:
    """One user of the API."""

    def __init__(self, kubeconfig: str, *, keeps: bool) -> None:
        text = Path(kubeconfig).read_text()
        self.server = urllib.parse.urlsplit(find(text, "server"))
        self.trust = ssl.create_default_context(cadata=decode(find(text, "certificate-authority-data")))
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as pair:
            pair.write(
                decode(find(text, "client-certificate-data")) + "\n" + decode(find(text, "client-key-data")) + "\n"
            )
            pair.flush()
            self.trust.load_cert_chain(pair.name)
        self.keeps = keeps
        self.open: Optional[http.client.HTTPSConnection] = None

    def call(self, verb: str, path: str, body: Optional[bytes] = None) -> str:
        """The status, or why there was none."""
        was_open = self.open is not None
        try:
            return self._ask(verb, path, body)
        except (ConnectionError, http.client.HTTPException, ssl.SSLError) as error:
            self._close()
            if not was_open:
                return f"{type(error).__name__}: {error}"
        except OSError as error:
            self._close()
            return f"{type(error).__name__}: {error}"
        try:  # the server had closed it while nobody used it
            return self._ask(verb, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            return f"again: {type(error).__name__}: {error}"

    def _ask(self, verb: str, path: str, body: Optional[bytes]) -> str:
        if self.open is None:
            self.open = http.client.HTTPSConnection(
                self.server.hostname or "", self.server.port, timeout=PATIENCE_S, context=self.trust
            )
        words = {"Content-Type": "application/merge-patch+json" if verb == "PATCH" else "application/json"}
        self.open.request(verb, path, body, words)
        answer = self.open.getresponse()
        answer.read()
        if not self.keeps or answer.will_close:
            self._close()
        later = answer.getheader("Retry-After")
        return f"{answer.status}, Retry-After: {later}" if later else str(answer.status)

    def _close(self) -> None:
        if self.open is not None:
            self.open.close()
        self.open = None


def find(text: str, key: str) -> str:
    found = re.search(rf"^ +{key}: (\S+)$", text, re.MULTILINE)
    assert found, key
    return found[1].strip('"')


def decode(text: str) -> str:
    return base64.b64decode(text).decode()


def main(words: Sequence[str]) -> None:
    kubeconfig, log, way, name = words
    client = Client(kubeconfig, keeps=way == "keep")
    made = {"metadata": {"name": name}, "data": {"count": "0"}}
    client.call("POST", WHERE, json.dumps(made).encode())
    with Path(log).open("w", buffering=1) as out:
        count = 0
        while True:
            count += 1
            for verb, body in (
                ("GET", None),
                ("PATCH", json.dumps({"data": {"count": str(count)}}).encode()),
            ):
                began = time.time()
                answer = client.call(verb, f"{WHERE}/{name}", body)
                out.write(json.dumps([began, round(time.time() - began, 3), verb, answer]) + "\n")
            time.sleep(EVERY_S)


if __name__ == "__main__":
    main(sys.argv[1:])
