"""Where the checkpoints come from that no package holds: the network, or files that somebody brought by hand."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from exporters.download import Progress, Refused, Say, Source, Unreachable, download, origin
from forcefields.catalogue import Catalogue, Variant
from forcefields.verification import sha256
from forcegate.errors import CheckpointMismatch, CheckpointMissing, SetupError

HUB = "https://huggingface.co"
ENDPOINT = "HF_ENDPOINT"
"""Environment variable, as the hub's own programs know it: a mirror of the hub."""
TOKEN = "HF_TOKEN"
"""Environment variable: the only place from which a token is taken. It is sent to the hub, or its mirror, alone."""
ARCHIVES = (".tar.gz", ".tgz", ".tar.xz", ".tar", ".zip")


@dataclass(frozen=True)
class Staged:
    """A checkpoint that is at hand. One that is ``ours`` may be moved; ``told`` says in the manifest where it came from."""

    path: Path
    ours: bool
    told: str


class Sources:
    """Brings checkpoints to be placed.

    Args:
        downloads: folder for what is being fetched.
        brought: a folder with files brought by hand; where it is given, nothing is fetched.
    """

    def __init__(self, catalogue: Catalogue, downloads: Path, brought: Path | None, progress: Progress, say: Say) -> None:
        self._catalogue = catalogue
        self._downloads, self._brought = downloads, brought
        self._progress, self._say = progress, say

    def bring(self, variant: Variant, target: Path) -> Staged:
        """The checkpoint of ``variant``, which belongs at ``target``.

        Raises:
            CheckpointMissing: it is not among the files that were brought.
            CheckpointMismatch: what was found or fetched has other bytes.
            SetupError: no token, no network, no disk, or the server refuses.
        """
        return self._found(variant, target) if self._brought is not None else self._fetched(variant, target)

    def clean(self, variant: Variant) -> None:
        """Removes what was fetched for a variant that is in place now."""
        shutil.rmtree(self._folder(variant), ignore_errors=True)

    def _folder(self, variant: Variant) -> Path:
        # The address is in the name: parts of one file are never continued with another.
        return self._downloads / f"{variant.name}-{hashlib.sha256(variant.checkpoint.url.encode()).hexdigest()[:8]}"

    def _fetched(self, variant: Variant, target: Path) -> Staged:
        checkpoint, folder = variant.checkpoint, self._folder(variant)
        addresses = [_mirrored(url) for url in expand(checkpoint.url)]
        token = _token(variant, addresses[0])
        several = len(addresses) > 1
        alone = not several and not _is_archive(variant)
        try:
            for address in addresses:
                name = _file_name(address)
                path = folder / "files" / name if several else folder / name
                if not path.exists():
                    source = Source(address, f"{variant.name} ({name})", checkpoint.sha256 if alone else "", token)
                    download(source, path, self._progress, self._say)
        except Unreachable as error:
            raise SetupError(f"{error.detail} {_wanted(variant, target)}", _by_hand(variant, False)) from None
        except Refused as error:
            raise SetupError(f"{error.detail} {_wanted(variant, target)}", _why_refused(variant, error)) from None
        if several:
            return Staged(folder / "files", ours=True, told=checkpoint.url)
        path = folder / _file_name(addresses[0])
        return Staged(path if alone else _unpack(path, folder / "unpacked", variant), ours=True, told=checkpoint.url)

    def _found(self, variant: Variant, target: Path) -> Staged:
        assert self._brought is not None
        checkpoint = variant.checkpoint
        names = [checkpoint.file, *(_file_name(url) for url in expand(checkpoint.url) if checkpoint.url)][:2]
        own = self._brought / variant.name
        candidates = [own / name for name in names]
        if len(expand(checkpoint.url)) > 1:
            candidates = [own / checkpoint.file, own]
        # A name that another variant's file has too says nothing, unless there is a hash that does.
        if checkpoint.sha256 or not self._shared(variant, names):
            candidates += [self._brought / name for name in names]
        existing = [path for path in dict.fromkeys(candidates) if path.exists()]
        if not existing:
            raise CheckpointMissing(
                f"{self._brought} has no checkpoint for {variant.name}. {_wanted(variant, target)}",
                f"Put it there as {variant.name}/{checkpoint.file}. It comes from {checkpoint.url}.",
            )
        told = []
        for path in existing:
            staged = path
            if path.is_file() and _is_archive(variant) and path.name.endswith(ARCHIVES):
                staged = _unpack(path, self._folder(variant) / "unpacked", variant)
            found = sha256(staged)
            if checkpoint.sha256 in ("", found):
                return Staged(staged, ours=staged != path, told=str(path.resolve()))
            told.append(f"{path} has {found}")
        raise CheckpointMismatch(
            f"The checkpoint of {variant.name} should have sha256 {checkpoint.sha256}; {', '.join(told)}.",
            f"Bring the file from {checkpoint.url} again.",
        )

    def _shared(self, variant: Variant, names: list[str]) -> bool:
        others = (other for other in self._catalogue.variants.values() if other.name != variant.name)
        return any(
            {other.checkpoint.file, *(_file_name(url) for url in expand(other.checkpoint.url))} & set(names)
            for other in others
            if other.checkpoint.source == "download"
        )


