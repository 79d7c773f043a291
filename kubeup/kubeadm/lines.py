"""What kubeadm prints while it works, phase by phase: the lines that scripts wait for and parse.

Owns the table LINES and the Report that prints them on stdout. May only read: the phases themselves are kb's. Text that
scripts match is kubeadm's (cmd/kubeadm/app/cmd/phases/**, cmd/kubeadm/app/phases/**); text that nobody parses is kb's
own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Optional, TextIO

from kubeup.engine.run import Results, Run
from kubeup.engine.step import Phase
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.report import Report, escape_controls
from kubeup.yaml_files import format_duration

with lazily:
    from kubeup.cluster import objects, probes
    from kubeup.node import cert_specs, certificates, kubeconfig, kubelet, pki

Lines = Iterable[str]


class KubeadmReport(Report):
    """Prints lines in kubeadm's form on stdout, warnings on stderr, and kb's own notes only with -v."""

    def __init__(
        self,
        stream: Optional[TextIO] = None,
        *,
        verbosity: int = 0,
        quiet: bool = False,
        out: Optional[TextIO] = None,
    ) -> None:
        super().__init__(stream, verbosity=verbosity, quiet=quiet)
        self.is_terminal = False  # no live progress line between lines that scripts parse
        self.out = out
        self.opening: Optional[Callable[[Run], str]] = None
        """Printed once, before the first phase: the first line of a whole workflow."""
        self.headings: set[str] = set()
        """The parents whose heading has been printed."""
        self.new_certs: set[str] = set()
        """The certificates that were reported as generated."""

    def say(self, text: str) -> None:
        out = self.out or sys.stdout
        with contextlib.suppress(OSError):  # the reader is gone, but the work continues
            out.write(text + "\n")
            out.flush()

    def open(self, ctx: Run) -> None:
        """Print the first line, unless there is none or it has been printed."""
        opening, self.opening = self.opening, None
        if opening:
            self.say(opening(ctx))

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.verbosity:
            self._line(escape_controls(self.spell(text)))

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        spelled = escape_controls(self.spell(text))
        self._line(f"\t{spelled}" if text.startswith("[WARNING ") else f"warning: {spelled}")

    def phase(self, index: int, total: int, *, name: str, does: str, outcome: str) -> None:
        """The Runner's own line: kubeadm has none."""


# ---- what a phase prints


@frozen
class Speech:
    """before: lines at the start of the phase; after: lines at its end, from its results and the seconds that it took.
    heading: the parent's lines, if the parent runs as a whole."""

    before: Callable[[Run], Lines] = lambda ctx: ()
    after: Callable[[Run, Results, float], Lines] = lambda ctx, handed, took: ()
    heading: Callable[[Run], Lines] = lambda ctx: ()


def speaking(phase: Phase, lines: Mapping[str, Speech]) -> Phase:
    """The phase, with kubeadm's lines printed around its work."""
    speech = lines.get(phase.name, Speech())

    def before(ctx: Run) -> None:
        report = _report(ctx)
        report.open(ctx)
        for line in (*_heading(ctx, phase.name, speech=speech), *speech.before(ctx)):
            report.say(line)

    def after(ctx: Run, handed: Results, took: float) -> None:  # noqa: PLR0917
        for line in speech.after(ctx, handed, took):
            _report(ctx).say(line)

    return replace(phase, before=before, after=after)


def _report(ctx: Run) -> KubeadmReport:
    assert isinstance(ctx.report, KubeadmReport)
    return ctx.report


def _heading(ctx: Run, name: str, *, speech: Speech) -> Lines:
    """The parent's heading, before the first of its children, if it runs as a whole (`init`, `init phase certs
    all`)."""
    parent = name.partition("/")[0]
    siblings = [other for other in ctx.selection.will_run if other.startswith(f"{parent}/")]
    said = _report(ctx).headings
    if len(siblings) < 2 or parent in said:
        return ()
    said.add(parent)
    return speech.heading(ctx)


def went_by(seconds: float) -> str:
    """The duration of a wait as Go prints it: `501.2ms`, `3.5s`."""
    return f"{seconds * 1000:.6g}ms" if seconds < 1 else f"{seconds:.6g}s"


# ---- init


def _preflight(ctx: Run) -> Lines:
    return ["[preflight] Running pre-flight checks"]


