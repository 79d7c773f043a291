"""The commands mirror add, list, remove and gc: what this node's mirror has, and what of it can go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.commands import certs, launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, KbError, UsageError, shown
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.airgap import bundle, mirror_content, mirror_needs
    from kubeup.doctor import node_files
    from kubeup.node import image_pulls
    from kubeup.phases import local_bundle
    from kubeup.swap import proof
    from kubeup.upgrade import kept

if TYPE_CHECKING:
    from kubeup.airgap.mirror_content import Content, Removal
    from kubeup.airgap.mirror_needs import Needs
    from kubeup.cli.program import Invocation
    from kubeup.machine.local_host import LocalHost

_MIB = 1 << 20


def _require_mirror(local: LocalHost) -> Path:
    """The mirror's folder. Raises HostError (no-mirror-here)."""
    if local.is_dir(local_bundle.MIRROR_FOLDER):
        return local_bundle.MIRROR_FOLDER
    raise HostError(
        "this node has no mirror",
        cause=f"there is no {local_bundle.MIRROR_FOLDER}",
        remedy="run it on the control plane that serves it (kb init --bundle, kb mirror move)",
        code="no-mirror-here",
    )


# ---- add


def add(call: Invocation) -> int:
    """Add a bundle to this node's mirror: check it first, then copy it; it is served a second later."""
    path, launch = launcher.require_one_file(call, takes="one bundle"), Launch(call)
    launch.require_root()
    local = launch.local
    _require_mirror(local)
    key = local.read_text(Path(call.flags["verify-key"]).absolute()) if "verify-key" in call.flags else ""
    with local_bundle.hold_folder(local, f"kb {call.command.name}"):
        try:
            found = local_bundle.add_bundle(local, path, key_pem=key, tell=call.report.waiting)
        except HostError as error:
            if error.code != "disk-full":
                raise
            spare = say_spare(launch)
            remedy = f"{spare}; or {error.remedy}" if spare else error.remedy
            raise HostError(error.what, cause=error.cause, remedy=remedy, code=error.code) from error
    call.print(f"{found.path} is served: {len(found.names)} images, {len(bundle.list_files(local, found))} files")
    return 0


# ---- list


def list_content(call: Invocation) -> int:
    """Print the bundles and the images of this node's mirror, how large they are, and who needs them."""
    launch = Launch(call)
    launch.require_root()
    folder = _require_mirror(launch.local)
    content = mirror_content.read_content(launch.local, folder)
    needs, why_unknown = _find_needs(launch)
    unnamed = mirror_content.plan_removal(content)
    spare = mirror_needs.find_spare(content, needs) if needs else []
    free = launch.local.free_bytes(folder)
    if call.output != "text":
        call.print_value({
            "bundles": [_describe_bundle(one, content, needs=needs) for one in content.bundles],
            "images": [{"name": one.name, "digest": one.digest, "bytes": one.size, "bundles": list(one.bundles), **_needed(needs, needs and needs.of_image(one))} for one in content.images],
            "notNeeded": spare, "unnamedBytes": unnamed.freed, "freeBytes": free,
        })  # fmt: skip
        return 0
    call.print(_render_bundles(content, needs))
    call.print(_render_images(content, needs))
    for minor in spare:
        freed = _plan_minor(content, minor).freed
        call.tell(f"no node needs {minor}: kb mirror remove {minor} frees {_say_size(freed)}")
    if not unnamed.is_empty:
        call.tell(f"nothing names {_say_size(unnamed.freed)}: kb mirror gc")
    if why_unknown:
        call.tell(f"who needs what is not known: {why_unknown}")
    call.print(f"{_say_size(free)} are free on its disk")
    return 0


def _describe_bundle(one: Any, content: Content, *, needs: Any) -> dict[str, Any]:
    names = [name for name, _ in content.entries_of(one)]
    return {
        "name": one.name, "kubernetesVersion": one.version, "bytes": one.size, "images": sum(bool(name) for name in names),
        "hasPrograms": "" in names, "isSigned": bool(one.found.signature), **_needed(needs, needs and needs.of_version(one.version)),
    }  # fmt: skip


