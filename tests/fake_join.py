"""Machines on one scripted network that become the nodes of one cluster.

Files and certificates are real, and what kb says to a server is judged as a server judges it: by the certificate that it
shows, by the token or the certificate of whoever asks, and by the RBAC objects that kb itself has put into the cluster.
The kubelet, the static pods, etcd and the controllers are a few rules each. What no rule knows, a program, an address or
a verb, ends the test.
"""

from __future__ import annotations

import base64
import copy
import datetime
import functools
import hashlib
import hmac
import json
import shutil
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from kubeup.machine.host import Argv, CommandResult, shown_argv
from kubeup.machine.http import AnyTls, HttpResponse, Tls, Unreachable
from kubeup.node import cert_specs, certificates, kubelet, pki, private_keys
from kubeup.node.kubeconfig import parse_kubeconfig
from kubeup.paths import Paths
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_cluster import WANTS, ClusterHost, FakeCluster

Object = dict[str, Any]
API_PORT, ETCD_PORT = 6443, 2379
BOOT_S = 1.0
"""How long a kubelet takes from its start to its first deed."""
KUBELET_CONF, BOOTSTRAP_CONF = "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf"
CURRENT_PEM = "/var/lib/kubelet/pki/kubelet-client-current.pem"
CGROUPS = Path("/sys/fs/cgroup")
SYSTEM = "/api/v1/namespaces/kube-system"
CSRS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
API_SERVERS = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
CLUSTER_INFO = "/api/v1/namespaces/kube-public/configmaps/cluster-info"


class Unscripted(BaseException):
    """kb did what no rule of this network knows."""


# ---- who asks


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...] = ()


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))
_RULE = dict[str, list[str]]
BUILT_IN: Mapping[str, list[_RULE]] = {
    # the roles that an API server makes for itself, as far as kb binds somebody to one
    "cluster-admin": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
    "system:node-bootstrapper": [
        {
            "apiGroups": ["certificates.k8s.io"],
            "resources": ["certificatesigningrequests"],
            "verbs": ["create", "get", "list", "watch"],
        }
    ],
}
PUBLIC = ("/livez", "/readyz", "/healthz", "/version")
"""What whoever asks may see (system:public-info-viewer)."""


@functools.cache
def is_signed(cert_pem: str, ca_pem: str) -> bool:
    chain = certificates.parse_certs(cert_pem)
    return any(certificates.is_signed_by(chain, ca) for ca in certificates.parse_certs(ca_pem))


@functools.cache
def end_of(cert_pem: str) -> datetime.datetime:
    return certificates.parse_certs(cert_pem)[0].not_valid_after_utc


@functools.cache
def names_of(cert_pem: str) -> cert_specs.Sans:
    return certificates.sans_of(certificates.parse_certs(cert_pem)[0])


@functools.cache
def user_of(cert_pem: str) -> User:
    subject = certificates.subject_of(certificates.parse_certs(cert_pem)[0])
    return User(subject.common_name, subject.organizations)


parse_manifest = functools.lru_cache(maxsize=None)(load_yaml)
parse_conf = functools.lru_cache(maxsize=None)(parse_kubeconfig)


