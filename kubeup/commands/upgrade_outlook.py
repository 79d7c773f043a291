"""What an upgrade of this cluster to a version would meet: everything that is looked at, once, for plan and for an apply of a plan's file.

Only looks. Runs on a control plane, as its admin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import releases
from kubeup.commands import etcd as etcd_commands
from kubeup.errors import HostError, PreflightError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.trouble import Trouble

with lazily:
    from kubeup import yaml_files
    from kubeup.airgap import oci_layout
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import etcd, objects
    from kubeup.config import choose
    from kubeup.diagnosis.checks import facts
    from kubeup.doctor import node_files
    from kubeup.doctor.looks import storage
    from kubeup.node import images, renewal
    from kubeup.phases import static_pods_swap
    from kubeup.upgrade import available, lacks, objection, planning, policy, survey, usage

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.machine.local_host import LocalHost
    from kubeup.releases import Version
    from kubeup.upgrade.available import Found
    from kubeup.upgrade.objection import Objection
    from kubeup.upgrade.planning import Change, Gap, Line
    from kubeup.upgrade.survey import Asked, Versions
    from kubeup.upgrade.usage import Usage

PLAN_API, PLAN_KIND = "kb/v1alpha1", "UpgradePlan"
CA_SOON_DAYS = 90
LAYER = Path("/var/lib/kb")
"""Where what is kept of before lies."""


@dataclass
class Ground:
    """Where a look stands: this control plane, its cluster, and its etcd (None if no member can be asked)."""

    local: LocalHost
    patient: Patient
    api: kubeapi.Api
    members: Optional[etcd.Etcd]

    @property
    def paths(self) -> Paths:
        return self.patient.paths

    @property
    def node(self) -> str:
        return self.patient.config.node.name


@dataclass
class Outlook:
    """What an upgrade to `target` would meet. texts: what was read, by name, as planning.seen_of takes it."""

    former: Version
    target: Version
    versions: Versions
    usage: Usage
    changes: Sequence[Change]
    gaps: Sequence[Gap]
    lines: Sequence[Line]
    objections: Sequence[Objection]
    seen: Mapping[str, str]
    drains: bool

    @property
    def blocks(self) -> bool:
        """Whether something keeps some node from being upgraded, unless it is overridden."""
        return any(one.weighs != objection.SAID for one in self.objections)


def find_ground(call: Invocation, local: LocalHost) -> Ground:
    """Raises HostError: not-a-control-plane, kubeconfig-unreadable."""
    patient = node_files.read_patient(local, Paths())
    if not patient.is_control_plane:
        raise HostError(
            "this node is not a control plane",
            cause=f"there is no {patient.paths.manifest('kube-apiserver')}",
            remedy="run it on a control plane: kubectl get nodes -l node-role.kubernetes.io/control-plane",
            code="not-a-control-plane",
        )
    given = call.flags.get("kubeconfig")
    path = Path(given) if given else patient.paths.admin_conf
    server = "" if given else node_files.find_own_server(local, patient.paths)
    api = kubeapi.Api(local, kubeapi.read_identity(local, path, server=server), retry_s=2)
    members: Optional[etcd.Etcd] = None
    try:
        members = etcd_commands.find_client(call, local)
    except (HostError, UsageError) as error:
        call.report.note(f"etcd is not looked at: {error}")
    return Ground(local, patient, api, members)


# ---- which version


def find_available(ground: Ground, call: Invocation) -> tuple[Found, ...]:
    """The newest patch of this minor and of the next, wherever they were found."""
    now = releases.parse_version(ground.patient.config.cluster.kubernetes_version)
    assert now is not None
    found = list(available.find_in_runtime(ground.local, ground.patient.config.node.cri_socket))
    if "mirror" in call.flags:
        found += available.find_at_mirror(ground.local, str(call.flags["mirror"]))
    if "bundle" in call.flags:
        found += list(_find_in_bundle(ground.local, Path(call.flags["bundle"])))
    elif "mirror" not in call.flags:
        found += available.find_official(ground.local, (now.minor, now.minor + 1))
    return available.choose_next(found, now)


def _find_in_bundle(local: LocalHost, path: Path) -> Iterator[Found]:
    version = releases.parse_version(oci_layout.read_kubernetes_version(local, path.absolute()))
    if version is not None:
        yield available.Found(version, f"the bundle {path}")


def parse_target(local: LocalHost, word: str) -> Version:
    """A version, or a label that stands for one (`stable-1.36`). Raises UsageError (no-such-version)."""
    choice = choose.choose_version(local, word)
    version = releases.parse_version(choice.value) if word.strip() else None
    if version is None:
        raise UsageError(
            f"Kubernetes version {word[:60]!r}",
            cause=choice.message or "it is neither a version nor a label such as stable-1.36",
            remedy="name it in full: kb upgrade plan v1.36.3",
            code="no-such-version",
        )
    return version


# ---- the look


def look(
    ground: Ground, target: Version, *, allows_experimental: bool = False, allows_candidates: bool = False
) -> Outlook:
    """Look at all of it. Raises ApiRefused, Unreachable if this node's API server does not answer, UsageError (unsupported-version)."""
    release = releases.find_release(target.text)
    asked = survey.ask_servers(ground.api)
    with ThreadPoolExecutor(4) as pool:
        versions_of = pool.submit(_read_versions, ground, asked)
        usage_of = pool.submit(usage.read_usage, ground.api, asked)
        texts_of = pool.submit(_read_texts, ground)
        own_of = pool.submit(lambda: list(_judge_own(ground, target)))
    versions, used, texts, own = versions_of.result(), usage_of.result(), texts_of.result(), own_of.result()
    former = versions.newest(survey.API_SERVER) or releases.parse_version(
        ground.patient.config.cluster.kubernetes_version
    )
    assert former is not None
    gaps = {"api_gap_s": static_pods_swap.API_GAP_S, "etcd_gap_s": static_pods_swap.ETCD_GAP_S}
    etcd_tag = versions.etcd_tag or release.etcd_tag
    wanted = planning.Wanted(target, etcd=etcd_tag, coredns=release.coredns_tag, own=ground.node, **gaps)
    changes = planning.plan_changes(versions, wanted)
    drains = planning.needs_drain(versions, target)
    allowed = {"allows_experimental": allows_experimental, "allows_candidates": allows_candidates}
    objections = [
        *policy.judge(versions, target.text, **allowed),
        *own,
        *usage.judge(used, target.text, drains=drains),
        *planning.say_not_ready(versions),
        *_judge_room(ground),
        *lacks.say_unseen(node.name for node in versions.nodes if node.name != ground.node),
    ]
    return Outlook(
        former,
        target,
        versions,
        used,
        changes=changes,
        gaps=tuple(planning.plan_gaps(changes, versions, wanted=wanted)),
        lines=tuple(planning.plan_lines(changes, versions, wanted=wanted)),
        objections=tuple(sorted(objections, key=lambda one: objection.WEIGHTS.index(one.weighs))),
        seen=planning.seen_of(versions, target=target.text, texts=texts),
        drains=drains,
    )


