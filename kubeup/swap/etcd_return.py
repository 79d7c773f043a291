"""The way back of an etcd that does not start again with the data that is there.

A single member gets the copy of its folder that was made while it was stopped. One of several never gets old data back, because it has voted since:
it is removed from the list, emptied, and added again as a learner, which copies the others' data (H8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kubeup.cluster import etcd_join
from kubeup.cluster.etcd import Etcd
from kubeup.engine.run import Run
from kubeup.node import etcd_data
from kubeup.swap import manifests, proof
from kubeup.swap.patience import find_patience
from kubeup.yaml_files import commands_of_pod, containers_of_pod, dump_yaml, flags_of, load_mapping

PROMOTE_S = 120.0
"""How long a member may take to copy the others' data."""


def restore(run: Run, former: str) -> None:
    """Start the former manifest with the copy of the data. Raises HostError, NotProven."""
    manifests.take_out(run, ["etcd"])
    etcd_data.restore_data(run.host, run.paths.etcd_data)
    known = proof.list_ids(run, ["etcd"])
    manifests.put_in(run, "etcd", text=former)
    proof.wait_until_works(run, "etcd", text=former, known=known, timeout_s=PROMOTE_S)


def rejoin(run: Run, former: str, *, urls: Sequence[str], keep: Callable[[str], None]) -> None:
    """Have the member join again, with an empty folder and the former manifest, whose --initial-cluster names all members. urls: of the
    other members, for clients. keep: is told that manifest before it is put in. Raises ClusterError, HostError."""
    command, *_ = [*commands_of_pod(load_mapping(former, "etcd.yaml")), []]
    flags = flags_of(command)
    name, peer_url = flags.get("name", run.config.node.name), flags.get("initial-advertise-peer-urls", "")
    client = proof.own_etcd(run)
    own = flags.get("advertise-client-urls", "").split(",")
    others = Etcd(
        run.host, [url for url in dict.fromkeys([*urls, *client.endpoints]) if url not in own], tls=client.tls
    )
    manifests.take_out(run, ["etcd"])
    rows = etcd_join.remove_and_add_learner(
        others,
        name=name,
        peer_url=peer_url,
        empty=lambda: etcd_data.begin_replacement(run.host, run.paths.etcd_data),
        register=run.promises.register,
        tell=run.report.waiting,
    )
    text = with_initial_cluster(former, rows)
    keep(text)
    manifests.put_in(run, "etcd", text=text)
    etcd_join.promote_when_ready(
        others, peer_url, timeout_s=PROMOTE_S * find_patience(run.host), tell=run.report.waiting
    )
    etcd_data.end_replacement(run.host, run.paths.etcd_data)
    run.report.note(
        "this node's member of etcd joined again, since its data could not be used; it has copied those of the others"
    )


def with_initial_cluster(text: str, rows: Sequence[tuple[str, str]]) -> str:
    """The manifest of etcd with these members (name, peer URL), of a cluster that exists."""
    pod = load_mapping(text, "etcd.yaml")
    own = containers_of_pod(pod)[0]
    names = ("--initial-cluster=", "--initial-cluster-state=")
    kept = [word for word in own["command"] if not str(word).startswith(names)]
    members = ",".join(f"{name}={url}" for name, url in rows)
    own["command"] = [
        *kept,
        f"--initial-cluster={members}",
        "--initial-cluster-state=existing",
    ]
    return dump_yaml(pod)