def sign_detached(payload: str, token_id: str, secret: str) -> str:
    """A JWS without its payload, by HS256 (RFC 7515, appendix F)."""

    def text(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    head = text(json.dumps({"alg": "HS256", "kid": token_id}, separators=(",", ":")).encode())
    mark = hmac.new(secret.encode(), f"{head}.{text(payload.encode())}".encode(), hashlib.sha256)
    return f"{head}..{text(mark.digest())}"


def texts_of(secret: Object) -> dict[str, str]:
    return {name: base64.b64decode(value).decode() for name, value in (secret.get("data") or {}).items()}


# ---- the network


@dataclass
class Site:
    """The machines by their addresses, the names that lead to them, the cluster's objects, and etcd's members."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    machines: dict[str, Machine] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    members: list[Object] = field(default_factory=list)
    clock: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    signer: str = "signs"
    """What becomes of requests for a kubelet's certificate: signs | sleeps | denies."""
    away: set[str] = field(default_factory=set)
    """Addresses that do not answer."""

    def clone(self, folder: Path, *names: str) -> Site:
        """The same network again. These machines (none: all) get folders of their own; the files of the others are shared, as
        kb does not reach them."""
        cluster = copy.deepcopy(self.cluster)
        found = Site(
            cluster, {}, dict(self.names), copy.deepcopy(self.members), self.clock, self.signer, set(self.away)
        )
        for machine in self.machines.values():
            root = machine.root
            if not names or machine.name in names:
                root = folder / machine.name
                shutil.copytree(machine.root, root, symlinks=True)
            other = Machine(root, found, name=machine.name, address=machine.address)
            other.pods, other.images, other.units = dict(machine.pods), set(machine.images), set(machine.units)
            other.kubelet_since, other.request = machine.kubelet_since, machine.request
            other._asks_again, other.lists_containers = machine._asks_again, machine.lists_containers
        return found

    def machine(self, name: str) -> Machine:
        return next(machine for machine in self.machines.values() if machine.name == name)

    def request(
        self, asker: Machine, method: str, url: str, *, tls: Optional[AnyTls], headers: Mapping[str, str], body: bytes
    ) -> HttpResponse:
        parts = urllib.parse.urlsplit(url)
        name, port = parts.hostname or "", parts.port or 443
        for machine in self.machines.values():
            machine.live()
        address = asker.address if name in ("127.0.0.1", "::1", "localhost") else self.names.get(name, name)
        if not address[:1].isdigit():
            raise Unreachable(url, "dns", text="Name or service not known")
        found = self.machines.get(address)
        if found is None or address in self.away:
            raise Unreachable(url, "timeout", text="timed out")
        if port not in found.open_ports():
            raise Unreachable(url, "refused", text="Connection refused")
        if port not in (API_PORT, ETCD_PORT):
            return HttpResponse(200, b"ok")
        found.show_certificate(url, name, port, tls)
        if port == ETCD_PORT:
            return self._ask_etcd(found, parts.path.partition("/v3/")[2], json.loads(body), tls)
        return self._ask_api(found, method, parts, tls=tls, headers=headers, body=body)

    # ---- the API servers

    def _ask_api(
        self,
        server: Machine,
        method: str,
        parts: urllib.parse.SplitResult,
        *,
        tls: Optional[AnyTls],
        headers: Mapping[str, str],
        body: bytes,
    ) -> HttpResponse:
        user = self._who(server, tls, headers)
        path = urllib.parse.unquote(parts.path)
        if user is None:
            return _status(401, "Unauthorized", "Unauthorized")
        if not self.may(user, method, path):
            return _status(403, "Forbidden", f'User "{user.name}" cannot {method} {path}')
        if path == "/version":
            return HttpResponse(200, b'{"gitVersion": "v1.35.6"}', {"date": f"{self.clock:%a, %d %b %Y %H:%M:%S GMT}"})
        version = self.cluster.version
        answer = self.cluster.answer(method, parts.geturl(), body, headers)
        answer = HttpResponse(
            answer.status, answer.body, {**answer.headers, "date": f"{self.clock:%a, %d %b %Y %H:%M:%S GMT}"}
        )
        if method != "GET" and self.cluster.version != version:
            self.control()
        return answer

    def _who(self, server: Machine, tls: Optional[AnyTls], headers: Mapping[str, str]) -> Optional[User]:
        token = headers.get("Authorization", "").partition("Bearer ")[2]
        if token:
            return self._holder_of(token)
        if isinstance(tls, Tls) and tls.cert_pem:
            if end_of(tls.cert_pem) < self.clock:
                return None
            return user_of(tls.cert_pem) if is_signed(tls.cert_pem, server.text("/etc/kubernetes/pki/ca.crt")) else None
        return ANONYMOUS

    def _holder_of(self, token: str) -> Optional[User]:
        token_id, _, wanted = token.partition(".")
        found = texts_of(self.cluster.objects.get(f"{SYSTEM}/secrets/bootstrap-token-{token_id}") or {})
        if found.get("token-secret") != wanted or found.get("usage-bootstrap-authentication") != "true":
            return None
        if found.get("expiration", "9") < f"{self.clock:%Y-%m-%dT%H:%M:%SZ}":
            return None
        groups = ("system:bootstrappers", *found.get("auth-extra-groups", "").split(","))
        return User(f"system:bootstrap:{token_id}", groups)

    def may(self, user: User, method: str, path: str) -> bool:
        """The node authorizer by a word (nodes see all, and change what is theirs), and RBAC by the cluster's objects."""
        if "system:masters" in user.groups or path in PUBLIC:
            return True
        if "system:nodes" in user.groups:
            own = user.name.rpartition(":")[2]
            return method == "GET" or own in path or path.startswith(CSRS)
        parts = path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        space, rest = (rest[1], rest[2:]) if rest[0] == "namespaces" and len(rest) > 2 else ("", rest)
        name = rest[1] if len(rest) > 1 else ""
        verb = {"GET": "get" if name else "list", "POST": "create", "PUT": "update", "DELETE": "delete"}.get(
            method, "patch"
        )
        return any(
            _covers(rule, "apiGroups", group)
            and _covers(rule, "resources", rest[0])
            and _covers(rule, "verbs", verb)
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in self._rules_of(user, space)
        )

    def _rules_of(self, user: User, space: str) -> list[_RULE]:
        wanted = {("User", user.name), *(("Group", group) for group in user.groups)}
        rules: list[_RULE] = []
        for kind in ("ClusterRoleBinding", "RoleBinding"):
            for binding in self.cluster.by_kind(kind).values():
                subjects = {(one["kind"], one["name"]) for one in binding.get("subjects") or ()}
                if not subjects & wanted or (kind == "RoleBinding" and binding["metadata"]["namespace"] != space):
                    continue
                role = binding["roleRef"]
                found = self.cluster.by_kind(role["kind"]).get(role["name"])
                rules += found["rules"] if found else BUILT_IN.get(role["name"], [])
        return rules

    # ---- the controllers

    def control(self) -> None:
        """The bootstrap signer, the approver and signer of kubelets' requests, and the allocator of pod networks."""
        self._sign_cluster_info()
        for name, request in self.cluster.by_kind("CertificateSigningRequest").items():
            if not request.get("status"):
                self._treat(name, request)
        nodes = sorted(self.cluster.by_kind("Node").items(), key=lambda item: item[1]["metadata"]["creationTimestamp"])
        taken = {node["spec"].get("podCIDR") for _, node in nodes}
        for name, node in nodes:
            if not node["spec"].get("podCIDR"):
                cidr = next(text for text in (f"10.244.{number}.0/24" for number in range(256)) if text not in taken)
                taken.add(cidr)
                spec = {**node["spec"], "podCIDR": cidr, "podCIDRs": [cidr]}
                self.cluster._store(f"/api/v1/nodes/{name}", {**node, "spec": spec})

    def list_servers(self) -> None:
        """Each API server enters itself into an EndpointSlice."""
        running = sorted(machine.address for machine in self.machines.values() if "kube-apiserver" in machine.pods)
        ready = [{"addresses": [address], "conditions": {"ready": True}} for address in running]
        held = self.cluster.objects.get(API_SERVERS)
        if ready and (held is None or held["endpoints"] != ready):
            meta, ports = {"name": "kubernetes", "namespace": "default"}, [{"name": "https", "port": API_PORT}]
            self.cluster._store(
                API_SERVERS, {"kind": "EndpointSlice", "metadata": meta, "ports": ports, "endpoints": ready}
            )

    def _sign_cluster_info(self) -> None:
        info = self.cluster.objects.get(CLUSTER_INFO)
        if info is None:
            return
        data = {name: text for name, text in info["data"].items() if not name.startswith("jws-kubeconfig-")}
        for secret in self.cluster.by_kind("Secret").values():
            texts = texts_of(secret) if secret.get("type") == "bootstrap.kubernetes.io/token" else {}
            if texts.get("usage-bootstrap-signing") == "true":
                token_id = texts["token-id"]
                data[f"jws-kubeconfig-{token_id}"] = sign_detached(data["kubeconfig"], token_id, texts["token-secret"])
        if data != info["data"]:
            self.cluster._store(CLUSTER_INFO, {**info, "data": data})

    def _treat(self, name: str, request: Object) -> None:
        kinds = {"signs": "Approved", "denies": "Denied"}
        if self.signer not in kinds:
            return
        status: Object = {"conditions": [{"type": kinds[self.signer], "status": "True", "message": "by a test"}]}
        if self.signer == "signs":
            pem = base64.b64decode(request["spec"]["request"]).decode()
            status["certificate"] = base64.b64encode(self._sign(pem).encode()).decode()
        self.cluster._store(f"{CSRS}/{name}", {**request, "status": status})

    def _sign(self, request_pem: str) -> str:
        """As the controller-manager of some control plane does it, with the cluster's CA."""
        request = x509.load_pem_x509_csr(request_pem.encode())
        first = next(one for one in self.machines.values() if "kube-controller-manager" in one.pods)
        ca = pki.read_ca(first, Paths())
        assert ca.key is not None
        cert = (
            x509.CertificateBuilder(ca.cert.subject, request.subject, request.public_key(), x509.random_serial_number())
            .not_valid_before(self.clock - datetime.timedelta(minutes=5))
            .not_valid_after(self.clock + datetime.timedelta(days=365))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(ca.key, SHA256())
        )
        return certificates.cert_to_pem(cert)

    # ---- etcd

    def _ask_etcd(self, asked: Machine, verb: str, wanted: Object, tls: Optional[AnyTls]) -> HttpResponse:
        cert = tls.cert_pem if isinstance(tls, Tls) else None
        if not cert or not is_signed(cert, asked.text("/etc/kubernetes/pki/etcd/ca.crt")):
            raise Unreachable(f"https://{asked.address}:{ETCD_PORT}", "tls", text="tlsv13 alert certificate required")
        own = self.member_of(asked)
        if own is None or (own.get("isLearner") and verb != "maintenance/status"):
            return _refusal("etcdserver: rpc not supported for learner")
        if verb in ("maintenance/status", "kv/range"):
            return _answer({"header": {}})
        if verb == "cluster/member/add":
            if any(member.get("isLearner") for member in self.members):
                return _refusal("etcdserver: too many learner members in cluster")
            number = str(1 + max(int(member["ID"]) for member in self.members))
            self.members.append({"ID": number, "peerURLs": wanted["peerURLs"], "isLearner": bool(wanted["isLearner"])})
        elif verb == "cluster/member/promote":
            member = next(member for member in self.members if member["ID"] == wanted["ID"])
            if not member.get("synced"):
                member["synced"] = True
                return _refusal("etcdserver: can only promote a learner member which is in sync with leader")
            member["isLearner"] = False
        elif verb == "cluster/member/remove":
            gone = next(member for member in self.members if member["ID"] == wanted["ID"])
            self.members.remove(gone)
            for machine in self.machines.values():
                if f"https://{machine.address}:2380" in gone["peerURLs"]:
                    machine.pods.pop("etcd", None)  # a member that hears of its removal ends
        elif verb != "cluster/member/list":
            raise Unscripted(f"etcd: {verb}")
        return _answer({"members": [{k: v for k, v in one.items() if k != "synced"} for one in self.members]})

    def member_of(self, machine: Machine) -> Optional[Object]:
        url = f"https://{machine.address}:2380"
        return next((member for member in self.members if url in member["peerURLs"]), None)


def _covers(rule: _RULE, name: str, value: str) -> bool:
    return bool({"*", value} & set(rule.get(name) or ()))


def _answer(value: Object) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode())


