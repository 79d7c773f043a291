"""A control-plane node whose runtime has the images of the control plane, and a systemd that runs their programs."""

from __future__ import annotations

import copy
import json
from typing import Any, Optional

from kubeup.machine.host import CommandResult
from kubeup.node import images, static_pods
from kubeup.node.pod_trials import Trial, try_pod
from kubeup.releases import RELEASES
from tests.fake_host import FakeHost
from tests.fake_node import finished_node, make_config
from tests.unit.node.runtime_case import CRICTL, CTR, SOCKET, failed, image_list

RELEASE = RELEASES[35]
REFS = tuple(image.ref for image in images.list_images(make_config().cluster, RELEASE))
ROOT = "/run/kb-image.7.abcdef"
HELP = """Usage:
      --audit-log-path string   If set, all requests are logged to this file.
      --feature-gates colonSeparatedMultimapStringString   Options are:
                                kube:InPlacePodVerticalScaling=true|false (BETA - default=true)
                                InitialCorruptCheck=true|false (ALPHA - default=false)
"""


class Programs:
    """systemd-run: answers with `version` for --version, and with HELP for --help. `ran`: the command of every program."""

    def __init__(self, version: Optional[CommandResult] = None) -> None:
        self.version = version or CommandResult((), 0, "Kubernetes v1.35.6\n")
        self.ran: list[tuple[str, ...]] = []
        self.settings: tuple[str, ...] = ()

    def __call__(self, argv: tuple[str, ...]) -> CommandResult:
        command = argv[argv.index("--") + 1 :]
        self.settings = argv[: argv.index("--")]
        self.ran.append(command)
        return CommandResult(argv, 0, HELP) if command[1:2] == ("--help",) else self.version


def make_node(programs: Optional[Programs] = None) -> FakeHost:
    host = finished_node()
    host.programs |= {"crictl", "ctr", "systemd-run"}
    host.dirs |= {"/run/systemd/system", "/etc/ssl/certs", "/proc/7"}
    for name in static_pods.CONTROL_PLANE:
        host.files[f"{ROOT}/usr/local/bin/{name}"] = b""
    host.files[f"{ROOT}/usr/local/bin/etcd"] = b""
    host.answers.update(
        {
            f"{CRICTL} images -o json": image_list(*REFS),
            f"{CRICTL} info": json.dumps({"config": {"containerd": {"snapshotter": "overlayfs"}}}),
            f"{CTR} images mount": f"{ROOT}\n",
            f"{CTR} images unmount": f"{ROOT}\n",
            "mktemp -d": f"{ROOT}\n",
            "rmdir": "",
            "systemd-run": programs or Programs(),
        }
    )
    return host


def render(component: str) -> dict[str, Any]:
    return copy.deepcopy(static_pods.render_pod(component, make_config(), release=RELEASE))


def own_container(pod: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod["spec"]["containers"][0]
    return container


def with_flags(component: str, *flags: str) -> dict[str, Any]:
    """The pod with these flags instead of those of the same names."""
    pod = render(component)
    names = {flag.partition("=")[0] for flag in flags}
    command = own_container(pod)["command"]
    own_container(pod)["command"] = [word for word in command if word.partition("=")[0] not in names] + list(flags)
    return pod


def try_on(host: FakeHost, pod: Any, *, running: Any = None) -> list[Trial]:
    found = try_pod(host, socket=SOCKET, pod=pod, running=running)
    assert host.changes == []  # looks alone
    return found


def troubles(found: list[Trial]) -> list[tuple[str, str]]:
    """Name and cause of everything that would fail."""
    return [(trial.name, trial.trouble.cause) for trial in found if trial.trouble]


def untried(found: list[Trial]) -> dict[str, str]:
    return {trial.name: trial.not_tried for trial in found if trial.not_tried}


__all__ = ["CRICTL", "CTR", "SOCKET", "failed"]
