"""Keys of etcd 2 in a member's data: etcd 3.6 does not start on them, and etcdutl of 3.5 finds them, beside a member that runs too.

Nobody writes such keys by Kubernetes since 1.6; clusters that were carried along since then, or shared their etcd, may have some. Where
there is no etcdutl that can tell, nothing is said: the swap takes an etcd back that does not start. Source: etcd 3.5,
etcdutl/etcdutl/check_command.go; etcd 3.6, server/storage/util.go (AssertNoV2StoreContent)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup.backup import etcdutl
from kubeup.errors import HostError
from kubeup.machine.host import Host
from kubeup.node import image_program
from kubeup.releases import parse_version
from kubeup.upgrade.survey import image_in, tag_of
from kubeup.yaml_files import commands_of_pod, flags_of

FROM, TO = (3, 5), (3, 6)


def find(
    host: Host, socket: str, *, now: Mapping[str, Any], wanted: Mapping[str, Any], data_dir: Path
) -> Optional[HostError]:
    """What keeps this node's etcd from its step to 3.6 (etcd-v2-content); None if nothing does, if it takes another step, or if it cannot
    be told. now, wanted: its static pod."""
    image = image_in(now.get("spec"), "etcd")
    tags = (parse_version(tag_of(one)) for one in (image, image_in(wanted.get("spec"), "etcd")))
    if [one and (one.major, one.minor) for one in tags] != [FROM, TO]:
        return None
    command, *_ = [*commands_of_pod(now), []]
    if flags_of(command).get("wal-dir"):  # the tool looks for the log in the data folder alone
        return None
    with image_program.mount_image(host, socket, image=image) as mounted:
        told = etcdutl.find_v2_content(host, mounted, data_dir=data_dir)
    if not told:
        return None
    return HostError(
        "etcd's data hold keys of etcd 2",
        cause=f"an etcd 3.6 does not start on them: {told}",
        remedy="remove them first, by an etcd 3.5 with --enable-v2: ETCDCTL_API=2 etcdctl ls --recursive; then let it take a snapshot",
        code="etcd-v2-content",
    )
