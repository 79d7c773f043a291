"""What an upgrade of this cluster to a version would meet: everything that is looked at, once, for plan and for an apply of a plan's file.

Only looks. Runs on a control plane, as its admin.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments, releases
from kubeup.commands import etcd as etcd_commands
from kubeup.commands import launcher
from kubeup.errors import ClusterError, HostError, KbError, PreflightError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.trouble import Trouble

with lazily:
    from kubeup import yaml_files
    from kubeup.airgap import oci_layout
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import etcd, membership, objects
    from kubeup.config import choose, types
    from kubeup.diagnosis.checks import facts
    from kubeup.doctor import foreign_node, node_files
    from kubeup.doctor.looks import storage
    from kubeup.node import renewal
    from kubeup.phases import static_pods_swap
    from kubeup.upgrade import (
        available,
        corefile,
        kept,
        lacks,
        node_config,
        objection,
        planning,
        policy,
        survey,
        target,
        usage,
    )

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.machine.local_host import LocalHost
    from kubeup.releases import Version
    from kubeup.upgrade.available import Found
    from kubeup.upgrade.objection import Objection
    from kubeup.upgrade.planning import Change, Gap, Line, Wanted
    from kubeup.upgrade.survey import Asked, Versions
    from kubeup.upgrade.target import Target
    from kubeup.upgrade.usage import Usage

PLAN_API, PLAN_KIND = "kb/v1alpha1", "UpgradePlan"
CA_SOON_DAYS = 90
SHOWN = 3
"""How many of many things a sentence names."""
COREFILE = "the Corefile"
AUTHORITY = "the cluster's certificate authority"
SOURCES = ("packages", "bundle", "mirror")
LAYER = Path("/var/lib/kb")
"""Where what is kept of before lies."""


@dataclass
class Ground:
    """Where a look stands: this control plane, its cluster, and its etcd (None if no member can be asked)."""

    local: LocalHost
    patient: Patient
    api: kubeapi.Api
    members: Optional[etcd.Etcd]
    patches: str = ""
    """The folder of --patches; "" for the stored one."""
    keeps_edits: Optional[bool] = None
    """Of --hand-edits; None if nobody has said."""
    sources: str = ""
    """The flags that say where programs come from, as the lines to run have them: ` --bundle kb.tar`."""

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
    pods: Sequence[Target]
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
        raise launcher.no_control_plane(patient.paths)
    given = call.flags.get("kubeconfig")
    path = Path(given) if given else patient.paths.admin_conf
    server = "" if given else node_files.find_own_server(local, patient.paths)
    api = kubeapi.Api(local, kubeapi.read_identity(local, path, server=server), retry_s=2)
    members: Optional[etcd.Etcd] = None
    try:
        members = etcd_commands.find_client(call, local)
    except (HostError, UsageError) as error:
        call.report.note(f"etcd is not looked at: {error}")
    patches = str(Path(call.flags["patches"]).absolute()) if "patches" in call.flags else ""
    keeps = read_keeps(call)
    sources = "".join(f" --{name} {call.flags[name]}" for name in SOURCES if name in call.flags)
    return Ground(local, patient, api, members, patches, keeps, sources)


def read_keeps(call: Invocation) -> Optional[bool]:
    """--hand-edits: whether others' changes of manifests are kept; None if nobody has said."""
    return {"keep": True, "drop": False}.get(str(call.flags.get("hand-edits") or ""))


# ---- which version


def find_available(ground: Ground, call: Invocation) -> tuple[Found, ...]:
    """The newest patch of this minor and of the next, wherever they were found."""
    now = _running_version(ground)
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
    if version is None or version.minor not in releases.RELEASES:
        first, last = min(releases.RELEASES), max(releases.RELEASES)
        raise UsageError(
            f"Kubernetes version {word[:60]!r}",
            cause=choice.message or f"this kb deploys 1.{first} to 1.{last}",
            remedy="name one in full: kb upgrade plan v1.36.3; a newer one may need a newer kb",
            code="no-such-version",
        )
    return version


# ---- the look


