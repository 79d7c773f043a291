"""The first code that runs in kb.pyz.

Owns: the refusal of an interpreter that is too old, and the path from which everything else is imported.
Must not: use syntax that Python 3.6 cannot parse, or import anything of kb before the version is known.

Mirrors nothing of kubeadm. build_zipapp.py puts this file at the root of the archive.
"""

import sys


def main():
    if sys.version_info < (3, 9, 2):
        found = ".".join(str(number) for number in sys.version_info[:3])
        sys.stderr.write("kb: needs Python 3.9.2 or newer, this is " + found + ": run it with a newer python3\n")
        return 3
    import os

    # A link that is switched to another version, or a later chdir, must not change what a running kb imports.
    sys.path[0] = os.path.realpath(os.path.dirname(__file__))

    if sys.argv[1:2] == ["version"] and os.path.basename(sys.argv[0]) != "kubeadm":
        from kubeup.startup.version import print_version

        if print_version(sys.argv[2:]):
            return 0

    from kubeup.startup import head_start

    head_start.begin(sys.argv[1:])
    import kb

    return kb.main()


def run():
    """Run kb and end the process at once. Python would first take its modules apart, which lasts as long as a tenth of a
    join, and wait for keys that nobody asked for any more. What kb writes is on the disk when its functions return."""
    import os

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process)
    try:
        status = main()
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 0  # who reads no more wants to know no more
    except OSError as error:
        os.write(2, ("kb: the output cannot be written: " + str(error) + "\n").encode())
        status = 1
    os._exit(status)


if __name__ == "__main__":
    run()
