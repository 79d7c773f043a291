"""Which version may follow which: pure rules over what was seen of the cluster, for the plan and for the checks before an upgrade.

Each rule says what it objects to, and whether --force overrides it. kubeadm's rules are among them, with kubeadm's division into
mandatory and skippable; etcd's and the runtimes' are not kubeadm's. Source: cmd/kubeadm/app/phases/upgrade/policy.go,
https://kubernetes.io/releases/version-skew-policy
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Optional

from kubeup import releases
from kubeup.frozen_values import frozen
from kubeup.releases import Release, Version
from kubeup.trouble import Trouble
from kubeup.upgrade.objection import MANDATORY, SAID, SKIPPABLE, WEIGHTS, Objection, find_blockers
from kubeup.upgrade.survey import API_SERVER, ETCD, KUBE_PROXY, KUBELET, RUNTIME, Seen, Versions

__all__ = ["MANDATORY", "SAID", "SKIPPABLE", "Objection", "find_blockers", "judge", "judge_as_kubeadm"]

MINORS_AT_ONCE = 1
"""How many minors an API server may go up in one upgrade, and how many two API servers of a cluster may be apart."""


@frozen
class Wish:
    """Where the upgrade leads. etcd_tag: of the etcd that comes with it."""

    version: Version
    release: Release
    etcd_tag: str
    allows_experimental: bool = False
    allows_candidates: bool = False


def judge(
    versions: Versions, target: str, *, allows_experimental: bool = False, allows_candidates: bool = False
) -> tuple[Objection, ...]:
    """Everything that speaks against upgrading the cluster to `target` (`v1.36.3`), the mandatory first. allows_*: pre-releases, or
    release candidates of them, are wanted (kubeadm's --allow-experimental-upgrades and --allow-release-candidate-upgrades)."""
    version = releases.parse_version(target)
    release = releases.RELEASES.get(version.minor) if version and version.major == 1 else None
    if version is None or release is None:
        return (_refuse_unknown(target, version),)
    if versions.newest(API_SERVER) is None:
        told = "; ".join(one.unknown for one in versions.of(API_SERVER) if one.unknown) or "no API server was found"
        trouble = Trouble("the cluster's version is not known", told, "see why no API server answers: kb doctor")
        return (Objection("cluster-version-unknown", trouble),)
    wish = Wish(version, release, versions.etcd_tag or release.etcd_tag, allows_experimental, allows_candidates)
    found = [objection for rule in RULES for objection in rule(versions, wish)]
    return tuple(sorted(found, key=lambda one: WEIGHTS.index(one.weighs)))


def _refuse_unknown(target: str, version: Optional[Version]) -> Objection:
    first, last = min(releases.RELEASES), max(releases.RELEASES)
    is_newer = version is not None and (version.major, version.minor) > (1, last)
    remedy = "get a newer kb" if is_newer else f"name a version from v1.{first}.0 to v1.{last}.x"
    return Objection(
        "unsupported-version",
        Trouble(f"Kubernetes version {target!r}", f"this kb deploys 1.{first} to 1.{last}", remedy),
    )


def _known(seen: Iterable[Seen]) -> Iterator[tuple[Seen, Version]]:
    for one in seen:
        found = one.parsed
        if found is not None:
            yield one, found


# ---- Kubernetes' own skew


def _object_to_leap(versions: Versions, wish: Wish) -> Iterator[Objection]:
    """More than one minor up, for the cluster, or for an API server that an earlier upgrade left behind."""
    newest, target = versions.newest(API_SERVER), wish.version
    assert newest is not None
    if target.minor > newest.minor + MINORS_AT_ONCE:
        trouble = Trouble(
            f"version {target} is too high for a cluster of {newest}",
            "API servers go up one minor at a time",
            f"upgrade to 1.{newest.minor + 1} first: kb upgrade plan stable-1.{newest.minor + 1}",
        )
        yield Objection("version-too-high", trouble, SKIPPABLE if target.prerelease else MANDATORY)
        return
    for one, found in _known(versions.of(API_SERVER)):
        if target.minor > found.minor + MINORS_AT_ONCE:
            trouble = Trouble(
                f"the API server of {one.node or one.place} is still {found}",
                f"with others of {target}, two API servers of the cluster would be {target.minor - found.minor} minors apart",
                f"finish the former upgrade first, which brings it to {newest}; on that machine: kb upgrade node",
            )
            yield Objection("api-server-left-behind", trouble)


def _object_to_silence(versions: Versions, _: Wish) -> Iterator[Objection]:
    """An API server or a member of etcd that does not say its version: it may not be stopped by what follows."""
    for one in versions.of(API_SERVER, ETCD):
        if one.unknown and not one.version:
            what = f"{one.component} of {one.node or one.place or 'the cluster'} does not say which version it is"
            trouble = Trouble(what, one.unknown, "on that machine: kb doctor")
            yield Objection("does-not-answer", trouble, SKIPPABLE)


def _object_to_downgrade(versions: Versions, wish: Wish) -> Iterator[Objection]:
    newest, target = versions.newest(API_SERVER), wish.version
    assert newest is not None
    if target.key >= newest.key:
        return
    is_minor = target.minor < newest.minor
    cause = (
        "what an API server of a newer minor has stored, an older one may not be able to read"
        if is_minor
        else f"the cluster has an API server of {newest} already"
    )
    trouble = Trouble(
        f"version {target} is older than the cluster's {newest}",
        cause,
        f"name {newest} or a newer version; to take a node back that was upgraded, on that machine: kb upgrade rollback",
    )
    yield Objection("downgrade", trouble, MANDATORY if is_minor else SKIPPABLE)


def _object_to_unstable(_: Versions, wish: Wish) -> Iterator[Objection]:
    pre = wish.version.prerelease
    if not pre or wish.allows_experimental or (wish.allows_candidates and pre.startswith("rc")):
        return
    trouble = Trouble(f"version {wish.version} is a pre-release", "none was asked for", "name a released version")
    yield Objection("unstable-version", trouble, SKIPPABLE)


def _object_to_kubelets(versions: Versions, wish: Wish) -> Iterator[Objection]:
    """Kubelets that are more than three minors older than the new API servers, or newer than them."""
    for one, found in _known(versions.of(KUBELET)):
        if found.minor < wish.release.oldest_kubelet_minor:
            cause = f"an API server of {wish.version} supports kubelets from 1.{wish.release.oldest_kubelet_minor} on"
            remedy = f"upgrade the kubelet of {one.node} before the control plane goes further"
            yield Objection(
                "kubelet-too-old", Trouble(f"node {one.node} has kubelet {found}", cause, remedy), SKIPPABLE
            )
        elif found.minor > wish.version.minor:
            cause = f"no kubelet may be newer than an API server, and that will be {wish.version}"
            remedy = f"upgrade the cluster to 1.{found.minor}, or take the kubelet of {one.node} back"
            yield Objection(
                "kubelet-too-new", Trouble(f"node {one.node} has kubelet {found}", cause, remedy), SKIPPABLE
            )


def _object_to_kube_proxy(versions: Versions, wish: Wish) -> Iterator[Objection]:
    for _, found in _known(versions.of(KUBE_PROXY)):
        if wish.release.oldest_kubelet_minor <= found.minor <= wish.version.minor:
            continue
        trouble = Trouble(
            f"kube-proxy is {found}",
            f"with API servers of {wish.version} it may be 1.{wish.release.oldest_kubelet_minor} to 1.{wish.version.minor}",
            "bring it to the cluster's version: kubectl -n kube-system get daemonset kube-proxy -o wide",
        )
        yield Objection("kube-proxy-skew", trouble, SKIPPABLE)


def _say_unproven(_: Versions, wish: Wish) -> Iterator[Objection]:
    if not wish.release.is_proven:
        trouble = Trouble(
            f"Kubernetes {wish.release.name} was not tested on real nodes",
            f"the newest that was is {releases.NEWEST_PROVEN}",
            "try it on a cluster that may break",
        )
        yield Objection("version-not-proven", trouble, SAID)


# ---- etcd


def _object_to_etcd(versions: Versions, wish: Wish) -> Iterator[Objection]:
    """Members from which the etcd that comes with the new version may not follow."""
    if versions.etcd_is_external:
        yield from _object_to_external_etcd(versions, wish)
        return
    target = releases.parse_version(wish.etcd_tag)
    if target is None:
        return
    for one, found in _known(versions.of(ETCD)):
        if (found.major, found.minor) > (target.major, target.minor):
            yield _say_etcd_stays(one, found, target)
        elif (found.major, found.minor) < (target.major, target.minor):
            yield from _object_to_step(one, found, target=target, versions=versions)


def _say_etcd_stays(one: Seen, found: Version, target: Version) -> Objection:  # noqa: PLR0917
    trouble = Trouble(
        f"etcd member {one.node or one.place} is {one.version}, newer than {_plain(target)}",
        "etcd does not go back a minor while it runs, so it stays as it is",
        "nothing has to be done; without imageTag in etcd.local, kubeadm-config would name the version's own",
    )
    return Objection("etcd-newer", trouble, SAID)


def _object_to_step(one: Seen, found: Version, *, target: Version, versions: Versions) -> Iterator[Objection]:
    step = releases.ETCD_STEPS.get((target.major, target.minor))
    name = f"etcd member {one.node or one.place} is {one.version}"
    if (target.major, target.minor) != (found.major, found.minor + 1) or step is None:
        cause = f"etcd goes up one minor at a time, and {_plain(target)} is not the next"
        yield Objection("etcd-leap", Trouble(name, cause, f"bring etcd to {target.major}.{target.minor - 1} first"))
        return
    cluster = versions.newest(API_SERVER)
    if not releases.is_at_least(found.text, step.least):
        trouble = Trouble(
            name,
            f"before {_plain(target)} every member has to be {step.least} or newer (etcd advises {step.advised})",
            f"set imageTag: {step.advised}-0 below etcd.local in the ConfigMap kube-system/kubeadm-config, and upgrade "
            f"every control plane to {cluster}, which it has already: that brings etcd alone to {step.advised}",
        )
        yield Objection("etcd-hop", trouble)
    elif not releases.is_at_least(found.text, step.advised):
        trouble = Trouble(
            name,
            f"{step.least} is enough for {_plain(target)}, and etcd advises {step.advised}",
            f"bring every member to {step.advised} first, if you can",
        )
        yield Objection("etcd-hop-advised", trouble, SAID)


def _object_to_external_etcd(versions: Versions, wish: Wish) -> Iterator[Objection]:
    least = releases.parse_version(wish.release.min_external_etcd_tag)
    for one, found in _known(versions.of(ETCD)):
        if least is not None and found.key < least.key:
            trouble = Trouble(
                f"the external etcd at {one.place} is {one.version}",
                f"Kubernetes {wish.release.name} wants {_plain(least)} or newer",
                "have its operator upgrade it first",
            )
            yield Objection("external-etcd-too-old", trouble, SKIPPABLE)


def _plain(version: Version) -> str:
    """`3.6.5`, as etcd calls itself, of the version of an image tag (`3.6.5-0`)."""
    return f"{version.major}.{version.minor}.{version.patch}"


# ---- runtimes


def _object_to_runtimes(versions: Versions, wish: Wish) -> Iterator[Objection]:
    """Runtimes with which the new kubelet does not run, or a later one will not. What a version lets expect; the node's own check
    calls its runtime."""
    for one, _ in _known(versions.of(RUNTIME)):
        if releases.has_runtime_config_call(one.place, one.version) is not False:
            continue
        what = f"node {one.node} has {one.place} {one.version}"
        if wish.release.needs_runtime_config:
            cause = f"it has no RuntimeConfig call, and a kubelet {wish.release.name} does not run without it"
            trouble = Trouble(what, cause, f"upgrade the runtime of {one.node} first: containerd 2.0 or CRI-O 1.28")
            yield Objection("runtime-too-old", trouble, node=one.node)
        elif wish.release.warns_without_runtime_config:
            cause = "it has no RuntimeConfig call, and a later kubelet will not run without it"
            trouble = Trouble(what, cause, "install containerd 2 before the upgrade after this one")
            yield Objection("runtime-old", trouble, SAID, node=one.node)


RULES: tuple[Callable[[Versions, Wish], Iterator[Objection]], ...] = (
    _object_to_silence,
    _object_to_leap,
    _object_to_downgrade,
    _object_to_unstable,
    _object_to_kubelets,
    _object_to_kube_proxy,
    _object_to_etcd,
    _object_to_runtimes,
    _say_unproven,
)


# ---- kubeadm's own words


@frozen
class KubeadmVerdict:
    """kubeadm's errors, word for word, in its order: mandatory ones, and those that --force makes warnings."""

    mandatory: tuple[str, ...]
    skippable: tuple[str, ...]


def judge_as_kubeadm(versions: Versions, wish: Wish, *, kubeadm: Version, cluster: Version) -> KubeadmVerdict:
    """What `kubeadm upgrade apply` of version `kubeadm` objects to. cluster: as the API server that was asked says. Mirrors
    EnforceVersionPolicies."""
    target, told = wish.version, f'"{wish.version}"'
    verdict: dict[bool, list[str]] = {True: [], False: []}
    unless_pre = not target.prerelease
    # kubeadm's minimum is the minor before its own, and its text names the cluster's version
    if target.key < (1, kubeadm.minor - 1, 0, 1):
        verdict[True].append(
            f"Specified version to upgrade to {told} is equal to or lower than the minimum supported version "
            f'"{cluster}". Please specify a higher version to upgrade to'
        )
    if target.minor > cluster.minor + MINORS_AT_ONCE:
        verdict[unless_pre].append(
            f"Specified version to upgrade to {told} is too high; kubeadm can upgrade only 1 minor version at a time"
        )
    if target.minor < cluster.minor - MINORS_AT_ONCE:
        verdict[unless_pre].append(
            f"Specified version to downgrade to {told} is too low; kubeadm can downgrade only 1 minor version at a time"
        )
    if kubeadm.key < target.key and target.minor > kubeadm.minor:
        verdict[unless_pre].append(
            f"Specified version to upgrade to {told} is at least one minor release higher than the kubeadm minor release "
            f"({target.minor} > {kubeadm.minor}). Such an upgrade is not supported"
        )
    verdict[False] += _skippable_to_kubeadm(versions, wish, kubeadm=kubeadm)
    return KubeadmVerdict(tuple(verdict[True]), tuple(verdict[False]))


def _skippable_to_kubeadm(versions: Versions, wish: Wish, *, kubeadm: Version) -> Iterator[str]:
    target, told = wish.version, f'"{wish.version}"'
    if kubeadm.key < target.key and target.minor <= kubeadm.minor:
        yield (
            f'Specified version to upgrade to {told} is higher than the kubeadm version "{kubeadm}". Upgrade kubeadm first '
            "using the tool you used to install kubeadm"
        )
    if kubeadm.minor > target.minor:
        yield (
            f"Kubeadm version {kubeadm} can only be used to upgrade to Kubernetes version {kubeadm.major}.{kubeadm.minor}"
        )
    if any(_object_to_unstable(versions, wish)):
        yield (
            f"Specified version to upgrade to {told} is an unstable version and such upgrades weren't allowed via setting "
            "the --allow-*-upgrades flags"
        )
    kubelets = dict.fromkeys(found for _, found in _known(versions.of(KUBELET)))
    old = [found.text for found in kubelets if target.minor > found.minor + releases.KUBELET_SKEW]
    if old:
        yield f"There are kubelets in this cluster that are too old that have these versions [{' '.join(old)}]"
