"""The commands etcd members and etcd remove: list and change the cluster's etcd members, on a control plane. The
members of an external etcd are only listed; changing them is its operator's job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.commands import launcher
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import etcd
    from kubeup.doctor import node_files
    from kubeup.swap import turn

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.machine.local_host import LocalHost


def members(call: Invocation) -> int:
    """List every member, and whether it serves. Queries etcd itself, so it needs no API server."""
    client = find_client(call, launcher.open_host(call))
    found = client.list_members(is_sure=False)
    trouble = etcd.probe_members(client, found)
    rows = [_describe(member, trouble.get(member.member_id, "")) for member in found]
    if call.output != "text":
        call.print_value(rows)
        return 0
    for row in rows:
        kind = "learner" if row["isLearner"] else "member"
        call.print(
            f"{row['id']:>16}  {row['name'] or '(never started)'}  {kind}  {' '.join(row['peerURLs'])}  {row['state']}"
        )
    voters = [member for member in found if not member.is_learner]
    living = sum(member.member_id not in trouble for member in voters)
    call.print(f"{living} of {len(voters)} voting members serve; {etcd.quorum_of(len(voters))} are needed")
    return 0


def _describe(member: etcd.Member, trouble: str) -> dict[str, Any]:
    return {
        "id": member.hex_id,
        "name": member.name,
        "isLearner": member.is_learner,
        "peerURLs": list(member.peer_urls),
        "clientURLs": list(member.client_urls),
        "state": trouble or "serves",
    }


def remove(call: Invocation) -> int:
    """Remove a member that is gone for good; refused if the remaining members would have no quorum, and while another control plane
    works on its etcd, whose member is away only for a moment."""
    launch = launcher.Launch(call)
    launch.require_root()
    if len(call.words) != 1:
        raise UsageError(
            "kb etcd remove takes one member",
            cause=f"{len(call.words)} were named",
            remedy="name it by its name, number or address: kb etcd members shows them",
            code="usage",
        )
    instead = "member remove ID"
    with hold_turn(launch, instead=instead):
        client = find_client(call, launch.local, instead=instead)
        found = client.list_members(is_sure=False)
        gone = etcd.match_member(found, call.words[0])
        trouble = etcd.probe_members(client, found)
        etcd.check_removal(found, gone, trouble=trouble)
        if gone.member_id not in trouble and not gone.is_learner and not call.flags.get("force"):
            raise UsageError(
                f"{gone.describe()} serves",
                cause="a live member is removed by its own machine, together with everything it runs",
                remedy=f"on that machine: kb reset; to remove only the member anyway: kb etcd remove {gone.hex_id} --force",
                code="etcd-member-serves",
            )
        if not launch.is_dry:
            client.remove(gone)
    left = [member.name or member.hex_id for member in found if member is not gone]
    if call.output != "text":
        call.print_value({"dryRun": launch.is_dry, "removed": gone.name or gone.hex_id, "left": left})
    elif launch.is_dry:
        call.print(f"would remove {gone.describe()}; left would be: {', '.join(left) or 'none'}\nnothing was changed")
    else:
        call.print(f"removed: {gone.describe()}; {len(left)} members are left")
    return 0


@contextlib.contextmanager
def hold_turn(launch: launcher.Launch, *, instead: str) -> Iterator[Callable[[], None]]:
    """This node's lock and the cluster's Lease; yields what goes on to hold that. A dry run takes neither. Raises what find_client raises
    before the cluster is asked for anything, and ClusterError (swap-elsewhere)."""
    call, local = launch.call, launch.local
    if launch.is_dry:
        find_client(call, local, instead=instead)
        yield lambda: None
        return
    with launch.locked(Paths()):
        find_client(call, local, instead=instead)
        patient = node_files.read_patient(local, Paths())
        runs = [  # this node's API server, then the one that admin.conf names
            launcher.make_run(local, patient.config, paths=patient.paths, report=call.report, kubeconfig_file=conf)
            for conf in (None, patient.paths.admin_conf)
        ]
        with turn.hold(runs, work="working on etcd") as hold_on:
            yield hold_on


def find_client(call: Invocation, local: LocalHost, *, instead: str = "") -> etcd.Etcd:
    """A client for the members that this node's static pod knows (its own and those it joined), else for the external
    members that its API server uses. instead: for a change, what the operator of an external etcd tells etcdctl.
    Raises HostError (no-local-etcd), UsageError (etcd-is-external)."""
    given = call.flags.get("cert-dir")
    paths = Paths(pki=Path(given)) if given else node_files.find_paths(local, Paths())
    manifest = paths.manifest("etcd")
    if local.exists(manifest):
        urls = etcd.client_urls_of_manifest(yaml_files.load_mapping(local.read_text(manifest), str(manifest)))
        return etcd.Etcd(local, urls, tls=etcd.read_client_tls(local, paths))
    flags = node_files.read_flags(local, paths, component="kube-apiserver")
    external = node_files.find_external_etcd(flags)
    if external is None:
        raise HostError(
            "this node does not run the cluster's etcd",
            cause=f"there is no {manifest}",
            remedy="run the command on a control plane: kubectl get nodes -l node-role.kubernetes.io/control-plane",
            code="no-local-etcd",
        )
    if instead:
        urls = external.endpoints
        raise UsageError(
            "the cluster's etcd is external",
            cause=f"its API servers call {', '.join(urls)}; kb did not create these members and does not change them",
            remedy=f"do it as its operator: etcdctl --endpoints {','.join(urls)} {instead}",
            code="etcd-is-external",
        )
    return etcd.Etcd(local, external.endpoints, tls=etcd.read_external_tls(local, external))