def expand(url: str) -> list[str]:
    """The addresses that ``https://host/{one,two}`` stands for."""
    found = re.fullmatch(r"([^{}]*)\{([^{}]*)\}([^{}]*)", url)
    return [found[1] + part.strip() + found[3] for part in found[2].split(",")] if found else [url]


def _mirrored(url: str) -> str:
    return _hub() + url[len(HUB) :] if url.startswith(f"{HUB}/") else url


def _hub() -> str:
    return (os.environ.get(ENDPOINT) or HUB).rstrip("/")


def _token(variant: Variant, address: str) -> str:
    """The token that a gated checkpoint needs; empty where it needs none, or where it is not the hub that asks."""
    if not variant.token or origin(address) != origin(_hub()):
        return ""
    if not (token := os.environ.get(TOKEN, "").strip()):
        raise SetupError(
            f"{variant.name} is gated: the hub gives it only to accounts that have accepted its licence.",
            f"Accept it at {_page(variant)}, make a read token in your account's settings there, and set {TOKEN} to it. "
            + _by_hand(variant),
        )
    return token


def _page(variant: Variant) -> str:
    """The page of the hub's repository that a checkpoint belongs to; a mirror takes no consents."""
    parts = urlsplit(variant.checkpoint.url)
    return f"{parts.scheme}://{parts.netloc}/" + "/".join(parts.path.strip("/").split("/")[:2])


def _file_name(url: str) -> str:
    return Path(unquote(urlsplit(url).path)).name or "file"


def _is_archive(variant: Variant) -> bool:
    checkpoint = variant.checkpoint
    return _file_name(checkpoint.url).endswith(ARCHIVES) and not checkpoint.file.endswith(ARCHIVES)


def _unpack(archive: Path, folder: Path, variant: Variant) -> Path:
    """Unpacks an archive and returns the checkpoint in it; entries that would leave the folder are refused."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise SetupError(f"{archive.name} of {variant.name} cannot be unpacked: {error}.", "Fetch or bring it again.") from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise SetupError(f"{archive.name} cannot be unpacked to {folder}: {error.strerror}.", "Make room and try again.") from None
    entries = list(folder.iterdir())
    found = folder / variant.checkpoint.path if variant.checkpoint.path else entries[0] if len(entries) == 1 else folder
    if not found.exists():
        raise SetupError(f"{archive.name} of {variant.name} holds no {variant.checkpoint.path}.", "Correct family.toml.")
    return found


def _wanted(variant: Variant, target: Path) -> str:
    """What somebody has to know who brings the file by hand."""
    known = (
        f"sha256 {variant.checkpoint.sha256}" if variant.checkpoint.sha256 else "no hash published, it is recorded the first time"
    )
    return f"Wanted: {variant.checkpoint.file} ({known}), looked for at {target}."


def _by_hand(variant: Variant, otherwise: bool = True) -> str:
    return ("Or fetch" if otherwise else "Fetch") + (
        f" {variant.checkpoint.url} on another machine, bring it here as DIR/{variant.name}/{variant.checkpoint.file}, "
        f"and run `forcegate export {variant.name} --from-dir DIR`."
    )


def _why_refused(variant: Variant, error: Refused) -> str:
    if error.http_status in (401, 403) and variant.token:
        why = "The token is not valid." if error.http_status == 401 else "The account of this token has not been given access."
        return f"{why} Accept the licence at {_page(variant)} and set {TOKEN}. {_by_hand(variant)}"
    if error.http_status in (404, 410):
        return f"Upstream does not have the file any more: report it. {_by_hand(variant)}"
    return _by_hand(variant, False)
