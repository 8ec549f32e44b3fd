"""`Manifest`: what a set of files was made of. It says whether they were made otherwise, and whether they have changed since.

Prepared session files, item vectors and intents have one each (`prepare.json`, `itememb.json`, `infer.json`). It is written last, so a
folder with a manifest is complete; its `inputs` chain the three: each names the checksums of what it was made from.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import make_folder, read_json, sha256_file, write_json, write_whole

log = logging.getLogger(__name__)

Checksums = dict[str, str]
_MAKING = ".making"  # names the files of a run that has not ended
FORMAT = 4  # of the files and manifests; raised when the same settings would make other files


@dataclass(frozen=True)
class Manifest:
    """What files were made of.

    Attributes:
        path: of the manifest; its files stand beside it.
        made_by: the verb.
        settings: those that decided the files, by `base.facts.deciding`.
        inputs: checksums of what they were made from, by kind (`source`, `prepared`, `items`) and file.
        models: identity of the LLM and the encoder, by option.
        files: checksums of the files by name.
        counts: what they hold.
        views: of intents: a checksum of each view's intents, so that adding a view does not change the others.
        format, version: of the files, and of the package that wrote them.
    """

    path: Path
    made_by: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Checksums] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    files: Checksums = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    views: Checksums = field(default_factory=dict)
    format: int = FORMAT
    version: str = __version__

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """The manifest at `path`, None when there is none. One that cannot be read differs from whatever is wanted."""
        if not path.is_file():
            return None
        try:
            value = read_json(path)
        except (UserError, UnicodeDecodeError):
            value = None
        names = {each.name for each in fields(cls)} - {"path"}
        if (
            not isinstance(value, dict)
            or value.get("format") != FORMAT
            or not all(isinstance(value.get(name), dict) for name in ("settings", "inputs", "files", "counts"))
        ):
            return cls(path, format=0)
        return cls(path, **{name: value[name] for name in names if name in value})

    def differences(
        self,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Checksums],
        models: Mapping[str, str] | None = None,
    ) -> list[str]:
        """In what the files were made otherwise than wanted, in words; empty when they were not.

        Args:
            settings: the deciding settings that are wanted.
            inputs: checksums of what the files should be made from.
            models: identities of the models that are known; others are not compared.
        """
        if self.format != FORMAT:
            return [f"{self.path.name} is of another version of this package, or is damaged"]
        found = setting_differences(self.settings, settings)
        for kind in sorted(inputs):
            if self.inputs.get(kind) != inputs[kind]:
                found.append(f"the {_INPUTS.get(kind, kind)} are others than those it was made from")
        for option, identity in sorted((models or {}).items()):
            if self.models.get(option) != identity:
                found.append(f"the model of {option} was {self.models.get(option)!r}, now {identity!r}")
        return found

    def damage(self) -> list[str]:
        """Files that are missing or were changed after they were written, in words."""
        return [
            f"{str(self.path.parent / name)!r} is missing or was changed after it was written"
            for name, checksum in self.files.items()
            if not (self.path.parent / name).is_file() or sha256_file(self.path.parent / name) != checksum
        ]

    def check_files(self) -> None:
        """Refuse files that are not those of the manifest.

        Raises:
            UserError: names the first, and the option that makes it anew.
        """
        if found := self.damage():
            raise UserError(f"{found[0]}; add --rebuild=true to `prepare` or `infer` to make it anew")

    def remove(self) -> None:
        """Delete the files and then the manifest."""
        for name in self.files:
            (self.path.parent / name).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def check_own(self, files: Iterable[str]) -> None:
        """Refuse to write over files that no run of this package made: neither a manifest names them nor a run that was killed.

        Args:
            files: names of the files to write.

        Raises:
            UserError: names the first.
        """
        folder = self.path.parent
        making = self.path.with_suffix(_MAKING)
        ours = set(making.read_text(encoding="utf-8").split("\n")) if making.is_file() else set()
        if self.path.is_file():
            before = Manifest.read(self.path)
            ours |= (
                set(before.files) if before and before.format else set(files)
            )  # a damaged manifest is made anew on request only
        if foreign := sorted(name for name in files if name not in ours and (folder / name).exists()):
            raise UserError(
                f"{str(folder / foreign[0])!r} was not made by this package; move it away, or choose another --atomic_path"
            )

    def write(self, files: Mapping[str, Iterable[str]]) -> "Manifest":
        """Write files and then the manifest; a kill in between leaves none, so that the next run makes the files anew.

        Args:
            files: lines by file name.

        Returns:
            The manifest with the files' checksums.

        Raises:
            UserError: a file stands there that this package did not make.
        """
        folder = make_folder(self.path.parent)
        self.check_own(files)
        making = self.path.with_suffix(_MAKING)
        with write_whole(making) as handle:
            handle.write("\n".join(files))
        self.path.unlink(missing_ok=True)
        for name, lines in tqdm(files.items(), desc="writing", unit="file", leave=False, delay=3):
            with write_whole(folder / name) as handle:
                handle.writelines(lines)
        value = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "path"}
        value["files"] = {name: sha256_file(folder / name) for name in files}
        write_json(self.path, value)
        making.unlink(missing_ok=True)  # another process that made the same files may have ended first
        return Manifest(self.path, **value)


_INPUTS = {"source": "raw files", "prepared": "session files", "items": "item vectors"}


def setting_differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In what two sets of settings differ, in words.

    >>> setting_differences({"split": "paper", "views": ["long"]}, {"split": "temporal", "views": ["long"]})
    ["split was 'paper', now 'temporal'"]
    """
    found = []
    for key in sorted({**made, **wanted}):
        before, now = made.get(key), wanted.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            parts = [part for part in {**before, **now} if before.get(part) != now.get(part)]
            found.append(f"{key} differs in {', '.join(map(str, parts))}")
        else:
            found.append(f"{key} was {before!r}, now {now!r}")
    return found


def of_views(settings: Mapping[str, Any], views: Sequence[str]) -> dict[str, Any]:
    """Deciding settings of intents, of some of their views only; views that were asked for in one call belong together."""
    if settings.get("views_in_one_call") or not set(views) <= set(settings.get("views", ())):
        return dict(settings)
    template = settings.get("prompt")
    changed: dict[str, Any] = {"views": list(views)}
    if isinstance(template, dict) and isinstance(template.get("views"), dict):
        changed["prompt"] = template | {"views": {view: template["views"].get(view) for view in views}}
    return {**settings, **changed}