def look(
    ground: Ground, version: Version, *, allows_experimental: bool = False, allows_candidates: bool = False
) -> Outlook:
    """Look at all of it. Raises ApiRefused, Unreachable if this node's API server does not answer, UsageError (unsupported-version)."""
    release = releases.find_release(version.text)
    asked = survey.ask_servers(ground.api)
    with ThreadPoolExecutor(4) as pool:
        versions_of = pool.submit(_read_versions, ground, asked)
        usage_of = pool.submit(usage.read_usage, ground.api, asked)
        texts_of = pool.submit(_read_texts, ground)
        own_of = pool.submit(_look_at_own, ground, version)
    versions, used, texts, own = versions_of.result(), usage_of.result(), texts_of.result(), own_of.result()
    former = versions.newest(survey.API_SERVER) or _running_version(ground)
    wanted = _make_wanted(ground, version, etcd_tag=versions.etcd_tag or release.etcd_tag, pods=own.pods)
    changes = planning.plan_changes(versions, wanted)
    drains = planning.needs_drain(versions, version)
    allowed = {"allows_experimental": allows_experimental, "allows_candidates": allows_candidates}
    objections = [
        *policy.judge(versions, version.text, **allowed),
        *own.objections,
        *usage.judge(used, version.text, drains=drains),
        *planning.say_not_ready(versions),
        *_judge_corefile(texts[COREFILE], versions, wanted=release.coredns_tag),
        *lacks.say_unseen(node.name for node in versions.nodes if node.name != ground.node),
    ]
    return Outlook(
        former,
        version,
        versions,
        own.pods,
        used,
        changes=changes,
        gaps=tuple(planning.plan_gaps(changes, versions, wanted=wanted)),
        lines=tuple(planning.plan_lines(changes, versions, wanted=wanted, sources=ground.sources)),
        objections=tuple(sorted(objections, key=lambda one: objection.WEIGHTS.index(one.weighs))),
        seen=planning.seen_of(versions, target=version.text, texts=texts),
        drains=drains,
    )


def _make_wanted(ground: Ground, version: Version, *, etcd_tag: str, pods: Sequence[Target]) -> Wanted:
    return planning.Wanted(
        version,
        etcd=etcd_tag,
        coredns=releases.find_release(version.text).coredns_tag,
        own=ground.node,
        api_gap_s=static_pods_swap.API_GAP_S,
        etcd_gap_s=static_pods_swap.ETCD_GAP_S,
        replaced=tuple(pod.name for pod in pods if pod.is_changed),
    )


def _running_version(ground: Ground) -> Version:
    """The version of this node's API server, by its manifest."""
    found = releases.parse_version(ground.patient.config.cluster.kubernetes_version)
    assert found is not None
    return found


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
    texts[AUTHORITY] = facts.read_or_empty(local, str(paths.pki / "ca.crt"))
    texts["kubeadm-config"] = objects.read_config_key(ground.api, "kubeadm-config", key="ClusterConfiguration")
    texts["kubelet-config"] = objects.read_config_key(ground.api, "kubelet-config", key="kubelet")
    texts[COREFILE] = objects.read_config_key(ground.api, "coredns", key="Corefile")
    return texts


@dataclass
class Own:
    """What an upgrade would do to this node's static pods, and what of this node speaks against it."""

    pods: Sequence[Target]
    objections: Sequence[Objection]


def _look_at_own(ground: Ground, version: Version) -> Own:
    """This node: what others changed in its manifests, what the new version lacks, and what will end soon, is slow or full."""
    try:
        pods = read_targets(ground, version)
    except KbError as error:
        trouble = Trouble(error.what, error.cause, error.remedy)
        return Own((), [objection.Objection("manifests-not-rendered", trouble, node=ground.node)])
    found = [*_judge_edits(ground, pods), *_judge_lacks(ground, pods, version=version)]
    swaps = any(pod.is_changed for pod in pods)
    certs = [*_judge_certs(ground), *(_judge_renewals(ground) if swaps else ())]
    return Own(pods, [*found, *_judge_disk(ground), *certs, *_judge_room(ground)])


def read_targets(ground: Ground, version: Version) -> tuple[Target, ...]:
    """This node's static pods for that version, three ways. Raises ClusterError: not-kubeadms-cluster, stored-config-invalid; UsageError:
    patches-directory-missing, patch-invalid, patch-failed."""
    local, paths = ground.local, ground.paths
    join: Optional[types.Join] = None
    member = membership.find_member_access(local, paths.kubernetes / "kubelet.conf")
    if member is not None and foreign_node.has_joined(local, paths):
        join = types.Join(member.server, member.ca_pem, control_plane=types.JoinControlPlane())
    stored = node_config.read_stored(ground.api, is_control_plane=True)
    former, config = (
        node_config.make_node_config(
            local, paths, own=ground.patient.config, stored=stored, join=join, version=one.text, patches=ground.patches
        )
        for one in (_running_version(ground), version)
    )
    return target.plan_targets(local, paths, former=former, config=config, keep_edits=ground.keeps_edits is not False)


