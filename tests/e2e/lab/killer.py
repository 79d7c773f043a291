"""Runs on a node: starts kb, sends it a signal at a chosen moment, and says in JSON how the node looks then.

    python3 killer.py '{"argv": ["python3", "kb.pyz", "init"], "phase": 7, "delay_s": 0.1, "signal": 9}'

`phase`: the signal comes when the line of this phase (`[ 7/35]`) is printed, `delay_s` later; 0: when kb has started.
Only the standard library, for this is copied to the node.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

KEY_BLOCK = re.compile(r"-----BEGIN (?:RSA |EC )?PRIVATE KEY-----.*?-----END (?:RSA |EC )?PRIVATE KEY-----", re.DOTALL)
KEY_DATA = re.compile(r"client-key-data: (\S+)")
LEFTOVER = re.compile(r"\..+\.kb-\d+-[0-9a-f]+")
PROGRAM = Path(__file__)
FOLDERS = ("/etc", "/var/lib/kb", "/var/lib/kubelet", "/usr/local", "/opt/cni")


def read_keys() -> dict[str, str]:
    """file -> hash of the private key in it, for every file of /etc/kubernetes that holds one."""
    keys = {}
    for path in sorted(Path("/etc/kubernetes").rglob("*")):
        if path.is_file() and path.suffix in (".key", ".conf") and not LEFTOVER.fullmatch(path.name):
            found = KEY_BLOCK.findall(path.read_text()) + KEY_DATA.findall(path.read_text())
            if found or path.suffix == ".key":
                keys[str(path)] = hashlib.sha256("".join(found).encode()).hexdigest()[:16] if found else "HALF"
    return keys


def find_leftovers() -> list[str]:
    return [str(p) for folder in FOLDERS for p in Path(folder).rglob(".*.kb-*") if LEFTOVER.fullmatch(p.name)]


def run(argv: list[str], phase: int, delay_s: float, number: int) -> dict[str, Any]:
    """Run kb; returns its exit status, what it printed, and the private keys and leftovers on the disk."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    assert process.stdout is not None

    def strike() -> None:
        time.sleep(delay_s)
        if process.poll() is None:
            process.send_signal(number)

    if phase == 0:
        threading.Thread(target=strike, daemon=True).start()
    lines, last = [], 0
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        match = re.match(r"\[ *(\d+)/\d+\]", line)
        last = int(match.group(1)) if match else last
        if match and last == phase and number:
            if delay_s:
                threading.Thread(target=strike, daemon=True).start()
            else:
                process.send_signal(number)
    status = process.wait()
    return {"status": status, "last": last, "lines": lines, "keys": read_keys(), "leftovers": find_leftovers()}


if __name__ == "__main__":
    wish = json.loads(sys.argv[1])
    print(json.dumps(run(wish["argv"], wish.get("phase", 0), wish.get("delay_s", 0), wish.get("signal", 9))))
