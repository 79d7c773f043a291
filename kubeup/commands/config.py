"""The commands config print, validate and migrate, and config images list and pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kubeup import releases
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.commands import config_documents
    from kubeup.config import choose
    from kubeup.machine import host
    from kubeup.node import image_pulls, images

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def print_defaults(call: Invocation) -> int:
    kind = call.command.name.rpartition(" ")[2]
    version = choose.choose_version(launcher.open_host(call), "").value
    call.print_document(config_documents.print_defaults(kind, call.flags.get("component-configs", []), version=version))
    return 0


def validate_config(call: Invocation) -> int:
    path, as_kubeadm = Path(launcher.required(call, "config")), bool(call.program.wishes.get("only-kubeadm"))
    warnings = config_documents.validate_config_file(launcher.open_host(call), path, as_kubeadm=as_kubeadm)
    for warning in warnings or ():
        call.report.warn(warning)
    call.print("ok")
    return 0


def migrate_config(call: Invocation) -> int:
    local = launcher.open_host(call)
    path, as_kubeadm = Path(launcher.required(call, "old-config")), bool(call.program.wishes.get("only-kubeadm"))
    text = config_documents.migrate_config_file(local, path, as_kubeadm=as_kubeadm)
    if "new-config" in call.flags:
        # the file contains tokens and the certificate key
        target = str(call.flags["new-config"])
        local.write_output(target, [host.encode_text(text, target)], is_secret=True)
    else:
        call.print_document(text)
    return 0


def images_list(call: Invocation) -> int:
    config = Launch(call).load_partial(("feature-gates", "image-repository", "kubernetes-version"))
    names = list(images.list_node_images(config, releases.find_release(config.cluster.kubernetes_version)))
    if call.output == "text":
        call.print("\n".join(names))
    else:
        call.print_value({"apiVersion": "output.kubeadm.k8s.io/v1alpha3", "kind": "Images", "images": names})
    return 0


def images_pull(call: Invocation) -> int:
    launch = Launch(call)
    config = launch.load_partial(("cri-socket", "feature-gates", "image-repository", "kubernetes-version"))
    release = releases.find_release(config.cluster.kubernetes_version)
    for name in image_pulls.pull_images(launch.local, config, release=release, report=call.report):
        call.print(f"[config/images] Pulled {name}")
    return 0