def read_stored_version(ground: Ground) -> str:
    """The version in the cluster's configuration; "" if there is none."""
    text = objects.read_config_key(ground.api, "kubeadm-config", key="ClusterConfiguration")
    found = yaml_files.load_mapping(text, "ConfigMap kube-system/kubeadm-config") if text else {}
    return str(found.get("kubernetesVersion") or "")


def _judge_edits(ground: Ground, pods: Sequence[Target]) -> Iterator[Objection]:
    """What others changed in the manifests: somebody has to say whether it is kept."""
    edits = [edit for pod in pods for edit in pod.edits]
    if edits and ground.keeps_edits is None:
        cause = "; ".join(str(edit) for edit in edits[:SHOWN])
        more = f", and {len(edits) - SHOWN} more" if len(edits) > SHOWN else ""
        trouble = Trouble(
            f"{len(edits)} field{'s' * (len(edits) > 1)} of the static pods of {ground.node} are not as the stored configuration says",
            f"{cause}{more}",
            "say with --hand-edits keep or drop what becomes of it; if patches made it, give their folder with --patches",
        )
        yield objection.Objection("hand-edits", trouble, objection.MANDATORY, ground.node)
    for pod in pods:
        for one in pod.conflicts:
            trouble = Trouble(
                f"{pod.name} of {ground.node}: {one.field} is {one.found or 'not set'}",
                f"the new version has {one.wanted or 'nothing'} there",
                "see what would run: kb upgrade diff",
            )
            yield objection.Objection("hand-edit-conflicts", trouble, objection.SAID, ground.node)


def _judge_lacks(ground: Ground, pods: Sequence[Target], *, version: Version) -> Iterator[Objection]:
    release, socket = releases.find_release(version.text), ground.patient.config.node.cri_socket
    program = _find_kubelet(ground, version)
    look_at = lacks.Look(ground.local, ground.paths, ground.node, version, release, socket=socket, kubelet=program)

    def load(text: str) -> dict[str, Any]:
        return yaml_files.load_mapping(text, "the manifest")

    listed = [lacks.Pod(pod.name, load(pod.former), load(pod.wanted)) for pod in pods]
    yield from lacks.judge_pods(look_at, listed)
    yield from lacks.judge_kubelet(look_at)
    stored = objects.read_config_key(ground.api, "kubelet-config", key="kubelet")
    document = yaml_files.load_mapping(stored, "ConfigMap kube-system/kubelet-config") if stored else {}
    where = "the ConfigMap kube-system/kubelet-config"
    remedy = "kubectl -n kube-system edit configmap kubelet-config"
    yield from lacks.judge_kubelet_config(look_at, document, where=where, remedy=remedy, node="")


def _find_kubelet(ground: Ground, version: Version) -> Optional[Path]:
    """The new kubelet, if it is on this machine: fetched by an upgrade that was cut off, or installed already."""
    fetched = kept.programs_folder(ground.paths) / "kubelet"
    for path in (fetched if ground.local.exists(fetched) else None, ground.local.which("kubelet")):
        if path is None:
            continue
        told = ground.local.query([str(path), "--version"], timeout_s=15).stdout.replace("Kubernetes", "").strip()
        found = releases.parse_version(told)
        if found is not None and found.minor == version.minor:
            return path
    return None


def _judge_corefile(text: str, versions: Versions, *, wanted: str) -> Iterator[Objection]:
    """What becomes of the Corefile; and why CoreDNS would stay as it is."""
    running = [one for one in versions.of(survey.COREDNS) if one.version]
    if not running or not text:
        return
    try:
        migrated = corefile.migrate(text, former=running[0].version, wanted=wanted)
    except ClusterError as error:
        trouble = Trouble(f"CoreDNS stays at {running[0].version}: {error.what}", error.cause, error.remedy)
        yield objection.Objection("coredns-stays", trouble, objection.SAID)
        return
    for change in migrated.changes:
        trouble = Trouble(
            "the Corefile changes", change, "nothing has to be done; the former one is kept in the same ConfigMap"
        )
        yield objection.Objection("corefile-changes", trouble, objection.SAID)
    for path in migrated.unread:
        trouble = Trouble(f"the Corefile imports {path}", "kb cannot see it", "look at it yourself before the upgrade")
        yield objection.Objection("corefile-imports", trouble, objection.SAID)


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


