"""Writes the model card, README.md of a checkpoint: description, scores, sparsity, how to load, and the settings.

All its facts come from `sparsity.json`, except for the formats in which the model is published.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, fields

from seft.checkpoint.counts import Count, Sparsity
from seft.checkpoint.facts import Facts, Machine, Record, Role
from seft.checkpoint.metadata import front_matter
from seft.config import (
    Allocation,
    OutputFormat,
    PruneConfig,
    RepairConfig,
    RepairMethod,
    Retain,
    SparsityOf,
)

MOST_ROWS = 50
"""Largest number of layers that the card lists one by one."""
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_ROLES: dict[Role, str] = {
    "calibration": "calibration",
    "dataset": "training",
    "held_out": "evaluation",
    "retained": "retained text",
}
_LOAD = """`PATH` is this folder, or the id of its repository. Transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH", dtype="bfloat16")
```

vLLM, SGLang, llama.cpp (from a GGUF file; only Llama, Mistral, Qwen2 and Qwen3), and the sparse runtime of seft (from a
folder or a compact file, on a CPU):

```shell
vllm serve PATH --dtype bfloat16
python -m sglang.launch_server --model-path PATH --dtype bfloat16
seft export PATH --format gguf_bf16 model.gguf && llama-server --model model.gguf
seft generate PATH "Once upon a time"
seft serve PATH
```"""

_SPEED = """The zeros are stored as ordinary zeros, so any software that loads the base model loads this one.
Transformers, vLLM, SGLang and llama.cpp compute with every zero: they run it at the speed and in the memory of the
dense model.

Only the runtime of seft skips the zeros. On CUDA it saves memory, and its speed is not known. On a CPU the gain depends
on the model and the processor. For a model with 1.1 billion weights and 60 % zeros, on one thread of a CPU with
AVX-512, one token (bfloat16) took 54 ms with the runtime of seft, 111 ms with a dense kernel, and 79 ms with llama.cpp.
For a model with 135 million weights, llama.cpp was faster. The document `docs/runtime.md` of seft has these
measurements. This model was not measured."""

_GGUF = """`{file}` has the same zeros{values}. llama.cpp runs it, at the speed of a dense
model of this type:

```shell
llama-cli --model {file} --prompt "Once upon a time"
```"""
_COMPACT = """`{file}` has the whole model{values}, in one file in which zeros take little space. The package
`seft` (`pip install '.[torch]'` in a clone of its repository) runs it on a CPU, keeps the weights compressed in memory
and multiplies from there:

```shell
seft generate {file} "Once upon a time"
seft serve {file}          # OpenAI's API
seft expand {file} FOLDER  # a folder for transformers and other tools
```

```python
import seft
model = seft.load("{file}")  # or its address: https://... or s3://...
tokenizer = seft.load_tokenizer("{file}")
```"""
_VALUES = {
    OutputFormat.COMPACT: ", bit for bit",
    OutputFormat.COMPACT_INT8: ", its matrices rounded to 8 bits with a scale per row",
    OutputFormat.COMPACT_NF4: ", its pruned matrices rounded to 4 bits (NF4) with a scale per 64 columns",
    OutputFormat.GGUF_BF16: " and exactly the values of the checkpoint",
    OutputFormat.GGUF_Q8_0: ", and its other weights are rounded to 8 bits with a scale per 32 weights (Q8_0)",
    OutputFormat.GGUF_Q4_0: ", and its other weights are rounded to 4 bits with a scale per 32 weights (Q4_0)",
}
_NOT_SCORED = "The scores were measured with the weights in bfloat16. The model with rounded weights was not measured."

_REPRODUCE = """`sparsity.json` has these settings, and the sha256 of every file that was read. This command checks the
files, makes the model again, and compares the weights bit for bit. `FOLDER` is the downloaded repository:

```shell
seft reproduce FOLDER/sparsity.json --data FILE --out NEW
```"""

_METHODS = {
    RepairMethod.SEFT: (
        "SEFT (arXiv 2505.24037), which trains {fraction} of these weights at a time and may change which are zero"
    ),
    RepairMethod.FIXED_MASK: "training {fraction} of these weights, drawn once from the nonzero ones",
    RepairMethod.MASKED_FULL: "training all nonzero weights among these",
    RepairMethod.MASKED_LORA: "LoRA under the mask, with a number of values equal to {fraction} of these weights",
    RepairMethod.LORA_REPRUNE: (
        "LoRA, with a number of values equal to {fraction} of these weights, and pruning again at the end"
    ),
    RepairMethod.SPP: "SPP (arXiv 2405.16057), with a number of values equal to {fraction} of these weights",
}


def card(record: Record, formats: Sequence[OutputFormat] = (OutputFormat.DENSE,), notices: Sequence[str] = ()) -> str:
    """Return the model card as Markdown with the YAML front matter of the Hugging Face hub.

    The model is published in these `formats`. `notices` are the names of the published files with terms of use, which
    come from the base model.
    """
    facts = record.facts
    parts = [front_matter(record, formats, notices), f"# {_title(record)}", _description(record)]
    if facts.scores:
        parts += ["## Scores", _scores(facts)]
    parts += ["## Sparsity", _sparsity(record), _layers(record.sparsity), "## Loading", *_loading(formats)]
    if facts.texts:
        parts += ["## Data", _data(facts)]
    parts += ["## Licence", _licence(facts, notices), "## Recipe", _recipe(record), _REPRODUCE]
    return "\n\n".join(parts) + "\n"


def _title(record: Record) -> str:
    return f"{record.facts.base.reference}, {record.sparsity.linears.share:.0%} sparse"


def _description(record: Record) -> str:
    facts, sparsity = record.facts, record.sparsity.linears.share
    zeros_set = f"`{facts.base.reference}` with {sparsity:.1%} of the weights in its linear layers set to zero"
    pruned = f"{zeros_set} by {facts.pruned_by}"
    if facts.repair is None:
        once = "" if facts.zeros_found else ", in one shot"
        return f"{pruned}{once}. It was not repaired afterwards."
    keeps_zeros = facts.repair.method.keeps_zeros or (facts.repair.trains_all and not facts.repair.swap_tokens)
    zeros = (
        "Every weight that pruning set to zero is still zero."
        if keeps_zeros
        else f"{facts.grown_zeros:,} weights that pruning set to zero are nonzero now. No layer has more nonzeros."
    )
    steps = f"{facts.repair.steps}" if facts.stopped_at is None else f"{facts.stopped_at} of {facts.repair.steps}"
    method = _method(facts.repair)
    teacher = ""
    if facts.teacher and facts.repair.distills:
        teacher = f", with `{facts.teacher.reference}` as the teacher"
    if facts.repair.retains:
        text = "text that the dense model wrote" if facts.repair.retain is Retain.WRITTEN else "a second dataset"
        teacher += f". {facts.repair.retain_share:.0%} of each batch was {text}, with its predictions as the target"
    kept = (
        ""
        if facts.kept_at is None
        else f" The state after step {facts.kept_at} had the lowest loss on held-out text and was kept."
    )
    if facts.prune.gradual:
        rise = f"step by step in {steps} training steps, while all nonzero weights among these were trained"
        return f"{zeros_set} {rise}{teacher}.{kept} {zeros}"
    return f"{pruned}, then repaired in {steps} steps of {method}{teacher}.{kept} {zeros}"


def _method(repair: RepairConfig) -> str:
    method = _METHODS[repair.method].format(fraction=f"{repair.trained_fraction:.2%}")
    if repair.trains_all:
        method = "training all nonzero weights among these in place"
    return method + (" and of the norms and biases" if repair.norms_and_biases else "")


def _requested(config: PruneConfig) -> str:
    if config.sparsity_of is SparsityOf.MODEL:
        return f"{config.sparsity:.2%} of the whole model"
    if config.compares_model:
        return f"{config.sparsity:.2%} of all linear layers together"
    allocation = config.resolved_allocation
    if allocation is Allocation.UNIFORM:
        return f"{config.sparsity:.2%} of each linear layer"
    return f"{config.sparsity:.2%} of all linear layers together, distributed over the layers by {allocation}"


def _scores(facts: Facts) -> str:
    assert facts.evaluate is not None
    names = [name for name in ("dense", "pruned", "repaired") if name in facts.scores]
    second = any(f"{name}_retained" in facts.scores for name in names)
    shown = {name: [facts.scores[name], *([facts.scores[f"{name}_retained"]] if second else [])] for name in names}
    rows = [f"| {name} | {' | '.join(f'{score:.2f}' for score in scores)} |" for name, scores in shown.items()]
    head = (
        ["| model | perplexity | on retained text |", "|---|---|---|"]
        if second
        else ["| model | perplexity |", "|---|---|"]
    )
    rounded = " and ".join(name for name in names if name != "dense").capitalize()
    note = (
        f"Perplexity is measured on {facts.evaluate.windows} windows of {facts.evaluate.tokens} tokens of held-out text"
        f"{', and on windows of the retained text that the training did not read' if second else ''}. {rounded} weights"
        " were rounded to the stored precision first."
    )
    return "\n".join([*head, *rows, "", note])


def _sparsity(record: Record) -> str:
    def row(name: str, count: Count) -> str:
        return f"| {name} | {count.share:.2%} | {count.zeros:,} | {count.weights:,} |"

    rows = [row("the pruned linear layers", record.sparsity.linears), row("the whole model", record.sparsity.model)]
    facts = record.facts
    wanted = (
        f"The model had {facts.prune.sparsity:.2%}" if facts.zeros_found else f"Requested: {_requested(facts.prune)}"
    )
    note = f"Counted in the written files. {wanted}."
    return "\n".join(["| | fraction of zeros | zeros | weights |", "|---|---|---|---|", *rows, "", note])


def _layers(sparsity: Sparsity) -> str:
    """Return the table of the sparsity of each pruned layer, or of each kind of layer if there are many."""
    if len(sparsity.layers) <= MOST_ROWS:
        rows = [f"| {name} | {count.share:.2%} | {count.weights:,} |" for name, count in sparsity.layers.items()]
        return "\n".join(["| layer | fraction of zeros | weights |", "|---|---|---|", *rows])
    kinds: dict[str, list[Count]] = {}
    for name, count in sparsity.layers.items():
        kinds.setdefault(_NUMBER.sub(".*", name), []).append(count)
    rows = []
    for kind, counts in kinds.items():
        shares = [count.share for count in counts]
        mean = sum(counts, Count(0, 0)).share
        rows.append(f"| {kind} | {len(counts)} | {mean:.2%} | {min(shares):.2%} | {max(shares):.2%} |")
    head = ["| layers | number | fraction of zeros | lowest | highest |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", "`sparsity.json` has the counts of every layer."])


def _data(facts: Facts) -> str:
    """Return the table of the texts that were read."""
    rows = []
    for role, text in facts.texts.items():
        written = role == "retained" and facts.repair and facts.repair.retain is Retain.WRITTEN
        name = "written by the dense model" if written else _plain_cell(text.name or "unnamed")
        in_dataset = role == "held_out" and facts.held_out_share is not None
        sha256 = "a part of the dataset" if in_dataset else facts.text_hashes[role] or ""
        rows.append(f"| {_ROLES[role]} | {name} | {text.records:,} | {text.tokens:,} | {sha256} |")
    return "\n".join(["| use | name | records | tokens | sha256 of the file |", "|---|---|---|---|---|", *rows])


def _licence(facts: Facts, notices: Sequence[str]) -> str:
    """Return which licence holds, and which terms came with the base model."""
    base = facts.base
    named = " ".join(name for name in (base.licence, base.licence_name and f"({base.licence_name})") if name)
    if not named and not notices:
        return f"The licence of `{base.reference}` is not known here. Its terms also hold for this model."
    states = f"`{base.reference}` has the licence {named}. " if named else ""
    files = ", ".join(f"[{name}]({name})" for name in notices)
    copied = f" Its files with terms are copied unchanged: {files}." if files else ""
    return f"{states}This model is derived from it, so the same terms and obligations hold.{copied}"


def _plain_cell(text: str) -> str:
    """Return a text that is safe in a table: characters with a meaning in Markdown or HTML are replaced."""
    return re.sub(r"[^\w. +-]", "_", text)


def _loading(formats: Sequence[OutputFormat]) -> list[str]:
    """Return how to load each format."""
    parts = [_LOAD, _SPEED] if OutputFormat.DENSE in formats else []
    parts += [_COMPACT.format(file=each.file, values=_VALUES[each]) for each in formats if each.is_compact]
    parts += [_GGUF.format(file=each.file, values=_VALUES[each]) for each in formats if each.is_gguf]
    return [*parts, *([_NOT_SCORED] if any(each.rounds for each in formats) else [])]


def _recipe(record: Record) -> str:
    facts = record.facts
    base = {"base model": facts.base.reference, "revision": facts.base.revision, "licence": facts.base.licence}
    hashes = {
        "calibration sha256": facts.calibration_sha256,
        "dataset sha256": facts.dataset_sha256,
        "retained dataset sha256": facts.retained_sha256,
        "held-out dataset sha256": facts.held_out_sha256,
    }
    known = ("sparsity", "pattern") if facts.zeros_found else tuple(field.name for field in fields(facts.prune))
    settings = {f"prune {name}": getattr(facts.prune, name) for name in known}
    if facts.repair:
        settings |= {f"repair {key}": value for key, value in asdict(facts.repair).items()}
        if facts.repair.learning_rate == "auto" and facts.peak_rate:
            settings["repair learning_rate"] = f"auto, which was {facts.peak_rate:g}"
    machines = {"pruned on": _machine(facts.pruned_on), "repaired on": _machine(facts.repaired_on)}
    rows = {**base, **settings, **hashes, **machines, **record.versions}
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items() if value is not None)]
    )


def _machine(machine: Machine | None) -> str | None:
    if machine is None:
        return None
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    processes = f" in each of {machine.processes} processes" if machine.processes > 1 else ""
    return f"{machine.device} ({machine.hardware}), {machine.dtype}, {threads}{processes}"