def _pulled(ctx: Run, handed: Results, took: float) -> Lines:  # noqa: PLR0917
    """Printed afterwards, because the checks that come first may have stopped the pull."""
    if ctx.host.mode == "dry-run":
        yield "[preflight] Would pull the required images (like 'kubeadm config images pull')"
        return
    yield "[preflight] Pulling images required for setting up a Kubernetes cluster"
    yield "[preflight] To have them here beforehand: 'kubeadm config images pull'"


def _certs_folder(ctx: Run) -> Lines:
    return [f'[certs] Using certificateDir folder "{ctx.paths.pki}"']


def _cert(name: str) -> Speech:
    spec = cert_specs.CERTS[name]

    def before(ctx: Run) -> Lines:
        if spec.is_etcd and ctx.config.cluster.external_etcd is not None:
            what = "certificate authority" if spec.is_ca else "certificate"
            return [f"[certs] External etcd mode: Skipping {spec.base} {what} generation"]
        if not ctx.host.exists(spec.cert_path(ctx.paths)):
            _report(ctx).new_certs.add(name)
            return [f'[certs] Generating "{spec.base}" certificate and key']
        if spec.is_ca:
            has_key = ctx.host.exists(spec.key_path(ctx.paths))
            return [f"[certs] Using existing {spec.base} {'' if has_key else 'keyless '}certificate authority"]
        return [f"[certs] Using existing {spec.base} certificate and key on disk"]

    def after(ctx: Run, handed: Results, took: float) -> Lines:  # noqa: PLR0917
        if not (name in _report(ctx).new_certs and spec.is_server and ctx.host.exists(spec.cert_path(ctx.paths))):
            return []
        sans = certificates.sans_of(pki.read_certs(ctx.host, spec.cert_path(ctx.paths))[0])
        return [f"[certs] {spec.base} serving cert is signed for {sans}"]

    return Speech(before, after, heading=_certs_folder)


def _service_account_key(ctx: Run) -> Lines:
    if ctx.host.exists(ctx.paths.pki / "sa.key"):
        return ['[certs] Using the existing "sa" key']
    return ['[certs] Generating "sa" key and public key']


def _kubeconfig(name: str) -> Speech:
    def before(ctx: Run) -> Lines:
        path = ctx.paths.kubeconfig(f"{name}.conf")
        if not ctx.host.exists(path):
            return [f'[kubeconfig] Writing "{path.name}" kubeconfig file']
        if pki.is_external_ca(ctx.host, ctx.paths):
            return [f"[kubeconfig] External CA mode: Using user provided {path.name}"]
        return [f'[kubeconfig] Using existing kubeconfig file: "{path}"']

    return Speech(before, heading=lambda ctx: [f'[kubeconfig] Using kubeconfig folder "{ctx.paths.kubeconfigs}"'])


def _etcd(ctx: Run) -> Lines:
    if ctx.config.cluster.local_etcd is None:
        return []
    return [f'[etcd] Creating static Pod manifest for local etcd in "{ctx.paths.manifests}"']


def _manifest(component: str) -> Speech:
    return Speech(
        lambda ctx: [f'[control-plane] Creating static Pod manifest for "{component}"'],
        heading=lambda ctx: [f'[control-plane] Using manifest folder "{ctx.paths.manifests}"'],
    )


def _kubelet_start(ctx: Run) -> Lines:
    flags = f'[kubelet-start] Writing kubelet environment file with flags to file "{ctx.paths.kubelet_flags_env}"'
    files = [ctx.paths.kubelet_config]
    if kubelet.has_instance_config(ctx.config.cluster, ctx.release):
        files.insert(0, ctx.paths.kubelet_instance_config)
    configs = [f'[kubelet-start] Writing kubelet configuration to file "{path}"' for path in files]
    return [flags, *configs, "[kubelet-start] Starting the kubelet"]


def _join_kubelet_start(ctx: Run) -> Lines:
    flags, *configs, start = _kubelet_start(ctx)
    return [*configs, flags, start]


def _kubelet_check(ctx: Run) -> Lines:
    url = probes.kubelet_healthz_url(ctx.config)
    if not url:
        return ["[kubelet-check] Skipping the kubelet health check because the healthz port is set to 0"]
    limit = format_duration(ctx.config.timeouts.kubelet_health_check_s)
    return [f"[kubelet-check] Waiting for a healthy kubelet at {url}. This can take up to {limit}"]


def _wait_control_plane(ctx: Run) -> Lines:
    yield (
        "[wait-control-plane] Waiting for the kubelet to boot up the control plane as static Pods "
        f'from directory "{ctx.paths.manifests}"'
    )
    yield from _kubelet_check(ctx)


