"""Whatever a file says: a configuration or a UsageError, soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeup.commands.config_documents import migrate_config_file, print_defaults
from kubeup.config.load_init import load_init_config
from kubeup.config.schema import SCHEMAS
from kubeup.errors import HostError, UsageError
from kubeup.yaml_files import dump_yaml, load_all_yaml
from tests.fake_host import FakeHost
from tests.unit.config_case import machine

EXAMPLES = [path.read_text() for path in sorted((Path(__file__).parents[3] / "configs" / "examples").glob("*.yaml"))]
PRINTED = [print_defaults(f"{kind}-defaults") for kind in ("init", "join", "reset", "upgrade")]
SEEDS = EXAMPLES + PRINTED
WORDS = sorted({name for struct in SCHEMAS.values() for name in struct.fields})

quick = settings(max_examples=120, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


def swallow(data: bytes) -> None:
    """Load and migrate; anything but success or a UsageError fails the test. A bundle that is named and not there is the
    machine's matter: without a version the file's own is asked for."""
    for use in (_load, _migrate):
        host = machine()
        host.files["a.yaml"] = data
        try:
            use(host)
        except (UsageError, HostError) as error:
            assert isinstance(error, UsageError) or error.code == "bundle-unreadable"
            assert error.cause
            assert error.remedy


def _load(host: FakeHost) -> None:
    load_init_config(host, config_file=Path("a.yaml"), flags={})


def _migrate(host: FakeHost) -> None:
    """What is written is read again, and is then what migrate writes."""
    once = migrate_config_file(host, Path("a.yaml"))
    host.files["a.yaml"] = once.encode()
    assert migrate_config_file(host, Path("a.yaml")) == once


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from(
        ["10.0.0.0/8", "fd00::/64", "::", "0.0.0.0", "1h", "-1s", "a:b", "[", "/", "https://", "v1.35.6", "all", "*."]
    ),
)
names = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)


def test_the_seeds_are_there() -> None:
    assert len(EXAMPLES) >= 4


@quick
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    swallow(data)


@quick
@given(st.text(alphabet=st.sampled_from("abk:{}[]-?&*!|>'\"%#@`, \n\t\\0.19~<=_é\ufeff\u2028"), max_size=120))
def test_any_text_of_yamls_letters(text: str) -> None:
    swallow(text.encode())
    swallow(("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n" + text).encode())


@quick
@given(st.sampled_from(sorted(SCHEMAS)), st.dictionaries(names, values, max_size=6))
def test_any_structure_under_a_known_head(head: tuple[str, str], body: dict[str, Any]) -> None:
    document = {**body, "apiVersion": head[0], "kind": head[1]}
    cluster = {"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration"}
    swallow(dump_yaml(document).encode("utf-8", "surrogatepass"))
    swallow((dump_yaml(document) + "---\n" + dump_yaml(cluster)).encode("utf-8", "surrogatepass"))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


@quick
@given(st.data())
def test_any_value_in_any_place_of_a_valid_document(data: st.DataObject) -> None:
    documents = load_all_yaml(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 3))):
        document = data.draw(st.sampled_from(documents))
        *outer, last = data.draw(st.sampled_from(_places(document)))
        place = document
        try:
            for key in outer:
                place = place[key]
            place[last] = data.draw(values)
        except (KeyError, IndexError, TypeError):
            continue
    swallow("---\n".join(dump_yaml(document) for document in documents).encode("utf-8", "surrogatepass"))


@quick
@given(st.sampled_from(SEEDS), st.integers(0, 2000), st.integers(0, 30), st.text(max_size=10))
def test_any_cut_of_a_valid_text(text: str, start: int, length: int, patch: str) -> None:
    swallow((text[:start] + patch + text[start + length :]).encode("utf-8", "surrogatepass"))


FLAGS = st.dictionaries(
    st.sampled_from(
        ["service-cidr", "pod-network-cidr", "token", "token-ttl", "feature-gates", "apiserver-bind-port", "node-name",
         "kubernetes-version", "control-plane-endpoint", "apiserver-cert-extra-sans", "image-repository", "soak", "mirror",
         "pod-network", "apiserver-extra-args", "apiserver-advertise-address", "cri-socket", "ignore-preflight-errors"]
    ),
    st.one_of(st.text(max_size=20), st.lists(st.text(max_size=8), max_size=3), st.integers(), st.booleans()),
    max_size=4,
)  # fmt: skip


@quick
@given(FLAGS)
def test_any_flags(flags: dict[str, Any]) -> None:
    try:
        load_init_config(machine(), config_file=None, flags=flags)
    except UsageError as error:
        assert error.details