def _refusal(message: str) -> HttpResponse:
    return HttpResponse(400, json.dumps({"error": message, "code": 9, "message": message}).encode())


def _status(code: int, reason: str, message: str) -> HttpResponse:
    return HttpResponse(code, json.dumps({"kind": "Status", "reason": reason, "message": message}).encode())


# ---- a machine

FILES = {
    "/etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/resolv.conf": "nameserver 10.0.0.2\n",
    "/proc/mounts": "/dev/sda1 / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
    "/proc/meminfo": "MemTotal:        8000000 kB\nMemAvailable:    6000000 kB\n",
    "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    "/proc/net/route": "Iface\tDestination\tGateway\neth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\n",
    "/proc/self/status": "CapBnd:\t000001ffffffffff\n",
    "/proc/sys/kernel/ostype": "Linux\n",
    "/proc/sys/kernel/osrelease": "6.1.0-9-amd64\n",
    "/proc/sys/net/ipv4/ip_forward": "0\n",
    "/proc/sys/net/bridge/bridge-nf-call-iptables": "0\n",
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
    "/usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet\n",
}
_OPTIONS = (
    "NAMESPACES NET_NS PID_NS IPC_NS UTS_NS CPUSETS MEMCG INET EXT4_FS PROC_FS NETFILTER_XT_TARGET_REDIRECT "
    "NETFILTER_XT_MATCH_COMMENT FAIR_GROUP_SCHED CGROUPS CGROUP_BPF CGROUP_PIDS CGROUP_SCHED"
)
FILES["/boot/config-6.1.0-9-amd64"] = "".join(f"CONFIG_{name}=y\n" for name in _OPTIONS.split())
SAID = {
    "systemctl show containerd --property MainPID --value": "0\n",
    "containerd config dump": "",
    # what programs say that only look; {address} is the machine's
    "ip -json addr": '[{"ifname": "eth0", "flags": ["UP"], "addr_info": [{"local": "{address}", "prefixlen": 24, "scope": "global"}]}]',
    "ip -json address show": '[{"ifname": "eth0", "mtu": 1500, "flags": ["UP"], "addr_info": [{"local": "{address}", "prefixlen": 24, "scope": "global"}]}]',
    "ip -json -4 route show proto 199": "[]",
    "ip -json -6 route show proto 199": "[]",
    "ip -brief link show type bridge": "",
    "ip -json link show master cbr0": "[]",
    "nft -a list ruleset": "",
    "nft list tables": "",
    "ip -json -4 route show table all": '[{"dst": "default", "gateway": "10.0.0.1", "dev": "eth0", "flags": []}]',
    "ip route get 10.96.0.1": "10.96.0.1 via 10.0.0.1 dev eth0 src {address} uid 0\n",
    "kubelet --version": "Kubernetes v1.35.6\n",
    "/usr/bin/kubelet --version": "Kubernetes v1.35.6\n",
    "systemctl show --property LoadState,ActiveState,UnitFileState kubelet.service firewalld.service systemd-resolved.service":
        "LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled\n\n" + "LoadState=not-found\nActiveState=inactive\nUnitFileState=\n\n" * 2,
    "systemctl show kubelet --property LoadState,NeedDaemonReload,DropInPaths": "LoadState=loaded\nNeedDaemonReload=yes\nDropInPaths=\n",
    "systemctl show-environment": "PATH=/usr/bin\n",
    "systemctl show kubelet --property Environment --value": "",
    "crictl version": "Version:  0.1.0\nRuntimeName:  containerd\nRuntimeVersion:  2.1.4\nRuntimeApiVersion:  v1\n",
    "crictl runtime-config": "cgroup driver:   SYSTEMD\n",
    "crictl info": json.dumps({
        "config": {
            "containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"options": {"SystemdCgroup": True}}}},
            "containerdRootDir": "/var/lib/containerd", "restrictOOMScoreAdj": False, "sandboxImage": "registry.k8s.io/pause:3.10.1",
        },
        "status": {"conditions": [{"type": "RuntimeReady", "status": True}, {"type": "NetworkReady", "status": False}]},
    }),
}  # fmt: skip
FAILS = (
    "ip -json -details link show dev cbr-vxlan",
    "ip link show dev cbr0",
    "ip link show dev kube-ipvs0",
    "ipset list -name",
    "nft list table ip kb_pods",
    "nft list table ip6 kb_pods",
    *(
        f"{program} -w 10 -t {table} -S {chain}"
        for program in ("iptables", "ip6tables")
        for table, chain in (("filter", "KB-FORWARD"), ("nat", "KB-POSTROUTING"))
    ),
    *(
        f"{family}-nft -w 10 -t {table} -S"
        for family in ("iptables", "ip6tables")
        for table in ("mangle", "nat", "filter")
    ),
)
"""Looks at what is not there."""
HARMLESS = {("modprobe", "br_netfilter"), ("/opt/cni/bin/bridge",)}
"""Commands that change the machine in no way that anything here depends on."""
PORTS = {"kube-apiserver": API_PORT, "etcd": ETCD_PORT, "kube-controller-manager": 10257, "kube-scheduler": 10259}


