"""Run a command and print what it cost: one JSON line with wall seconds, CPU seconds, peak memory in KiB, exit code.

Runs on the node itself, with nothing but Python's standard library: `python3 measure.py kubeadm init ...`.
"""

import json
import resource
import subprocess
import sys
import time

began = time.monotonic()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
wall = time.monotonic() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(
    json.dumps(
        {
            "wall": wall,
            "cpu": used.ru_utime + used.ru_stime,
            "memory": used.ru_maxrss,
            "code": done.returncode,
            "end": (done.stdout + done.stderr)[-600:],
        }
    )
)
