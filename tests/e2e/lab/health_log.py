"""Runs on a node: asks this node's static pods ten times in four seconds whether they are well, and writes down what each says.

    python3 health_log.py ADDRESS LOG

One line of JSON each time: [seconds since the epoch, {"etcd": true, "kube-apiserver": false, ...}]. Nobody is authenticated: what
counts is whether it answers 200. Only the standard library, for this is copied to the node.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
import urllib.request
from pathlib import Path

PROGRAM = Path(__file__)
EVERY_S = 0.4


def is_well(url: str, trust: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2, context=trust) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main(address: str, log: str) -> None:
    urls = {
        "etcd": "http://127.0.0.1:2381/health",
        "kube-apiserver": f"https://{address}:6443/readyz",
        "kube-controller-manager": "https://127.0.0.1:10257/healthz",
        "kube-scheduler": "https://127.0.0.1:10259/healthz",
    }
    trust = ssl._create_unverified_context()
    with Path(log).open("a", buffering=1) as out:
        while True:
            began = time.time()
            out.write(json.dumps([began, {name: is_well(url, trust) for name, url in urls.items()}]) + "\n")
            time.sleep(max(0.0, began + EVERY_S - time.time()))


if __name__ == "__main__":
    main(*sys.argv[1:])
