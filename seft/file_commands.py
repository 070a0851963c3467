"""The commands about the files of a model: `seft inspect`, `verify`, `export`, `pack`, `expand` and `reproduce`.

Each function of a command returns its result as JSON data and as text. Importing this module loads no torch.
"""

import argparse
from pathlib import Path
from typing import Any

from seft.config import FORMATS, OutputFormat, parse_format
from seft.console import describe_model
from seft.errors import BitsDifferError, ConfigError, ReproduceError
from seft.option_rules import text_file
from seft.report import Reporter

SHOWN = 5
"""Largest number of names that a message lists."""
EXPORTED = [each for each in OutputFormat if each is not OutputFormat.DENSE]
"""The formats that `seft export` writes."""
Answer = tuple[dict[str, Any], str]


def add_inspect(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft inspect`."""
    command.add_argument("folder", type=Path, help="Hugging Face folder.")


def inspect(options: argparse.Namespace, _: Reporter) -> Answer:
    """Count the zeros in the files of a folder.

    `changed` in the JSON data names a part whose zeros are not those of `sparsity.json`. It is None if there is none.
    """
    from seft.checkpoint import folder

    counted, record = folder.inspect(options.folder)
    recorded = record.data() if record else {"facts": None, "versions": None}
    facts = {key: recorded[key] for key in ("facts", "versions")}
    changed = folder.changed_part(counted, record) if record else None
    data = {"folder": str(options.folder), "sparsity": counted.data(), **facts, "changed": changed}
    text = describe_model(counted, record)
    if changed:
        text += f"\nThe record does not describe these weights: sparsity.json has another number of zeros in {changed}."
    return data, text


def add_verify(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft verify`."""
    command.add_argument("folder", type=Path, help="Folder that prune, repair, compress or a job wrote.")


def verify(options: argparse.Namespace, _: Reporter) -> Answer:
    """Compare the files of a folder with its manifest. Raises VerifyError with the name of a file that differs."""
    from seft.checkpoint.facts import listed_files, require_listed

    listed = listed_files(options.folder)
    require_listed(options.folder, listed)
    size = sum(file.size for file in listed.values())
    text = f"{options.folder} has the {len(listed)} files of its manifest.json, {size:,} bytes."
    return {"folder": str(options.folder), "files": len(listed), "bytes": size}, text


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft export`."""
    command.add_argument("folder", type=Path, help="Hugging Face folder in bfloat16, such as one that prune wrote.")
    command.add_argument("--format", type=_format, required=True, help=f"Format to write: {', '.join(EXPORTED)}.")
    command.add_argument("out", type=Path, help="File to write. Must not exist.")


def _format(name: str) -> OutputFormat:
    """Return the format of this name. Raises ConfigError about the option, not about the setting of a job."""
    try:
        return parse_format(name, EXPORTED)
    except ConfigError as error:
        raise ConfigError("--format", error.rule, error.value, error.way_out) from None


def export(options: argparse.Namespace, report: Reporter) -> Answer:
    """Write the model in a folder as one file of another format."""
    from seft import verbs

    try:
        size = verbs.export(options.folder, options.format, options.out, report=report)
    except ConfigError as error:
        if error.field != FORMATS:
            raise
        way_out = "Use the format compact, or the folder itself."
        raise ConfigError("--format", error.rule, error.value, way_out, lead=error.lead) from None
    data = {"out": str(options.out), "format": options.format, "bytes": size}
    values = "other values rounded" if options.format.rounds else "all values kept"
    return data, f"{options.out}  {options.format}  {size:,} bytes, every zero kept, {values}"


def add_pack(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft pack`."""
    add_inspect(command)
    command.add_argument("out", type=Path, metavar="FILE", help="File to write. Must be new.")


def pack(options: argparse.Namespace, _: Reporter) -> Answer:
    """Store a model folder in one compact file."""
    from seft.checkpoint.compact import writer

    sizes = writer.pack(options.folder, options.out)
    text = f"{options.out} has {sizes.container:,} bytes. The folder has {sizes.folder:,}."
    return {"out": str(options.out), **sizes._asdict()}, text


def add_expand(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft expand`."""
    command.add_argument("file", help="Compact file: a path, a web address, or s3://bucket/key.")
    command.add_argument("out", type=Path, help="Folder to write. Must be new or empty.")


def expand(options: argparse.Namespace, _: Reporter) -> Answer:
    """Restore a model folder from a compact file."""
    from seft.checkpoint.compact.reader import open_container

    with open_container(options.file) as container:
        size = container.expand(options.out)
    text = f"{options.out} has {len(container.files)} files with {size:,} bytes."
    return {"out": str(options.out), "folder": size}, text


def add_reproduce(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `seft reproduce`."""
    command.add_argument("record", type=Path, metavar="SPARSITY.JSON", help="sparsity.json beside its manifest.json.")
    command.add_argument("--out", type=Path, required=True, help="Folder to write. Must be new or empty.")
    command.add_argument("--model", help="The dense model, if it is not the hub's model or in this folder.")
    command.add_argument("--teacher", help="The model that was distilled from, if it was not the dense model.")
    texts = {
        "--data": "The training text, or the dataset of a job.",
        "--calibration": "The calibration text, if it was not the training text.",
        "--held-out": "The text to evaluate on.",
        "--retain-data": "The text to retain.",
    }
    for name, text in texts.items():
        command.add_argument(name, type=text_file, help=f"{text} Not needed if a file of its name is in this folder.")


def reproduce(options: argparse.Namespace, report: Reporter) -> Answer:
    """Run the recipe of a checkpoint again and compare the weights. Raises BitsDifferError if they differ."""
    from seft import reproduce as recipe
    from seft.checkpoint import comparison
    from seft.checkpoint.facts import SPARSITY, Record

    if options.record.name != SPARSITY:
        rule = f"the record must be a file named {SPARSITY}; it is {str(options.record)!r}."
        raise ReproduceError(f"{rule} Give the one in the folder of the checkpoint, beside its manifest.json.")
    folder, out = options.record.parent, options.out
    recorded, hashes = Record.read(folder), comparison.read_hashes(folder)
    names = ("model", "teacher", "calibration", "data", "held_out", "retain_data")
    inputs = recipe.Inputs(**{name: getattr(options, name) for name in names})
    formats = comparison.formats_of(hashes)
    changes = recipe.reproduce(recorded, inputs, out, formats=formats, report=report)
    written = comparison.read_hashes(out)
    files = comparison.differing_files(hashes, written)
    if files:
        raise _difference(out, files, comparison.differing_tensors(folder, out), changes)
    text = f"{out} has the same bits as the recorded checkpoint: {len(written)} files."
    return {"out": str(out), "same": True, "files": len(written), "changes": changes}, text


def _difference(out: Path, files: list[str], tensors: list[str], changes: list[str]) -> BitsDifferError:
    """Return the error that names the files and tensors that differ, and a possible cause."""
    where = f"these files differ: {', '.join(files[:SHOWN])}"
    if tensors:
        more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
        where += f" (tensors: {', '.join(tensors[:SHOWN])}{more})"
    cause = "Software and machine are the recorded ones, so report this as a bug."
    if changes:
        cause = f"Other software, another machine or fewer processes may give other bits: {'; '.join(changes)}."
    return BitsDifferError(f"{out} must have the bits of the recorded checkpoint; {where}. {cause}")
