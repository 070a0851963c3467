"""Verifies an exported folder from its files alone: hashes, counts of zeros, loading, and output probabilities.

`verify` runs `python -m seft.checkpoint.verify FOLDER` in a separate process, so that state or patches of the exporting
process cannot hide a broken folder. It does not check the quality of the model.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from seft.checkpoint import sparsity
from seft.checkpoint.counts import Sparsity
from seft.checkpoint.facts import MANIFEST, Fingerprint, Record, manifest
from seft.config import Allocation, Compare, Pattern, SparsityOf
from seft.errors import SeftError, SourceError, VerifyError
from seft.models.load import load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.prune.allocation import uniform_zeros
from seft.prune.mask import overfull_groups

PACKAGE_ROOT = Path(__file__).parents[2]
"""Folder that contains the package `seft`, so that the separate process imports the same one."""
FINGERPRINT_TOKENS = 32
FINGERPRINT_TOLERANCE = 3e-4  # nats; another machine differs by less in float32, one wrong weight usually by more


def verify(folder: Path) -> None:
    """Verify an exported folder in a separate process. Raises VerifyError with the message of the first failure."""
    process = subprocess.run(
        [sys.executable, "-P", "-m", "seft.checkpoint.verify", str(folder)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise VerifyError(
            (
                process.stderr.strip().splitlines()
                or [f"the verification process ended with exit code {process.returncode}."]
            )[-1]
        )


def check(folder: Path) -> None:
    """Verify an exported folder in this process. Raises VerifyError with the message of the first failure."""
    _verify_files(folder)
    record = Record.read(folder)
    _verify_counts(record, sparsity.of_folder(folder))
    _verify_model(folder, record)


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of a float32 model: log-probabilities of tokens spread evenly over the vocabulary.

    Raises VerifyError if a logit is not finite.
    """
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    tokens = torch.arange(FINGERPRINT_TOKENS) * vocabulary // FINGERPRINT_TOKENS
    with torch.no_grad():
        logits = model(input_ids=tokens[None].to(model.device), use_cache=False).logits[0]
    scores = logits.float().log_softmax(-1).cpu()[:-1].gather(1, tokens[1:, None]).flatten()
    if not scores.isfinite().all():
        raise VerifyError(
            "the logits must be finite; some are not. The weights are broken. Prune less, or repair again."
        )
    return Fingerprint(tuple(tokens.tolist()), tuple(round(score, 6) for score in scores.tolist()))


def _verify_files(folder: Path) -> None:
    try:
        written = json.loads((folder / MANIFEST).read_bytes())
        expected = {file["name"]: (file["size"], file["sha256"]) for file in written["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerifyError(
            f"{folder} must contain a readable {MANIFEST}: {error}. Create the checkpoint again."
        ) from None
    actual = {file["name"]: (file["size"], file["sha256"]) for file in json.loads(manifest(folder))["files"]}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise VerifyError(
                f"{name} must have the (size, sha256) of {MANIFEST}, {expected.get(name) or 'no entry'};"
                f" it has {actual.get(name) or 'no file'}. Create or download the checkpoint again."
            )


def _verify_counts(record: Record, counted: Sparsity) -> None:
    recorded, actual = (
        {"linears": part.linears, "model": part.model, **part.layers} for part in (record.sparsity, counted)
    )
    for name in recorded | actual:
        if recorded.get(name) != actual.get(name):
            raise VerifyError(
                f"{name} must have the zeros that sparsity.json gives, {recorded.get(name)};"
                f" the safetensors files have {actual.get(name)}. Create the checkpoint again."
            )


def _verify_model(folder: Path, record: Record) -> None:
    try:
        model = load(find(str(folder))).model
    except SourceError as error:
        raise VerifyError(f"the folder must load as a model: {error} Create the checkpoint again.") from None
    _verify_budget(model, record)
    _verify_pattern(model, record.facts.prune.pattern)
    _verify_fingerprint(record.fingerprint, fingerprint(model))


def _verify_budget(model: nn.Module, record: Record) -> None:
    """Raise VerifyError if the zeros are fewer than requested.

    They are counted per linear. If zeros are not distributed evenly, they are counted over all linears or the whole
    model.
    """
    config, layers = record.facts.prune, record.sparsity.layers
    requested = {
        name: uniform_zeros(target.weight.shape, config.sparsity, config)
        for name, target in target_linears(model).items()
    }
    if config.sparsity_of is SparsityOf.MODEL:
        model_count = record.sparsity.model
        required = {"model": (model_count, int(config.sparsity * model_count.weights) - len(layers))}
    elif config.allocation is Allocation.UNIFORM and config.compare is not Compare.MODEL:
        required = {name: (count, requested[name]) for name, count in layers.items()}
    else:
        required = {"linears": (record.sparsity.linears, sum(requested.values()))}
    for name, (count, zeros) in required.items():
        if count.zeros < zeros:
            raise VerifyError(
                f"{name} must have a fraction of zeros of {zeros / count.weights:.6f}; it has {count.share:.6f}. Repair"
                " exceeded its budget of nonzeros. Do not publish this checkpoint."
            )


def _verify_pattern(model: nn.Module, pattern: Pattern) -> None:
    for name, target in target_linears(model).items() if pattern.grouped else ():
        groups = overfull_groups(target.weight, pattern)
        if groups:
            raise VerifyError(
                f"{name} must have at most {pattern.kept} nonzeros in every {pattern.of} inputs; {groups} groups have"
                " more. The weights violate the pattern. Do not publish this checkpoint."
            )


def _verify_fingerprint(expected: Fingerprint, actual: Fingerprint) -> None:
    gap = max(abs(a - b) for a, b in zip(actual.log_probabilities, expected.log_probabilities, strict=True))
    if actual.tokens != expected.tokens or gap > FINGERPRINT_TOLERANCE:
        raise VerifyError(
            f"the model must give the log-probabilities written at export within {FINGERPRINT_TOLERANCE};"
            f" they differ by {gap:.4g}. A weight is wrong. Create the checkpoint again."
        )


def main() -> None:
    """Verify the checkpoint folder given on the command line.

    If a check fails, stop and write that failure as the last line of stderr.
    """
    try:
        check(Path(sys.argv[1]))
    except SeftError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