def _kubelet_is_healthy(ctx: Run, handed: Results, took: float) -> Lines:  # noqa: PLR0917
    if probes.kubelet_healthz_url(ctx.config):
        yield f"[kubelet-check] The kubelet is healthy after {went_by(took)}"


def _control_plane_check(ctx: Run) -> Lines:
    limit = format_duration(ctx.config.timeouts.control_plane_component_health_check_s)
    yield f"[control-plane-check] Waiting for healthy control plane components. This can take up to {limit}"
    for component in probes.COMPONENTS:
        url = probes.component_url(ctx.host, ctx.paths, component=component)
        if component == "kube-apiserver":
            url = f"{kubeconfig.local_url(ctx.config)}/livez"
        yield f"[control-plane-check] Checking {component} at {url}"


def _control_plane_is_healthy(ctx: Run, handed: Results, took: float) -> Lines:  # noqa: PLR0917
    return [f"[control-plane-check] {component} is healthy after {went_by(took)}" for component in probes.COMPONENTS]


def _upload_kubeadm_config(ctx: Run) -> Lines:
    return [
        '[upload-config] Storing the configuration used in ConfigMap "kubeadm-config" in the "kube-system" Namespace'
    ]


def _upload_kubelet_config(ctx: Run) -> Lines:
    return ['[kubelet] Creating a ConfigMap "kubelet-config" in namespace kube-system for the kubelets of the cluster']


def _upload_certs(ctx: Run) -> Lines:
    if not ctx.config.upload_certs:
        return ["[upload-certs] Skipping phase. Please see --upload-certs"]
    return ['[upload-certs] Storing the certificates in Secret "kubeadm-certs" in the "kube-system" Namespace']


def _certificate_key(ctx: Run, handed: Results, took: float) -> Lines:  # noqa: PLR0917
    key = handed.certificate_key
    if key and not ctx.config.skip_certificate_key_print:
        return ["[upload-certs] Using certificate key:", key.reveal()]
    return []


def _mark_control_plane(ctx: Run) -> Lines:
    head = f"[mark-control-plane] Marking the node {ctx.config.node.name} as control-plane by adding the"
    labels = [f"{key}:{value}" if value else key for key, value in objects.CONTROL_PLANE_LABELS.items()]
    yield f"{head} labels: [{' '.join(labels)}]"
    wanted = ctx.config.node.taints
    taints = (objects.CONTROL_PLANE_TAINT,) if wanted is None else wanted
    shown = [f"{item.key}{'=' * bool(item.value)}{item.value}:{item.effect}" for item in taints]
    if shown:
        yield f"{head} taints [{' '.join(shown)}]"


def _bootstrap_token(ctx: Run) -> Lines:
    tokens = [token.token.reveal() for token in ctx.config.bootstrap_tokens]
    if tokens and not ctx.config.skip_token_print:
        shown = f"token: {tokens[0]}" if len(tokens) == 1 else f"tokens: [{' '.join(tokens)}]"
        yield f"[bootstrap-token] Using {shown}"
    yield "[bootstrap-token] Configuring bootstrap tokens, cluster-info ConfigMap, RBAC Roles"


def _cluster_info(ctx: Run, handed: Results, took: float) -> Lines:  # noqa: PLR0917
    return ['[bootstrap-token] Creating the "cluster-info" ConfigMap in the "kube-public" namespace']


def _finalize(ctx: Run) -> Lines:
    if ctx.host.exists(kubelet.find_rotated_cert(ctx.config)):
        path = ctx.paths.kubernetes / "kubelet.conf"
        yield (f'[kubelet-finalize] Updating "{path}" to point to a rotatable kubelet client certificate and key')


def _addon(name: str, is_off: Callable[[Run], bool]) -> Speech:
    return Speech(after=lambda ctx, handed, took: [] if is_off(ctx) else [f"[addons] Applied essential addon: {name}"])


