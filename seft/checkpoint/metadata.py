"""Writes the front matter of a model card: the YAML that the model hub reads, with licence, base model and scores.

The package `huggingface_hub` defines the keys and writes the YAML, so the hub accepts it.
"""

from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from seft.checkpoint.facts import Facts, Record
from seft.config import OutputFormat
from seft.models.source import Kind
from seft.models.terms import KNOWN_LICENCES

_LINKED = ("LICENSE", "LICENSE.md")
"""Names of files to which `license_link` may point. Anything else must be an address."""
_SUFFIXES = {"": "held-out text", "_retained": "retained text"}


def front_matter(record: Record, formats: Sequence[OutputFormat], notices: Sequence[str]) -> str:
    """Return the front matter with its two lines of dashes. `notices` are the names of the published files of terms.

    A model that was repaired is a fine-tuned one for the hub. The hub has no name for a model that was only pruned.
    """
    facts = record.facts
    hub = facts.base.kind is Kind.HUB
    results = _results(facts)
    licence, licence_name = _licence(facts)
    data = ModelCardData(
        base_model=facts.base.reference if hub else None,
        language=list(facts.base.languages) or None,
        library_name="transformers" if OutputFormat.DENSE in formats else None,
        pipeline_tag="text-generation",
        license=licence,
        license_name=licence_name,
        license_link=_link(facts, notices),
        model_name=model_name(record) if results else None,
        eval_results=results or None,
        tags=["sparse", "pruned", "seft", *(["gguf"] if any(each.is_gguf for each in formats) else [])],
    )
    if hub and facts.repair:
        data["base_model_relation"] = "finetune"
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---"


def model_name(record: Record) -> str:
    """Return a name for the model, such as `SmolLM2-135M-60-percent-sparse`."""
    return f"{record.facts.base.reference.split('/')[-1]}-{record.sparsity.linears.share * 100:.0f}-percent-sparse"


def _licence(facts: Facts) -> tuple[str | None, str | None]:
    """Return the licence and its name. The hub refuses a card with a licence that it does not know, except `other`."""
    licence, name = facts.base.licence, facts.base.licence_name
    if licence is None or licence in KNOWN_LICENCES:
        return licence, name
    if licence.lower() in KNOWN_LICENCES:
        return licence.lower(), name
    return "other", name or licence.lower()


def _link(facts: Facts, notices: Sequence[str]) -> str | None:
    """Return the link to the licence, or None if there is none.

    A link to a file stays as it is if the file is published here and the hub accepts its name. Otherwise the link
    points to the file of the base model, if that is on the hub.
    """
    link = facts.base.licence_link
    if not link or "://" in link or (link in notices and link in _LINKED):
        return link
    if facts.base.kind is Kind.HUB:
        return f"https://huggingface.co/{facts.base.reference}/blob/{facts.base.revision or 'main'}/{link}"
    return None


def _results(facts: Facts) -> list[EvalResult]:
    """Return the perplexities of the result, and of the dense and the pruned model before it, on each text."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=text.replace(" ", "-"),
            dataset_name=text,
            metric_type="perplexity",
            metric_name=f"perplexity of the {name} model",
            metric_value=round(facts.scores[f"{name}{suffix}"], 4),
        )
        for suffix, text in _SUFFIXES.items()
        for name in ("repaired", "pruned", "dense")
        if f"{name}{suffix}" in facts.scores
    ]