def _read_versions(ground: Ground, asked: Sequence[Asked]) -> Versions:
    is_external = ground.patient.config.cluster.external_etcd is not None
    return survey.read_versions(ground.api, members=ground.members, is_external=is_external, servers=asked)


def _read_texts(ground: Ground) -> dict[str, str]:
    """What a plan stands on besides versions: the cluster's configuration, and this node's files."""
    paths, local = ground.paths, ground.local
    files = [
        *(paths.manifest(name) for name in ground.patient.components),
        paths.kubelet_config,
        paths.kubelet_flags_env,
    ]
    texts = {f"{path} of {ground.node}": facts.read_or_empty(local, str(path)) for path in files}
    texts["kubeadm-config"] = objects.read_config_key(ground.api, "kubeadm-config", key="ClusterConfiguration")
    texts["kubelet-config"] = objects.read_config_key(ground.api, "kubelet-config", key="kubelet")
    texts["the Corefile"] = objects.read_config_key(ground.api, "coredns", key="Corefile")
    return texts


def _judge_own(ground: Ground, target: Version) -> Iterator[Objection]:
    """What of this node the new version lacks, and what will end soon or is slow."""
    release = releases.find_release(target.text)
    config = ground.patient.config
    look_at = lacks.Look(ground.local, ground.paths, ground.node, target, release, socket=config.node.cri_socket)
    yield from lacks.judge_pods(look_at, _plan_pods(ground, target))
    yield from lacks.judge_kubelet(look_at)
    stored = objects.read_config_key(ground.api, "kubelet-config", key="kubelet")
    document = yaml_files.load_mapping(stored, "ConfigMap kube-system/kubelet-config") if stored else {}
    where = "the ConfigMap kube-system/kubelet-config"
    remedy = "kubectl -n kube-system edit configmap kubelet-config"
    yield from lacks.judge_kubelet_config(look_at, document, where=where, remedy=remedy, node="")
    yield from _judge_disk(ground)
    yield from _judge_certs(ground)


def _plan_pods(ground: Ground, target: Version) -> Iterator[lacks.Pod]:
    """This node's static pods, with the images of the new version."""
    release = releases.find_release(target.text)
    for name in ground.patient.components:
        now = node_files.read_mapping(ground.local, ground.paths.manifest(name))
        image = survey.image_in(now.get("spec"), name)
        tag = release.etcd_tag if name == survey.ETCD else images.render_tag(target.text)
        text = json.dumps(now).replace(json.dumps(image), json.dumps(f"{image.rpartition(':')[0]}:{tag}"))
        yield lacks.Pod(name, now, json.loads(text))


