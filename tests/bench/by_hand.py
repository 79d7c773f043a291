"""Replace a static pod's manifest and wait until the new one is well: what an administrator does without a tool.

Runs on the node itself, with nothing but Python's standard library: `python3 by_hand.py kube-scheduler FILE URL`.
"""

import os
import ssl
import subprocess
import sys
import time
import urllib.request

PATIENCE_S = 240


def list_running(component: str) -> "set[str]":
    argv = ["crictl", "ps", "--quiet", "--name", f"^{component}$"]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2, context=ssl._create_unverified_context()) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


component, file, url = sys.argv[1:]
former = list_running(component)
waiting = f"/etc/kubernetes/manifests/.{component}.new"
with open(waiting, "w") as out, open(file) as wanted:
    out.write(wanted.read())
os.rename(waiting, f"/etc/kubernetes/manifests/{component}.yaml")
deadline = time.monotonic() + PATIENCE_S
while not (list_running(component) - former and not list_running(component) & former and is_well(url)):
    if time.monotonic() > deadline:
        sys.exit(f"{component} is not well after {PATIENCE_S} s")
    time.sleep(0.2)