class Machine(ClusterHost):
    """A machine with containerd and a kubelet below a folder; what runs on it outlives kb."""

    def __init__(self, root: Path, site: Site, *, name: str, address: str) -> None:
        self.site, self.address = site, address
        self._puts, self._seen = 0, object()
        self.before_change: Optional[Callable[[str], None]] = None
        """Called before each change that kb makes here or asks a server for."""
        self.changes: list[str] = []
        self.writable: tuple[Path, ...] = (root,)
        """Where a run of kb here may write on the machine that runs the tests."""
        self.pods: dict[str, datetime.datetime] = {}
        """The static pods that run, since when."""
        self.kubelet_since: Optional[datetime.datetime] = None
        self.images: set[str] = set()
        self.units: set[str] = set()
        self.request: Optional[tuple[str, private_keys.Key]] = None
        self._asks_again = False
        """Whether its present request was made after its certificate had ended."""
        self.lists_containers = False
        """Whether the runtime tells of the static pods' containers: most runs need not know."""
        super().__init__(root, site.cluster, name=name)
        self.answers = {}
        for path, text in FILES.items():
            if not self.at(Path(path)).exists():
                self.put(path, text)
        for folder in ("var/lib", "usr/local/lib", "etc/cni/net.d", "etc/sysctl.d", "root", "tmp"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        site.machines[address] = self

    # ---- what others than kb do to its files

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        self._puts += 1
        place = self.at(Path(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def text(self, path: str) -> str:
        return self.read_text(Path(path))

    def has(self, path: str) -> bool:
        return self.exists(Path(path))

    # ---- what runs on it

    def open_ports(self) -> set[int]:
        kubelet_port = {10248} if self.kubelet_since else set()
        return {PORTS[name] for name in self.pods} | kubelet_port

    def show_certificate(self, url: str, name: str, port: int, tls: Optional[AnyTls]) -> None:
        """What a client makes of the certificate that this machine shows. Raises Unreachable (tls)."""
        if not isinstance(tls, Tls):
            return
        shown = self.text(f"/etc/kubernetes/pki/{'apiserver' if port == API_PORT else 'etcd/server'}.crt")
        if tls.ca is None or not is_signed(shown, tls.ca.pem):
            raise Unreachable(url, "tls", text="certificate verify failed: unable to get local issuer certificate")
        if end_of(shown) < self.now():
            raise Unreachable(url, "tls", text="certificate verify failed: certificate has expired")
        if not names_of(shown).covers(tls.server_name or name):
            raise Unreachable(url, "tls", text=f"certificate verify failed: Hostname mismatch, not valid for '{name}'")

    def live(self) -> None:
        """What has happened on it until now."""
        if self.kubelet_since is None or (self.now() - self.kubelet_since).total_seconds() < BOOT_S:
            return
        while self._seen != (mark := self._mark()):
            self._seen = mark
            self._find_identity()
            self._run_static_pods()
            self.site.list_servers()
            if self._is_member():
                self._tell_cluster()

    def _mark(self) -> object:
        """All that what happens here depends on: nothing happens while it stays the same."""
        members = [(one["ID"], one.get("isLearner")) for one in self.site.members]
        runs = [set(machine.pods) for machine in self.site.machines.values()]
        return (self.kubelet_since, len(self.changes), self._puts, self.cluster.version, members, runs)

    def _find_identity(self) -> None:
        """The TLS bootstrap of a kubelet that has no kubeconfig; one that has a certificate in it keeps it where it renews it."""
        if self.has(KUBELET_CONF):
            held = parse_conf(self.text(KUBELET_CONF), source="kubelet.conf")
            if held.client_cert_pem and not self.has(CURRENT_PEM):
                self._keep(held.client_cert_pem, held.client_key_pem.reveal())
            if not self._is_over():
                return
            self.request = self.request if self._asks_again else None
            self._asks_again = True
        if not self.has(BOOTSTRAP_CONF):
            return
        found = parse_conf(self.text(BOOTSTRAP_CONF), source="bootstrap-kubelet.conf")
        user = self.site._holder_of(found.token.reveal())
        if user is None or self._server(found.server) is None or not self.site.may(user, "POST", CSRS):
            return
        cert = self._ask_for_certificate(user)
        if cert:
            assert self.request is not None
            self._keep(cert, private_keys.key_to_pem(self.request[1]).reveal())
            self.put(KUBELET_CONF, _kubelet_conf(found.server, found.ca_pem), 0o600)

    def _is_over(self) -> bool:
        """Whether its client certificate has ended. A kubelet in that state asks for another, if it may bootstrap."""
        return self.has(CURRENT_PEM) and end_of(self.text(CURRENT_PEM)) < self.now()

    def _ask_for_certificate(self, user: User) -> str:
        """The certificate; "" while it is not signed."""
        if self.request is None or f"{CSRS}/{self.request[0]}" not in self.cluster.objects:
            key = private_keys.generate_key("ECDSA-P256")
            name = f"node-csr-{self.name}-{len(self.cluster.objects)}"
            pem = certificates.render_request(certificates.Subject(f"system:node:{self.name}", ("system:nodes",)), key)
            spec = {
                "request": base64.b64encode(pem.encode()).decode(),
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "username": user.name,
            }
            meta = {"name": name, "creationTimestamp": f"{self.now():%Y-%m-%dT%H:%M:%SZ}"}
            request = {"kind": "CertificateSigningRequest", "metadata": meta, "spec": spec}
            self.cluster._store(f"{CSRS}/{name}", request)
            self.request = (name, key)
            self.site.control()
        stored = self.cluster.objects[f"{CSRS}/{self.request[0]}"]
        return base64.b64decode((stored.get("status") or {}).get("certificate", "")).decode()

    def _keep(self, cert_pem: str, key_pem: str) -> None:
        dated = f"/var/lib/kubelet/pki/kubelet-client-{self.now():%Y-%m-%d-%H-%M-%S}.pem"
        self.put(dated, cert_pem + key_pem, 0o600)
        link = self.at(Path(CURRENT_PEM))
        link.unlink(missing_ok=True)
        link.symlink_to(dated)

    def _server(self, url: str) -> Optional[Machine]:
        """The machine whose API server this URL leads to, where one runs."""
        name = urllib.parse.urlsplit(url).hostname or ""
        found = self.site.machines.get(self.site.names.get(name, name))
        return found if found and "kube-apiserver" in found.pods else None

    def _is_member(self) -> bool:
        if not self.has(KUBELET_CONF) or not self.has(CURRENT_PEM) or self._is_over():
            return False
        server = self._server(parse_conf(self.text(KUBELET_CONF), source="kubelet.conf").server)
        return server is not None and is_signed(self.text(CURRENT_PEM), server.text("/etc/kubernetes/pki/ca.crt"))

    def _run_static_pods(self) -> None:
        for name in PORTS:
            if not self.has(f"/etc/kubernetes/manifests/{name}.yaml"):
                self.pods.pop(name, None)
                continue
            if name not in self.pods and self._can_start(name):
                self.pods[name] = self.now()

    def _can_start(self, name: str) -> bool:
        """etcd starts as somebody whom the list knows, an API server with an etcd that serves."""
        own = self.site.member_of(self)
        if name == "etcd":
            url = f"https://{self.address}:{ETCD_PORT}"
            if own is None and not self.site.members:
                own = {"ID": "1", "peerURLs": [f"https://{self.address}:2380"]}
                self.site.members.append(own)
            if own is not None:
                own.update(name=self.name, clientURLs=[url])
                self.put("/var/lib/etcd/member/wal/0", "log")
            return own is not None
        return name != "kube-apiserver" or ("etcd" in self.pods and own is not None and not own.get("isLearner"))

    def _tell_cluster(self) -> None:
        """The Node, and the mirror pods, as the kubelet shows them to the cluster."""
        path = f"/api/v1/nodes/{self.name}"
        node = self.cluster.objects.get(path) or self._new_node()
        is_ready = bool(self.list_dir(Path("/etc/cni/net.d")))
        conditions = [
            {"type": "Ready", "status": str(is_ready), "message": "" if is_ready else "cni plugin not initialized"}
        ]
        addresses = [{"type": "InternalIP", "address": self.address}]
        self._show(path, {**node, "status": {"conditions": conditions, "addresses": addresses}})
        for name in PORTS:
            path = f"{SYSTEM}/pods/{name}-{self.name}"
            if name in self.pods:
                self._show(path, self._mirror_pod(name))
            else:
                self.cluster.objects.pop(path, None)
        if is_ready and "coredns" in self.cluster.by_kind("Deployment"):
            self._show(f"{SYSTEM}/pods/coredns-1", self._dns_pod())

    def _show(self, path: str, wanted: Object) -> None:
        held = self.cluster.objects.get(path)
        if held is None or any(held.get(name) != value for name, value in wanted.items() if name != "metadata"):
            self.cluster._store(path, wanted)
            self.site.control()

    def _new_node(self) -> Object:
        flags = {
            flag.name: flag.value for flag in kubelet.parse_flags_env(self.text("/var/lib/kubelet/kubeadm-flags.env"))
        }
        taints = [text for text in flags.get("register-with-taints", "").split(",") if text]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {"kubernetes.io/hostname": self.name},
                "creationTimestamp": f"{self.now():%Y-%m-%dT%H:%M:%SZ}",
            },
            "spec": {
                "taints": [
                    {"key": t.partition("=")[0].partition(":")[0], "effect": t.rpartition(":")[2]} for t in taints
                ]
            }
            if taints
            else {},
        }

    def _mirror_pod(self, component: str) -> Object:
        pod = parse_manifest(self.text(f"/etc/kubernetes/manifests/{component}.yaml"))
        meta = {**pod["metadata"], "name": f"{component}-{self.name}"}
        return _running({**pod, "metadata": meta}, self.name, self.address, since=self.pods[component])

    def _container(self, name: str) -> Object:
        labels = {"io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.name": f"{name}-{self.name}"}
        since = f"{self.pods[name].timestamp() * 1e9:.0f}"
        return {"id": f"{name}.{since}", "metadata": {"name": name}, "state": "CONTAINER_RUNNING", "createdAt": since, "labels": labels}  # fmt: skip

    def _dns_pod(self) -> Object:
        meta = {"name": "coredns-1", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [{"name": "coredns"}]}}
        held = self.cluster.objects.get(f"{SYSTEM}/pods/coredns-1")
        return held or _running(pod, self.name, "10.244.0.2", since=self.now())

    # ---- what kb sees of it

    def query(self, argv: Argv, **_: Any) -> CommandResult:
        words = shown_argv(argv)
        answer = self._play(words)
        if answer is None:
            raise Unscripted(f"query {' '.join(words)}")
        return answer

    def run(self, argv: Argv, **_: Any) -> CommandResult:
        words = shown_argv(argv)
        self._change(f"run {' '.join(words)}")
        self.commands.append(" ".join(words))
        answer = self._do(words)
        if answer is None:
            raise Unscripted(f"run {' '.join(words)}")
        return answer

    def _play(self, words: tuple[str, ...]) -> Optional[CommandResult]:
        """What a program says that looks; None where no rule knows."""
        line = " ".join(_plain(words))
        if line in SAID:
            return CommandResult(words, 0, SAID[line].replace("{address}", self.address))
        if line in FAILS:
            return CommandResult(words, 1, stderr="does not exist")
        if line == "crictl images -o json":
            return CommandResult(
                words, 0, json.dumps({"images": [{"repoTags": [name]} for name in sorted(self.images)]})
            )
        if line == "crictl pods -q":
            return CommandResult(words, 0, "".join(f"{name}\n" for name in sorted(self.pods)))
        if line.startswith("systemctl show kubelet -p LoadState,ActiveState,SubState,"):
            state = (
                "ActiveState=active\nSubState=running" if self.kubelet_since else "ActiveState=inactive\nSubState=dead"
            )
            return CommandResult(words, 0, f"LoadState=loaded\n{state}\nNRestarts=0\nExecMainStatus=0\nMainPID=42\n")
        if words[:2] == ("systemctl", "show") and words[-1] == "LoadState,NeedDaemonReload":
            return CommandResult(words, 0, "LoadState=loaded\nNeedDaemonReload=no\n" * (len(words) - 4))
        if words[:3] == ("journalctl", "-u", "kubelet"):
            return CommandResult(words, 0, "I0101 00:00:00.0 1 server.go:1] started\n")
        if self.lists_containers and line == "crictl ps -a -o json":
            return CommandResult(
                words, 0, json.dumps({"containers": [self._container(name) for name in sorted(self.pods)]})
            )
        if line in (
            "crictl ps -a -o json",
            r"crictl ps -a -o json --name ^kb\-load\-balancer$",
            "crictl ps -q --name ^etcd$ --state running",
        ):
            return CommandResult(words, 0, '{"containers": []}' if "json" in words else "")
        if words[:2] == ("dpkg-query", "--search"):  # no package has brought anything
            return CommandResult(words, 1, stderr="dpkg-query: no path found\n")
        if words[0] == "nsenter" and self.has("/run/netns/kb-probe"):
            return CommandResult(words, 0, json.dumps([self._reach(*question) for question in json.loads(words[-1])]))
        if words[:2] == ("systemctl", "is-active"):
            is_active = words[2].removesuffix(".service") in self.units
            return CommandResult(words, 0 if is_active else 3, "active\n" if is_active else "inactive\n")
        if words[:2] == ("systemctl", "is-enabled"):
            unit = words[2] if "." in words[2] else f"{words[2]}.service"
            return CommandResult(words, 0 if self.has(f"/{WANTS}/{unit}") else 1)
        return None

    def _do(self, words: tuple[str, ...]) -> Optional[CommandResult]:
        """What a program does; None where no rule knows."""
        plain = _plain(words)
        if plain[:2] == ("crictl", "pull"):
            self.images.add(plain[2])
        elif plain[:2] == ("crictl", "stop"):
            ended = [name for name in self.pods if self._container(name)["id"] in plain]
            self.pods = {name: since for name, since in self.pods.items() if name not in ended}
        elif plain[:2] == ("crictl", "stopp"):
            self.pods.pop(plain[2], None)
        elif words[:2] == ("sysctl", "-w"):
            name, _, text = words[2].partition("=")
            self.put(f"/proc/sys/{name.replace('.', '/')}", f"{text}\n")
        elif words[0] == "systemctl":
            return (
                CommandResult(words, 0)
                if self._serve(words[1], [word for word in words[2:] if word[0] != "-"], words)
                else None
            )
        elif words == ("ip", "netns", "add", "kb-probe"):
            self.put("/run/netns/kb-probe", "")
        elif words == ("ip", "netns", "delete", "kb-probe"):
            self.at(Path("/run/netns/kb-probe")).unlink()
        elif plain[:2] != ("crictl", "rmp") and words not in HARMLESS:
            return None
        return CommandResult(words, 0)

    def _reach(self, kind: str, address: str, port: int, payload: str) -> str:
        """What a pod hears from there; only Services and machines of this network answer."""
        if kind == "udp":
            answer = self.udp_exchange("10.96.0.10", port, payload=bytes.fromhex(payload))
            return answer.hex() if answer else ""
        found = self.site.machines.get(address)
        return "open" if address == "10.96.0.1" or (found and port in found.open_ports()) else ""

    def _serve(self, verb: str, names: list[str], words: tuple[str, ...]) -> bool:
        """systemd: what is enabled is a link, what is started runs."""
        names = [name.removesuffix(".service") for name in names]
        for name in names:
            folder = WANTS.replace("multi-user", "timers") if name.endswith(".timer") else WANTS
            unit = name if name.endswith(".timer") else f"{name}.service"
            link = self.at(Path(f"/{folder}/{unit}"))
            if verb == "enable" and not link.is_symlink():
                link.symlink_to(f"/etc/systemd/system/{unit}")
            if verb == "disable":
                link.unlink(missing_ok=True)
            if verb in ("start", "restart"):
                self.units.add(name)
            if verb == "stop" or (verb == "disable" and "--now" in words):
                self.units.discard(name)
            if name == "kubelet" and verb in ("start", "restart", "stop"):
                self.kubelet_since = self.now() if verb != "stop" else None
        return verb in ("enable", "disable", "start", "restart", "stop", "daemon-reload", "clean", "reset-failed")

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        found = self.site.machines.get(self.site.names.get(address, address))
        if found is None or port not in found.open_ports() or found.address in self.site.away:
            return None
        return found.text("/etc/kubernetes/pki/apiserver.crt")

    def http_ask(self, url: str, body: bytes, *, tls: Optional[Tls] = None, **_: Any) -> HttpResponse:
        return self.site.request(self, "POST", url, tls=tls, headers={}, body=body)

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        return self.site.request(self, "GET", url, tls=tls, headers=headers or {}, body=b"")

    def http_send(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
    ) -> HttpResponse:
        self._change(f"{method} {url}")
        return self.site.request(self, method, url, tls=tls, headers=headers or {}, body=body)

    def resolve(self, name: str) -> list[str]:
        own = {machine.name: machine.address for machine in self.site.machines.values()}
        found = {**own, **self.site.names}.get(name)
        return [found] if found else []

    def hostname(self) -> str:
        return self.name

    def environ(self) -> Mapping[str, str]:
        return {"HOME": "/root"}

    def cpu_count(self) -> int:
        return 4

    def free_bytes(self, path: Path) -> int:
        return 100 << 30

    def mounts_below(self, path: Path) -> list[Path]:
        return []

    def now(self) -> datetime.datetime:
        return self.site.clock

    def monotonic(self) -> float:
        return self.site.clock.timestamp()

    def sleep(self, seconds: float) -> None:
        self.site.clock += datetime.timedelta(seconds=seconds)
        self.live()

    # ---- what kb changes on it

    def _change(self, what: str) -> None:
        if self.before_change:
            self.before_change(what)
        self.changes.append(what)

    def write_file(self, path: Path, data: Any, **more: Any) -> bool:
        wanted = data.encode() if isinstance(data, str) else data
        held = self.stat(path)
        is_same_mode = held is not None and (more.get("keeps") or held.mode == more.get("mode", 0o644))
        if not is_same_mode or self.read_bytes(path) != wanted:
            self._change(f"write {path}")
        return super(ClusterHost, self).write_file(path, data, **more)

    def write_stream(self, path: Path, chunks: Any, *, mode: int = 0o644) -> None:
        self._change(f"write {path}")
        super().write_stream(path, chunks, mode=mode)

    def move_file(self, source: Path, path: Path) -> None:
        self._change(f"move {source} {path}")
        super().move_file(source, path)

    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool:
        if self.is_dir(path):
            return super().make_dir(path, mode=mode)
        self._change(f"mkdir {path}")
        if CGROUPS in path.parents:  # the kernel fills it
            self.put(f"{path}/cgroup.freeze", "0\n")
            return True
        return super().make_dir(path, mode=mode)

    def remove(self, path: Path) -> bool:
        if not self.exists(path):
            return False
        self._change(f"remove {path}")
        return super().remove_tree(path) if CGROUPS in path.parents else super().remove(path)

    def remove_tree(self, path: Path) -> bool:
        if not self.exists(path):
            return False
        self._change(f"remove {path}")
        return super().remove_tree(path)

    def symlink(self, path: Path, target: str) -> bool:
        if self.read_link(path) != target:
            self._change(f"link {path}")
        return super().symlink(path, target)


