"""The phase show-join-command: the closing text of init.

Mirrors cmd/kubeadm/app/cmd/phases/init/showjoincommand.go. Lines that scripts parse have kubeadm's format.
"""

from __future__ import annotations

from kubeup.addresses import join_host_port
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.lazy_modules import lazily
from kubeup.secret import Secret

with lazily:
    from kubeup.cluster import api, tokens
    from kubeup.node import ca_pins, kubeconfig
    from kubeup.phases import serve_mirror

WITHHELD = "<value withheld>"
KB = "python3 kb.pyz"
"""How kb is run on the next node, after it was copied there. The arguments are the same for kubeadm join."""


def show_join_command(ctx: Run) -> Outputs:
    """Compose the closing text, which the command line prints to stdout."""
    admin = kubeconfig.read_kubeconfig(
        ctx.host.read_text(ctx.paths.admin_conf), host=ctx.host, path=ctx.paths.admin_conf
    )
    server = admin.server.partition("://")[2]
    if ctx.config.kb.load_balancer.is_local:
        # the endpoint's name does not resolve on a node that has not joined yet
        endpoint = ctx.config.local_api_endpoint
        server = join_host_port(endpoint.advertise_address, endpoint.bind_port)
    pins = list(ca_pins.ca_cert_hashes(admin.ca_pem))
    tokens = _read_tokens(ctx)
    if not tokens:
        ctx.report.note("no valid bootstrap token is left; make one: kb init phase bootstrap-token")
    key = ctx.results.certificate_key or ctx.config.certificate_key
    shown_key = WITHHELD if ctx.config.skip_certificate_key_print else (key.reveal() if key else "")
    texts = []
    for token in tokens:
        shown = WITHHELD if ctx.config.skip_token_print else token.reveal()
        command = render_join_command(server, shown, pins=pins, program="kubeadm" if ctx.config.kb.only_kubeadm else KB)
        texts.append(_closing_text(ctx, command, certificate_key=shown_key if ctx.config.upload_certs else ""))
    text = "\n".join(texts) or _closing_text(ctx, "", certificate_key="")
    return Results(closing_text=Secret(text), server=server, ca_cert_hashes=pins)


def render_join_command(server: str, token: str, *, pins: list[str], program: str) -> str:
    """`PROGRAM join HOST:PORT --token T \\` and, on the next line, one pin per authority."""
    hashes = "".join(f"--discovery-token-ca-cert-hash {pin} " for pin in pins)
    return f"{program} join {server} --token {token} \\\n\t{hashes}"


def _closing_text(ctx: Run, worker_join: str, *, certificate_key: str) -> str:
    lines = [
        "",
        "Your Kubernetes control-plane has initialized successfully!",
        "",
        "To use the cluster as an ordinary user:",
        "",
        "  mkdir -p $HOME/.kube",
        f"  sudo cp -i {ctx.paths.admin_conf} $HOME/.kube/config",
        "  sudo chown $(id -u):$(id -g) $HOME/.kube/config",
        "",
        "As root it is enough to say:",
        "",
        f"  export KUBECONFIG={ctx.paths.admin_conf}",
        "",
    ]
    if ctx.config.kb.pod_network.plugin == "none":
        lines += [
            "You should now deploy a pod network to the cluster: pods wait for one.",
            "  kubectl apply -f FILE; choices: https://kubernetes.io/docs/concepts/cluster-administration/addons/",
            "",
        ]
    if worker_join and ctx.config.cluster.control_plane_endpoint:
        lines += _control_plane_lines(worker_join, certificate_key)
    if worker_join:
        lines += ["A worker joins when this is run on it as root:", "", worker_join]
        if not ctx.config.kb.only_kubeadm:
            lines += [
                "",
                "(scp kb.pyz there first. A node that has kubeadm may join with it: kubeadm join, the same words.)",
            ]
        lines += _bare_node_lines(ctx, worker_join)
    return "\n".join(lines) + "\n"


def _bare_node_lines(ctx: Run, worker_join: str) -> list[str]:
    """With a bundle: a one-line command that joins a bare machine; it downloads kb itself from the mirror."""
    if not ctx.config.kb.bundle:
        return []
    line = serve_mirror.say_bare_join(ctx, " ".join(worker_join.replace("\\\n", " ").split()))
    return [
        "",
        "A machine without containerd and kubelet joins, all of it from the mirror, with this one line:",
        "",
        line,
    ]


def _control_plane_lines(worker_join: str, certificate_key: str) -> list[str]:
    more = f" --certificate-key {certificate_key}" if certificate_key else ""
    lines = [
        "A further control plane joins when this is run on it as root:",
        "",
        f"  {worker_join}\\\n\t--control-plane{more}",
        "",
    ]
    if certificate_key:
        lines += [
            "The certificate key opens the cluster's private keys: keep it secret. What it opens is deleted after two",
            "hours; to store it again: kb init phase upload-certs --upload-certs",
            "",
        ]
    else:
        lines += [
            "Copy the certificate authorities and sa.* of /etc/kubernetes/pki there first, or store them in the",
            "cluster: kb init phase upload-certs --upload-certs",
            "",
        ]
    return lines


def _read_tokens(ctx: Run) -> list[Secret]:
    """The tokens of this run, or those of the previous run that still exist in the cluster."""
    if ctx.results.tokens:
        return list(ctx.results.tokens)
    found = []
    for token_id in ctx.results.token_ids or ():
        secret = ctx.api.get(api.path_of("Secret", f"bootstrap-token-{token_id}", namespace="kube-system"))
        token = tokens.parse_token_secret(secret or {})
        if token:
            found.append(token.token)
    return found


JOIN_COMMAND = Act(do=show_join_command, live="cluster", always=True, needs=("bootstrap-token", "upload-certs"))