def _judge_renewals(ground: Ground) -> Iterator[Objection]:
    """The certificates of this node that are renewed before its static pods are replaced, and those that are not."""
    found: dict[bool, list[tuple[datetime.datetime, str]]] = {False: [], True: []}
    for row in renewal.wanted_rows(ground.patient.config.cluster):
        try:
            one = renewal.read_expiry(ground.local, ground.paths, row=row)
        except HostError as error:
            trouble = Trouble(error.what, error.cause, error.remedy)
            yield objection.Objection("certificate-unreadable", trouble, objection.SAID, ground.node)
            continue
        if one.expires:
            found[one.is_external].append((one.expires, one.name))
    words = {False: ("certificates-renewed", ""), True: ("certificates-not-renewed", " not")}
    for is_external, those in found.items():
        if those:
            title, word = words[is_external]
            (end, name), verb = min(those), "is" if len(those) == 1 else "are"
            trouble = Trouble(
                f"{len(those)} of the certificates of {ground.node} {verb}{word} renewed",
                f"{'their CA signs elsewhere; ' if word else ''}the first of them, {name}, ends at {end:%Y-%m-%d %H:%M} UTC",
                "see all of them: kb certs check-expiration",
            )
            yield objection.Objection(title, trouble, objection.SAID, ground.node)


def _judge_room(ground: Ground) -> Iterator[Objection]:
    place = LAYER if ground.local.is_dir(LAYER) else LAYER.parent
    stat = ground.local.stat(ground.paths.etcd_data / "member/snap/db")
    database = stat.size if stat is not None else 0
    found = planning.judge_room(ground.node, free=ground.local.free_bytes(place), database=database, place=str(place))
    if found is not None:
        yield found


# ---- a plan's file


def say_line(line: Line) -> str:
    return " ".join(("kb", "upgrade", line.verb)) + line.sources


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
        "differences": [
            {
                "manifest": pod.name,
                "field": one.field,
                "wanted": one.wanted,
                "found": one.found,
                "isConflict": is_conflict,
            }
            for pod in outlook.pods
            for is_conflict, rows in ((False, pod.edits), (True, pod.conflicts))
            for one in rows
        ],
        "removedApis": [
            {
                "name": one.name,
                "removedRelease": one.removed,
                "requests": one.requests,
                "servers": list(one.servers),
                "since": moments.show(one.since) if one.since else None,
            }
            for one in outlook.usage.removed_apis
        ],
        "lines": [{"node": one.node, "command": say_line(one)} for one in outlook.lines],
        "seen": dict(outlook.seen),
        "digest": planning.digest_of(outlook.seen),
    }


def read_plan(local: LocalHost, path: Path) -> tuple[str, dict[str, str]]:
    """(version, what was seen) of a plan's file. Raises UsageError (not-a-plan); HostError: file-unreadable, not-a-yaml-mapping."""
    found, trouble = yaml_files.load_mapping(local.read_text(path), str(path)), ""
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
    """Raises PreflightError (plan-elsewhere, plan-outdated) if the cluster is not what it was when the plan was made; UsageError (not-a-plan)."""
    _, seen = read_plan(local, path)
    if seen.get(AUTHORITY, "") not in ("", outlook.seen.get(AUTHORITY)):
        raise PreflightError(
            f"the plan in {path} is of another cluster",
            cause="that one's certificate authority is not this one's",
            remedy=f"make one here: kb upgrade plan {outlook.target} --out {path}",
            code="plan-elsewhere",
        )
    moved = list(planning.find_moved(seen, outlook.seen))
    if moved:
        raise PreflightError(
            f"the plan in {path} is outdated",
            cause=moved[0] if len(moved) == 1 else f"{moved[0]}, and {len(moved) - 1} more",
            remedy=f"look again: kb upgrade plan {outlook.target} --out {path}",
            code="plan-outdated",
            details=moved,
        )