def _needed(needs: Any, who: Any) -> dict[str, Any]:
    """What is known of who needs a thing: nothing if the cluster could not be asked."""
    return {"neededBy": who} if needs else {}


def _render_bundles(content: Content, needs: Any) -> str:
    rows = [("BUNDLE", "KUBERNETES", "IMAGES", "SIZE", "NEEDED BY")]
    for one in content.bundles:
        who = needs.of_version(one.version) or "nobody" if needs else "?"
        count = sum(bool(name) for name, _ in content.entries_of(one))
        rows.append((shown(one.name), shown(one.version) or "-", str(count), _say_size(one.size), who))
    return certs.render_table(rows)  # type: ignore[arg-type]


def _render_images(content: Content, needs: Any) -> str:
    rows = [("IMAGE", "SIZE", "BUNDLE", "NEEDED BY")]
    for one in content.images:
        who = needs.of_image(one) or "nobody" if needs else "?"
        rows.append((shown(one.name), _say_size(one.size), ", ".join(map(shown, one.bundles)), who))
    return certs.render_table(rows)  # type: ignore[arg-type]


def _say_size(count: int) -> str:
    return f"{count / _MIB:.0f} MiB" if count >= _MIB else f"{count / 1024:.0f} KiB"


# ---- remove and gc


def remove(call: Invocation) -> int:
    """Take bundles, all of a minor, or single images out of this node's mirror, unless somebody needs them."""
    launch = Launch(call)
    launch.require_root()
    if not call.words:
        raise UsageError(
            "kb mirror remove",
            cause="it takes images, versions of Kubernetes, or bundles",
            remedy="see what is there: kb mirror list; then: kb mirror remove v1.34, or IMAGE, or FILE.tar",
            code="usage",
        )
    return _take_out(launch)


def gc(call: Invocation) -> int:
    """Take out of this node's mirror what no image and no program names, and what a killed kb has left."""
    launch = Launch(call)
    launch.require_root()
    return _take_out(launch)


def _take_out(launch: Launch) -> int:
    call = launch.call
    local, folder = launch.local, _require_mirror(launch.local)
    with local_bundle.hold_folder(local, f"kb {call.command.name}"):
        content = mirror_content.read_content(local, folder)
        bundles, images = _find_chosen(call, content)
        removal = mirror_content.plan_removal(content, bundles=bundles, images=images)
        _refuse_unnamed(call, removal, named={*images, *mirror_content.plan_removal(content, bundles=bundles).images})
        if removal.images or removal.bundles:
            _refuse_needed(launch, content, removal=removal)
        leftovers = sum(mirror_content.find_leftovers(local, folder).values())
        if not launch.is_dry:
            mirror_content.remove_leftovers(local, folder)
            mirror_content.carry_out(local, content, removal, tell=call.report.waiting)
    _print_removal(call, removal, freed=removal.freed + leftovers, is_dry=launch.is_dry)
    return 0


def _find_chosen(call: Invocation, content: Content) -> tuple[list[str], list[str]]:
    """(bundles, images) that the words name. What is not there is told, and no error: an earlier run may have removed it. Raises UsageError
    (usage)."""
    bundles, images = list[str](), list[str]()
    known = {image.name for image in content.images}
    for word in call.words:
        found = mirror_content.find_bundles(content, word)
        name = image_pulls.full_image_name(word)
        if found is None and not ("/" in word or ":" in word):
            raise UsageError(
                f"kb mirror remove {word}",
                cause=f"{word!r} is no version of Kubernetes, no bundle and no image",
                remedy="see what is there: kb mirror list",
                code="usage",
            )
        if not found and name not in known:
            call.report.note(f"the mirror has no {word}")
        bundles += found or []
        images += [name] if found is None and name in known else []
    return bundles, images