def _plain(words: tuple[str, ...]) -> tuple[str, ...]:
    """Without crictl's way to the runtime."""
    at = words.index("--image-endpoint") + 2 if words[0] == "crictl" and "--image-endpoint" in words else 0
    return ("crictl", *words[at:]) if at else words


def _running(pod: Object, node: str, address: str, *, since: datetime.datetime) -> Object:
    containers = [
        {
            "name": one["name"],
            "containerID": f"containerd://{one['name']}",
            "restartCount": 0,
            "ready": True,
            "state": {"running": {"startedAt": f"{since:%Y-%m-%dT%H:%M:%SZ}"}},
        }
        for one in pod["spec"]["containers"]
    ]
    status = {"podIP": address, "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": containers}
    return {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status}


def _kubelet_conf(server: str, ca_pem: str) -> str:
    """As a kubelet writes it at the end of its TLS bootstrap."""
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca_pem.encode()).decode()}
    return dump_yaml(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default-cluster", "cluster": cluster}],
            "contexts": [
                {
                    "name": "default-context",
                    "context": {"cluster": "default-cluster", "user": "default-auth", "namespace": "default"},
                }
            ],
            "current-context": "default-context",
            "users": [{"name": "default-auth", "user": {"client-certificate": CURRENT_PEM, "client-key": CURRENT_PEM}}],
        }
    )
