"""The lab by hand: `python3 -m tests.e2e up 1.35`, from the repository's top. Nodes stay up until `down`.

The lab of this command is called `hand` (or $KB_E2E_LAB) and lives beside the one of a test run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from .lab import image, images, runtime, settings
from .lab.config import lab_config
from .lab.lab import Lab, clean_cache
from .lab.node import KUBECONFIG
from .lab.settings import LabError


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.e2e", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--lab", default=settings.lab_name("hand"), help="the lab's name (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name: str, help: str, *names: str) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=help, description=help)
        for argument in names:
            found.add_argument(argument)
        return found

    up = verb("up", "make nodes, boot them, leave them running")
    up.add_argument("version", nargs="?", help="Kubernetes minor, as in $KB_E2E_BIN (none: no Kubernetes on it)")
    up.add_argument("--nodes", type=int, default=1, metavar="N", help="how many (default: 1)")
    up.add_argument("--name", action="append", default=[], help="a node's name; may be repeated (default: node1...)")
    up.add_argument("--containerd", choices=image.VARIANTS, help="default: what fits the version")
    up.add_argument("--containerd-config", default="lab", help=f"{', '.join(runtime.CONFIGS)}, or a config.toml")
    up.add_argument("--no-images", action="store_true", help="do not preload the release's images")
    up.add_argument("--no-kubelet", action="store_true", help="without kubelet, kubectl, crictl")
    up.add_argument("--prepared", action="store_true", help="with the kubelet's packaged units, and IP forwarding")
    up.add_argument("--kubeadm", action="store_true", help="like --prepared, and kubeadm")
    up.add_argument("--no-default-route", action="store_true", help="without a default route")
    verb("ls", "list the nodes")
    run = verb("exec", "run a command on a node by ssh (exit status: the command's)", "node")
    run.add_argument("command", nargs=argparse.REMAINDER)
    verb("shell", "open a shell on a node by ssh", "node")
    verb("enter", "open a shell on a node without its network or sshd", "node")
    cp = verb("scp", "copy files to a node", "node")
    cp.add_argument("files", nargs="+", type=Path)
    cp.add_argument("--to", default="/root/", help="folder on the node (default: %(default)s)")
    verb("release", "give a running node a second release: its images, and its programs in a folder", "node", "version")
    verb("config", "print a config document for init on a node", "node")
    for name, help in {
        "stop": "shut a node down", "kill": "cut a node's power", "start": "switch a node on",
        "reboot": "shut down and boot", "plug": "put the network cable in", "unplug": "take the network cable out",
        "logs": "save a node's evidence and say where", "rm": "remove a node",
    }.items():  # fmt: skip
        verb(name, help, "node")
    registry = verb("registry", "the lab's image registry")
    registry.add_argument("action", choices=("start", "stop", "clear"))
    registry.add_argument("version", nargs="?", help="also offer this release's images")
    verb("outside", "list what the nodes asked of the outside")
    build = verb("build", "build the caches ahead: base system, variants, images, seeds")
    build.add_argument("versions", nargs="*", help="Kubernetes minors (default: all present)")
    verb("clean", "remove cached builds that no recipe makes any more")
    verb("down", "remove all nodes, the registry and the network")
    return parser.parse_args(argv)


def bring_up(lab: Lab, args: argparse.Namespace) -> None:
    """Make and boot the nodes asked for."""
    config = args.containerd_config
    if config not in runtime.CONFIGS:
        config = Path(config).read_text()
    wishes: dict[str, Any] = {
        "version": args.version, "containerd": args.containerd, "containerd_config": config,
        "images": not args.no_images, "kubelet": not args.no_kubelet, "kubeadm": args.kubeadm, "prepared": args.prepared,
        "default_route": not args.no_default_route,
    }  # fmt: skip
    for name in args.name or [None] * args.nodes:
        print(lab.add_node(name, **wishes).describe())


def build_all(versions: Sequence[str]) -> None:
    """Build everything that the first use would build."""
    for variant in image.VARIANTS:
        print(image.ensure_variant(variant)[0])
    for version in versions or settings.read_releases():
        release = settings.find_release(version)
        print(images.ensure_layout(release))
        print(Lab.ensure_seed(release, release.facts.containerd))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command."""
    args = parse_args(argv)
    try:
        lab = Lab(args.lab).load()
        node = lab.find_node(args.node) if "node" in args else None
        if args.verb == "build":
            build_all(args.versions)
        elif args.verb == "clean":
            print("\n".join(f"removed {path}" for path in clean_cache()) or "nothing to remove")
        elif node is None:
            with lab.hold():
                return _run_on_lab(lab, args)
        elif args.verb in ("exec", "shell", "enter"):
            return _replace_process(node, args)
        elif args.verb == "scp":
            for file in args.files:
                print(f"{node.name}:{node.scp(file, args.to)}")
        elif args.verb == "release":
            print(f"{node.name}:{node.offer_release(args.version)}")
        elif args.verb == "config":
            print(lab_config(node.spec.version or "1.35", address=node.address))
        elif args.verb == "logs":
            print(node.collect(settings.LOGS / f"{lab.name}-{node.name}"))
        elif args.verb == "rm":
            lab.remove_node(node)
        else:
            getattr(node, args.verb)()
            print(node.describe())
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run_on_lab(lab: Lab, args: argparse.Namespace) -> int:
    """The commands that concern the lab as a whole."""
    if args.verb == "up":
        bring_up(lab.create(), args)
    elif args.verb == "registry":
        lab.create()
        if args.version:
            print("\n".join(lab.registry.add_release(settings.find_release(args.version))))
        getattr(lab.registry, args.action)()
    elif args.verb == "outside":
        print("\n".join(lab.list_outside()))
    elif args.verb == "down":
        lab.destroy()
    for each in lab.nodes.values():
        if args.verb == "ls":
            print(each.describe())
    return 0


def _replace_process(node: Any, args: argparse.Namespace) -> int:
    """Become ssh or nsenter, so that terminals, signals and exit statuses are the command's own."""
    sys.stdout.flush()
    prepare = f"export KUBECONFIG={KUBECONFIG};"
    if args.verb == "exec":
        command = args.command[1:] if args.command[:1] == ["--"] else args.command
        argv = [*node.ssh_argv(tty=sys.stdin.isatty()), "--", prepare, *command]
    elif args.verb == "shell":
        argv = [*node.ssh_argv(tty=True), "--", prepare, "exec bash -l"]
    else:
        leader = str(node.running.leader)
        argv = ["nsenter", "--target", leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
                "env", "-i", "HOME=/root", "TERM=xterm", images.PATH, f"KUBECONFIG={KUBECONFIG}", "bash", "-l"]  # fmt: skip
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    sys.exit(main())