def init_lines() -> dict[str, Speech]:
    """Phase of init -> the lines that it prints."""
    leaves = {f"certs/{name}": _cert(name) for name in cert_specs.CERTS}
    identities = {f"kubeconfig/{name}": _kubeconfig(name) for name in kubeconfig.KUBECONFIGS}
    return {
        "preflight": Speech(_preflight, _pulled),
        **leaves,
        "certs/sa": Speech(_service_account_key, heading=_certs_folder),
        **identities,
        "etcd/local": Speech(_etcd),
        "control-plane/apiserver": _manifest("kube-apiserver"),
        "control-plane/controller-manager": _manifest("kube-controller-manager"),
        "control-plane/scheduler": _manifest("kube-scheduler"),
        "kubelet-start": Speech(_kubelet_start),
        "wait-control-plane": Speech(_wait_control_plane, _kubelet_is_healthy),
        "wait-control-plane/controllers": Speech(_control_plane_check, _control_plane_is_healthy),
        "upload-config/kubeadm": Speech(_upload_kubeadm_config),
        "upload-config/kubelet": Speech(_upload_kubelet_config),
        "upload-certs": Speech(_upload_certs, _certificate_key),
        "mark-control-plane": Speech(_mark_control_plane),
        "bootstrap-token": Speech(_bootstrap_token, _cluster_info),
        "kubelet-finalize/enable-client-cert-rotation": Speech(_finalize),
        "addon/coredns": _addon("CoreDNS", lambda ctx: ctx.config.cluster.dns.disabled),
        "addon/kube-proxy": _addon("kube-proxy", lambda ctx: ctx.config.cluster.proxy.disabled),
    }


# ---- join


def _join_preflight(ctx: Run) -> Lines:
    yield "[preflight] Running pre-flight checks"
    yield '[preflight] Reading configuration from the "kubeadm-config" ConfigMap in namespace "kube-system"...'
    yield "[preflight] To change it there: 'kubeadm init phase upload-config kubeadm --config FILE'"


def _shared_certs(ctx: Run) -> Lines:
    return ['[download-certs] Downloading the certificates in Secret "kubeadm-certs" in the "kube-system" Namespace']


def _join_certs(ctx: Run) -> Lines:
    yield from _certs_folder(ctx)
    for spec in cert_specs.wanted_certs(ctx.config.cluster):
        is_here = ctx.host.exists(spec.cert_path(ctx.paths))
        if spec.is_ca:
            yield f"[certs] Using existing {spec.base} certificate authority"
        elif is_here:
            yield f"[certs] Using existing {spec.base} certificate and key on disk"
        else:
            yield f'[certs] Generating "{spec.base}" certificate and key'
    yield f'[certs] Valid certificates and keys now exist in "{ctx.paths.pki}"'
    yield '[certs] Using the existing "sa" key'


def _join_kubeconfigs(ctx: Run) -> Lines:
    yield "[kubeconfig] Generating kubeconfig files"
    yield f'[kubeconfig] Using kubeconfig folder "{ctx.paths.kubeconfigs}"'
    for name in ("admin", "controller-manager", "scheduler"):
        yield from _kubeconfig(name).before(ctx)


def _join_manifests(ctx: Run) -> Lines:
    yield f'[control-plane] Using manifest folder "{ctx.paths.manifests}"'
    for component in probes.COMPONENTS:
        yield f'[control-plane] Creating static Pod manifest for "{component}"'


def _check_etcd(ctx: Run) -> Lines:
    if ctx.config.cluster.local_etcd is None:
        return ["[check-etcd] Skipping etcd check in external mode"]
    return ["[check-etcd] Checking that the etcd cluster is healthy"]


def _join_etcd(ctx: Run) -> Lines:
    if ctx.config.cluster.local_etcd is None:
        return
    yield "[etcd] Announced new etcd member joining to the existing etcd cluster"
    yield '[etcd] Creating static Pod manifest for "etcd"'
    yield "[etcd] Waiting for the new etcd member to join the cluster. This can take up to 40s"


def _wait_bootstrap(ctx: Run) -> Lines:
    yield from _kubelet_check(ctx)
    yield "[kubelet-start] Waiting for the kubelet to perform the TLS Bootstrap"


def join_lines() -> dict[str, Speech]:
    """Phase of join -> the lines that it prints."""
    return {
        "control-plane-prepare/download-certs": Speech(_shared_certs),
        "control-plane-prepare/certs": Speech(_join_certs),
        "control-plane-prepare/kubeconfig": Speech(_join_kubeconfigs),
        "control-plane-prepare/control-plane": Speech(_join_manifests),
        "check-etcd": Speech(_check_etcd),
        "etcd-join": Speech(_join_etcd),
        "control-plane-join/mark-control-plane": Speech(_mark_control_plane),
        "wait-control-plane": Speech(_control_plane_check, _control_plane_is_healthy),
        "preflight": Speech(_join_preflight),
        "kubelet-start": Speech(_join_kubelet_start),
        "kubelet-wait-bootstrap": Speech(_wait_bootstrap, _kubelet_is_healthy),
    }
