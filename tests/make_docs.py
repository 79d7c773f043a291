"""Write what is generated: docs/errors.md from the raise sites, docs/flags.md from the table of flags,
docs/phases.md from kb.py and kubeup/day_two.py.

python3 -m tests.make_docs          (make docs)
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubeup.config.flag_table import Flag

REPO = Path(__file__).resolve().parent.parent
STATUS = {"UsageError": 2, "PreflightError": 3, "HostError": 4, "ClusterError": 5}
_TABLES = {
    "INIT": "## kb init",
    "JOIN": "## kb join",
    "RECONFIGURE": "## kb reconfigure",
    "RECONFIGURE_ENDPOINT": "## kb reconfigure endpoint",
    "RECONFIGURE_STATIC_PODS": "## kb reconfigure static-pods",
    "RECONFIGURE_BACK": "## kb reconfigure back",
    "READDRESS": "## kb readdress",
    "NODE_REMOVE": "## kb node remove",
    "NODE_REBOOT": "## kb node reboot",
    "NODE_RETURN": "## kb node returned",
    "CERTS_AUTO": "## kb certs auto on",
    "UPGRADE_APPLY": "## kb upgrade apply",
    "UPGRADE_NODE": "## kb upgrade node",
    "UPGRADE_ROLLBACK": "## kb upgrade rollback",
    "UPGRADE_SELF": "## kb upgrade self",
    "CERTS_ADD_SAN": "## kb certs add-san",
    "CERTS_ROTATE": "## kb certs rotate-sa, kb certs rotate-ca",
    "BACKUP_SCHEDULE": "## kb backup schedule",
    "DRIFT_SCHEDULE": "## kb drift schedule",
    "MIRROR_MOVE": "## kb mirror move",
    "MIRROR_USE": "## kb mirror use",
    "RESTORE": "## kb restore",
    "RESET": "## kb reset",
}
"""A story of kb.py or kubeup/day_two.py, and the heading of its table."""


def _literal(node: ast.expr) -> str:
    """A string expression as text, with … for what is filled in at run time."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.IfExp):
        return f"{_literal(node.body)} / {_literal(node.orelse)}"
    if isinstance(node, ast.BinOp):
        return _literal(node.left) + _literal(node.right)
    return "…"


def read_codes() -> dict[str, list[tuple[str, str, str]]]:
    """code -> [(class, what, remedy)] of every raise site."""
    bases: dict[str, str] = {}
    calls: list[ast.Call] = []
    for path in sorted((REPO / "kubeup").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own = [base.id for base in node.bases if isinstance(base, ast.Name)]
                bases.update((node.name, base) for base in own if base in STATUS or base.endswith("Error"))
                for call in (item for item in ast.walk(node) if isinstance(item, ast.Call)):
                    if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__" and own:
                        call.func = ast.Name(node.name)
            if isinstance(node, ast.Call):
                calls.append(node)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for call in calls:
        words = {word.arg: word.value for word in call.keywords}
        if "code" not in words or "remedy" not in words:
            continue
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        while name in bases and name not in STATUS:
            name = bases[name]
        what = _literal(call.args[0]) if call.args else _literal(words.get("what", ast.Constant("…")))
        for code in re.findall(r"[a-z][a-z0-9-]+", _literal(words["code"])):
            row = (name or "KbError", what, _literal(words["remedy"]))
            if row not in found.setdefault(code, []):
                found[code].append(row)
    return found


def render_errors() -> str:
    lines = [
        "# Errors",
        "",
        "Every error says what broke, why (`cause`) and one thing to do (`remedy`), and has a code that never changes.",
        "The exit status follows the class: 2 usage, 3 preflight, 4 this machine, 5 the cluster, 70 a bug in kb.",
        "`…` is filled in at run time. This page is generated from the source: `make docs`.",
        "",
        "| code | status | what | remedy |",
        "|---|---|---|---|",
    ]
    for code, rows in sorted(read_codes().items()):
        for name, what, remedy in rows:
            cells = [text.replace("|", "\\|").replace("\n", " ") for text in (what, remedy)]
            lines.append(f"| `{code}` | {STATUS.get(name, '')} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def render_flags() -> str:
    from kubeup.config.flag_table import EVERYWHERE, FLAGS

    lines = [
        "# Flags",
        "",
        "Every flag of kb, in the order of the help text, with the commands that take it and the configuration field that it",
        "sets. Under the name kubeadm only kubeadm's flags exist. With --config most fields come only from the file; a flag whose",
        "field is marked \\* may be combined with --config and takes effect. This page is generated: `make docs`.",
        "",
        "| flag | meaning | commands | field |",
        "|---|---|---|---|",
    ]
    for flag in (*FLAGS, *EVERYWHERE):
        if flag.is_hidden:
            continue
        names = dict.fromkeys((*flag.of, *flag.added_to)) if flag not in EVERYWHERE else {"every command": None}
        commands = ", ".join(name for name in names if not (name.endswith(" phase") and name[:-6] in names))
        fields = ", ".join(f"`{place}`" + " \\*" * may_stand_beside_config(flag, place) for place in flag.sets)
        cells = [f"`--{flag.name}`", flag.help, commands, fields]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def may_stand_beside_config(flag: Flag, place: str) -> bool:
    return flag.beside_config or place.startswith("KbConfiguration.")


def render_phases() -> str:
    lines = [
        "# Phases",
        "",
        "What each command does to a node, step by step, generated from [kb.py](../kb.py) and [kubeup/day_two.py](../kubeup/day_two.py)",
        "by `make docs`. `kb init phase NAME` runs one phase, `--skip-phases` leaves some out.",
    ]
    for name, heading in _TABLES.items():
        lines += ["", heading, "", *render_phase_table(name)]
    return "\n".join(lines) + "\n"


def render_phase_table(name: str) -> list[str]:
    import kb
    from kubeup import day_two

    shared = {
        name: day_two.find_story(name.lower().replace("_", "-"), init=kb.INIT)
        for name in ("RESTORE", "RECONFIGURE_ENDPOINT", "MIRROR_MOVE", "MIRROR_USE")
    }
    stories = {**vars(day_two), **vars(kb), **shared}
    notes = {"": "", "control-plane": " (control planes)"}
    return [
        "| phase | what happens |",
        "|---|---|",
        *(f"| `{p.name}` | {p.does}{notes[p.on]} |" for p in stories[name]),
    ]


def main() -> None:
    (REPO / "docs/errors.md").write_text(render_errors())
    (REPO / "docs/flags.md").write_text(render_flags())
    (REPO / "docs/phases.md").write_text(render_phases())


if __name__ == "__main__":
    main()