def _judge_disk(ground: Ground) -> Iterator[Objection]:
    for finding in storage.look_at_disk(ground.patient):
        trouble = Trouble(finding.text, "etcd takes longer to start and to catch up there", finding.remedy)
        yield objection.Objection("slow-disk", trouble, objection.SAID, ground.node)


def _judge_certs(ground: Ground) -> Iterator[Objection]:
    """Authorities that end soon. Their certificates are renewed on the way, and they are not."""
    now = ground.local.now()
    for name in renewal.wanted_cas(ground.patient.config.cluster):
        found = renewal.read_ca_expiry(ground.local, ground.paths, name=name)
        if found.expires is None or (found.expires - now).days > CA_SOON_DAYS:
            continue
        trouble = Trouble(
            f"the certificate authority {name} ends at {found.expires:%Y-%m-%d %H:%M} UTC",
            "no certificate that it signs is accepted after that, and an upgrade does not renew it",
            "see what it has signed: kb certs check-expiration",
        )
        yield objection.Objection("authority-ends", trouble, objection.SAID, ground.node)


def _judge_room(ground: Ground) -> Iterator[Objection]:
    place = LAYER if ground.local.is_dir(LAYER) else LAYER.parent
    stat = ground.local.stat(ground.paths.etcd_data / "member/snap/db")
    database = stat.size if stat is not None else 0
    found = planning.judge_room(ground.node, free=ground.local.free_bytes(place), database=database, place=str(place))
    if found is not None:
        yield found


# ---- a plan's file


def say_line(line: Line) -> str:
    return " ".join(("kb", "upgrade", line.verb))


def describe(outlook: Outlook, found: Sequence[Found] = ()) -> dict[str, Any]:
    """The plan as an object: what -o json prints, and what --out writes."""
    return {
        "apiVersion": PLAN_API,
        "kind": PLAN_KIND,
        "from": outlook.former.text,
        "target": outlook.target.text,
        "available": [{"version": one.version.text, "source": one.source} for one in found],
        "blocks": outlook.blocks,
        "drains": outlook.drains,
        "components": planning.describe_changes(outlook.changes),
        "gaps": [{"node": one.node, "seconds": one.seconds, "why": one.why} for one in outlook.gaps],
        "objections": [planning.describe_objection(one) for one in outlook.objections],
        "removedApis": [
            {
                "name": one.name,
                "removedRelease": one.removed,
                "requests": one.requests,
                "servers": list(one.servers),
                "since": one.since.strftime("%Y-%m-%dT%H:%M:%SZ") if one.since else None,
            }
            for one in outlook.usage.removed_apis
        ],
        "lines": [{"node": one.node, "command": say_line(one)} for one in outlook.lines],
        "seen": dict(outlook.seen),
        "digest": planning.digest_of(outlook.seen),
    }


def read_plan(local: LocalHost, path: Path) -> tuple[str, dict[str, str]]:
    """(version, what was seen) of a plan's file. Raises UsageError (not-a-plan), HostError (file-unreadable)."""
    trouble, found = "", {}
    try:
        found = yaml_files.load_mapping(local.read_text(path), str(path))
    except yaml_files.YAMLError as error:
        trouble = str(error)
    seen = found.get("seen")
    if found.get("kind") != PLAN_KIND or not isinstance(seen, dict):
        trouble = trouble or f"its kind is {found.get('kind')!r}, not {PLAN_KIND!r}"
    elif found.get("digest") != planning.digest_of(seen):
        trouble = "it was changed after it was written: its digest is not that of what was seen"
    if trouble or not isinstance(seen, dict):
        raise UsageError(
            f"{path} is no plan of an upgrade",
            cause=trouble,
            remedy=f"make one: kb upgrade plan VERSION --out {path}",
            code="not-a-plan",
        )
    return str(found.get("target") or ""), {str(name): str(value) for name, value in seen.items()}


def check_plan(local: LocalHost, path: Path, *, outlook: Outlook) -> None:
    """Raises PreflightError (plan-outdated) if the cluster is not what it was when the plan was made; UsageError (not-a-plan)."""
    _, seen = read_plan(local, path)
    moved = list(planning.find_moved(seen, outlook.seen))
    if moved:
        raise PreflightError(
            f"the plan in {path} is outdated",
            cause=moved[0] if len(moved) == 1 else f"{moved[0]}, and {len(moved) - 1} more",
            remedy=f"look again: kb upgrade plan {outlook.target} --out {path}",
            code="plan-outdated",
            details=moved,
        )
