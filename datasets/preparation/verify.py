"""Checks a data set: what its folders lack, what cannot be read, what differs from the official archive; and what a run would see."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.data.manifest import Manifest, manifest_of, to_hash
from bench.errors import DataError
from bench.types import SPLITS, Dataset, Split
from datasets.folder import ArchiveDataset, Entry, ListedDataset
from datasets.preparation.findings import Finding, Inspected, note, of_archive, of_contents, of_masks
from datasets.preparation.inspection import Drawn, inspections
from datasets.preparation.progress import progress_bar


@dataclass(frozen=True)
class Verified:
    """What was found. seen: what the images that could be read are like; opened, manifest: None where the data set does not open."""

    findings: tuple[Finding, ...]
    seen: Inspected = field(default_factory=dict)
    opened: Dataset | None = None
    manifest: Manifest | None = None


def verify(cls: type[Dataset], data: Path, cache_dir: Path) -> Verified:
    """Looks at everything below `data`; RequestError only where the request is wrong. Every file is read, and hashed again."""
    try:
        survey = cls.survey(data) if issubclass(cls, ListedDataset) else None
        opened = None if survey and survey.faults else cls.open(data)
    except DataError as error:
        return Verified((Finding(str(error)),))
    entries = survey.entries if survey else _drawn(opened)
    total = sum(map(len, entries.values()))
    with progress_bar(f"Reading {total:,} images of {cls.name}", total) as on_step:
        everything = list(inspections(entries, cls.rule, on_step))
    seen = {split: [look for look in everything if look.split == split and not look.fault] for split in entries}
    findings = [*map(Finding, survey.faults if survey else ()), *(Finding(look.fault) for look in everything if look.fault)]
    if survey and issubclass(cls, ArchiveDataset):
        findings += of_archive(cls, data, survey, seen)
    for split, of_split in seen.items():
        findings += of_masks(split, of_split, getattr(cls, "threshold", 0))
    findings += map(note, survey.notes if survey else ())
    if opened is None:
        return Verified(tuple(findings), seen)
    try:
        with progress_bar(f"Hashing the files of {opened.name}", to_hash(opened, None)) as on_step:
            manifest = manifest_of(opened, cache_dir, again=True, on_bytes=on_step)
        findings += of_contents(manifest, opened.files())
    except DataError as error:
        return Verified((*findings, Finding(str(error))), seen, opened)
    return Verified(tuple(findings), seen, opened, manifest)


def _drawn(dataset: Dataset | None) -> Mapping[Split, Mapping[str, Entry]]:
    """The entries of a data set that has no listing; a `val` split that is part of `train` is not looked at twice."""
    assert dataset is not None  # without a survey it has no faults, and was opened
    names = {split: dataset.names(split) for split in SPLITS}
    if set(names["val"]) <= set(names["train"]):
        del names["val"]
    return {split: {name: Drawn(dataset, split) for name in of_split} for split, of_split in names.items()}
