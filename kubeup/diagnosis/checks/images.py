"""The check that pulls images: every image that this node needs is present or can be pulled."""

from __future__ import annotations

from typing import Optional

from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings, Node
from kubeup.errors import HostError
from kubeup.node import image_pulls, images, runtime


def check_images(node: Node) -> Findings:
    """Pull what is missing, including the runtime's own sandbox image: without it no pod can start."""
    wanted = list(images.list_node_images(node.config, node.release))
    sandbox = node.runtime.sandbox_image
    if sandbox and sandbox not in wanted:
        wanted.append(sandbox)
    return _pull(node, wanted, sandbox=sandbox)


def check_balancer_image(node: Node) -> Findings:
    """A worker's kubelet pulls its images itself, but needs this one before it can reach the cluster."""
    if not node.config.kb.load_balancer.is_local:
        return ()
    return _pull(node, [images.load_balancer_image(node.config.kb)], sandbox="")


def _pull(node: Node, wanted: list[str], *, sandbox: Optional[str]) -> Findings:
    registration = node.config.node
    try:
        result = image_pulls.ensure_images(
            node.host,
            registration.cri_socket,
            names=wanted,
            policy=registration.image_pull_policy,
            is_serial=registration.image_pull_serial,
            tell=node.tell,
        )
    except HostError as error:
        yield Finding("ImagePull", ERROR, str(error), error.remedy)
        return
    plain = [failure for failure in result.failed if failure.image != sandbox]
    for failure in image_pulls.group_failures(plain):
        yield Finding("ImagePull", ERROR, str(failure), failure.remedy)
    for failure in result.failed:
        if failure.image == sandbox:
            yield _describe_missing_sandbox(node, failure)


def _describe_missing_sandbox(node: Node, error: image_pulls.ImagePullError) -> Finding:
    wanted = images.image_of("pause", node.config.cluster, release=node.release).ref
    if error.image == wanted:
        return Finding("ImagePull", ERROR, str(error), error.remedy)
    return Finding(
        "ImagePull",
        ERROR,
        f"{node.runtime.label} starts every Pod with the image {error.image}, which cannot be pulled: {error.cause}",
        runtime.describe_setting(node.runtime, "sandbox_image", value=f'"{wanted}"', host=node.host),
    )