def _refuse_unnamed(call: Invocation, removal: Removal, *, named: set[str]) -> None:
    """Raises HostError (mirror-same-image): an image is removed by its content, and another name may stand for the same."""
    others = [name for name in removal.images if name not in named]
    if others:
        raise HostError(
            f"{', '.join(others)} would go too",
            cause=f"it is the same image as one of {' '.join(call.words)}, or contains it; nothing was removed",
            remedy=f"to remove all of them: kb mirror remove {' '.join((*call.words, *others))}",
            code="mirror-same-image",
        )


def _refuse_needed(launch: Launch, content: Content, *, removal: Removal) -> None:
    """Raises HostError (mirror-needed, mirror-last-bundle), or what asking the cluster raises."""
    call, words = launch.call, " ".join(launch.call.words)
    if len({*removal.deleted, *removal.forgotten}) == len(content.bundles):
        raise HostError(
            f"kb mirror remove {words} would leave the mirror empty",
            cause="it serves bundles, and these are all there are",
            remedy="add another bundle first: kb mirror add FILE; or end the mirror: systemctl disable --now kb-mirror",
            code="mirror-last-bundle",
        )
    if call.flags.get("force"):
        return
    needs = _read_needs(launch)
    hindrances = mirror_needs.find_hindrances(content, removal, needs=needs)
    if hindrances:
        raise HostError(
            f"the cluster needs what kb mirror remove {words} would take out",
            cause=f"{hindrances[0]}; nothing was removed",
            remedy=f"upgrade or remove who needs it; or take it out all the same: kb mirror remove {words} --force",
            code="mirror-needed",
            details=hindrances[1:],
        )


def _print_removal(call: Invocation, removal: Removal, *, freed: int, is_dry: bool) -> None:
    if call.output != "text":
        call.print_value({"dryRun": is_dry, "removedBundles": list(removal.bundles), "removedImages": list(removal.images), "freedBytes": freed})  # fmt: skip
        return
    verb = "would remove" if is_dry else "removed"
    for name in (*removal.bundles, *removal.images):
        call.print(f"{verb}: {shown(name)}")
    if not freed:
        call.print("nothing to do: everything that is there has a name")
    else:
        call.print(f"{_say_size(freed)} {'would be ' if is_dry else ''}freed")
    if is_dry:
        call.print("nothing was changed")


# ---- who needs what


def _read_needs(launch: Launch) -> Needs:
    """Raises HostError (not-a-control-plane), ApiRefused, Unreachable."""
    patient = node_files.read_patient(launch.local, Paths())
    if not patient.is_control_plane:
        raise launcher.no_control_plane(patient.paths)
    run = launcher.make_run(launch.local, patient.config, paths=patient.paths, report=launch.call.report)
    former = kept.load(launch.local, patient.paths)
    more = {former.former: "the way back of this node's upgrade"} if former and former.status != kept.TAKEN_BACK else {}
    return mirror_needs.read_needs(proof.own_api(run), patient.config, paths=patient.paths, more=more)


def _find_needs(launch: Launch) -> tuple[Any, str]:
    """(the needs, ""), or (None, why they are not known)."""
    try:
        return _read_needs(launch), ""
    except KbError as error:
        return None, str(error)


def _plan_minor(content: Content, minor: str) -> Removal:
    return mirror_content.plan_removal(content, bundles=mirror_content.find_bundles(content, minor) or [])


def say_spare(launch: Launch) -> str:
    """What this node's mirror could do without, as command lines: `remove what no node needs: kb mirror remove v1.34 (790 MiB)`; "" if there is
    nothing, or if it cannot be told."""
    local = launch.local
    if not local.is_dir(local_bundle.MIRROR_FOLDER):
        return ""
    try:
        content = mirror_content.read_content(local, local_bundle.MIRROR_FOLDER)
        minors = mirror_needs.find_spare(content, _read_needs(launch))
        told = [f"kb mirror remove {one} ({_say_size(_plan_minor(content, one).freed)})" for one in minors]
        unnamed = mirror_content.plan_removal(content).freed
    except KbError:
        return ""
    told += [f"kb mirror gc ({_say_size(unnamed)})"] if unnamed else []
    return f"remove what no node needs: {', '.join(told)}" if told else ""
