"""The model card: the hub's package writes its front matter, and its sections say what is known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from huggingface_hub import ModelCard

from seft.checkpoint.card import MOST_ROWS, card
from seft.checkpoint.counts import Count, Sparsity
from seft.checkpoint.export import export
from seft.checkpoint.facts import Base, Facts, Fingerprint, Machine, Record, TextInfo
from seft.config import EvaluateConfig, OutputFormat, PruneConfig, RepairConfig, Retain, format_of
from seft.models.source import Kind
from seft.models.terms import read_terms, terms_files
from tests.seft.checkpoint.test_export import FACTS as EXPORTED
from tests.seft.checkpoint.test_export import half_sparse

ROOT = Path(__file__).parents[3]
BASE = Base(
    "owner/Big-Model-7B",
    Kind.HUB,
    "abc123",
    "other",
    "big-licence",
    "LICENSE",
    ("en", "no"),
    {"model.safetensors": "e" * 64},
)
FACTS = Facts(
    base=BASE,
    prune=PruneConfig(0.6),
    repair=RepairConfig(9, retain=Retain.WRITTEN),
    scores={"dense": 10.0, "repaired": 15.5, "dense_retained": 2.0, "repaired_retained": 2.5},
    evaluate=EvaluateConfig(),
    grown_zeros=0,
    calibration_sha256="c" * 64,
    dataset_sha256="c" * 64,
    texts={
        "dataset": TextInfo("a<b>|*.jsonl", 90, 12345),
        "held_out": TextInfo("a.jsonl", 10, 999),
        "retained": TextInfo(None, 4, 8192),
    },
    held_out_share=0.1,
    pruned_on=Machine("cpu", "AVX512", "float32", 1, deterministic=True),
)


def record(facts: Facts = FACTS, blocks: int = 2) -> Record:
    layers = {
        f"model.layers.{block}.{kind}": Count(60 + block % 2, 100)
        for block in range(blocks)
        for kind in ("self_attn.q_proj", "mlp.experts.3.down_proj")
    }
    total = sum(layers.values(), Count(0, 0))
    return Record(facts, Sparsity(layers, total, total), Fingerprint((1, 2), (-0.5,)), {"seft": "1"})


def parsed(text: str) -> Any:
    """Return the front matter of a card as the hub's package reads it. A wrong `model-index` is an error."""
    return ModelCard(text, ignore_metadata_errors=False).data


def test_the_front_matter_is_read_back_by_the_package_of_the_hub() -> None:
    text = card(record(), [OutputFormat.DENSE, OutputFormat.GGUF_Q8_0], ["LICENSE"])
    data = parsed(text)
    assert data.to_yaml() in text, "the package writes what it read"
    assert (data.base_model, data.base_model_relation, data.library_name) == (
        "owner/Big-Model-7B",
        "finetune",
        "transformers",
    )
    assert (data.license, data.license_name, data.license_link) == ("other", "big-licence", "LICENSE")
    assert (data.language, data.pipeline_tag) == (["en", "no"], "text-generation")
    assert data.tags == ["sparse", "pruned", "seft", "gguf"]
    scores = {(each.dataset_name, each.metric_name): each.metric_value for each in data.eval_results}
    assert scores[("held-out text", "perplexity of the repaired model")] == 15.5
    assert scores[("retained text", "perplexity of the dense model")] == 2.0
    assert len(scores) == 4


def test_a_local_model_that_was_only_pruned_has_no_base_on_the_hub_and_no_results() -> None:
    facts = replace(FACTS, base=Base("tiny.gguf", Kind.GGUF, None, None), repair=None, scores={}, texts={})
    data = parsed(card(record(facts)))
    assert not {"base_model", "base_model_relation", "license", "model-index", "language"} & data.to_dict().keys()


def test_a_link_to_a_licence_that_is_not_copied_points_to_the_base_model() -> None:
    link = "https://huggingface.co/owner/Big-Model-7B/blob/abc123/LICENSE"
    assert parsed(card(record())).license_link == link


@pytest.mark.parametrize(
    ("licence", "name", "expected"),
    [
        ("My-Licence", None, ("other", "my-licence")),
        ("my-licence", "my-name", ("other", "my-name")),
        ("Apache-2.0", None, ("apache-2.0", None)),
        ("llama3.1", None, ("llama3.1", None)),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_another_one_with_a_name(
    licence: str, name: str | None, expected: tuple[str, str | None]
) -> None:
    base = replace(BASE, licence=licence, licence_name=name)
    data = parsed(card(record(replace(FACTS, base=base))))
    assert (data.license, data.license_name) == expected


def test_layers_are_listed_one_by_one_or_by_their_kinds_if_there_are_many() -> None:
    assert "| model.layers.1.self_attn.q_proj | 61.00% | 100 |" in card(record())
    many = card(record(blocks=MOST_ROWS))
    assert "| model.layers.*.mlp.experts.*.down_proj | 50 | 60.50% | 60.00% | 61.00% |" in many
    assert "model.layers.1." not in many


def test_the_data_are_named_without_markup() -> None:
    text = card(record())
    assert f"| training | a_b___.jsonl | 90 | 12,345 | {'c' * 64} |" in text
    assert "| evaluation | a.jsonl | 10 | 999 | a part of the dataset |" in text
    assert "| retained text | written by the dense model | 4 | 8,192 |  |" in text


def test_terms_of_the_base_are_copied_and_stay_if_the_dense_files_are_removed(tmp_path: Path) -> None:
    (base := tmp_path / "base").mkdir()
    terms = {"LICENSE": b"terms\n", "NOTICE.txt": b"made by\n", "USE_POLICY.md": b"be kind\n"}
    for name, content in {**terms, "licensed.py": b"", "README.md": b"card"}.items():
        (base / name).write_bytes(content)
    loaded = half_sparse()
    export(replace(loaded, source=replace(loaded.source, path=base)), tmp_path / "out", EXPORTED)
    listed = [file["name"] for file in json.loads((tmp_path / "out" / "manifest.json").read_bytes())["files"]]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in terms} == terms
    assert {*terms} <= {*listed}
    assert "licensed.py" not in listed
    assert "[USE_POLICY.md](USE_POLICY.md)" in (tmp_path / "out" / "README.md").read_text()
    assert [format_of(name) for name in terms] == [None] * 3


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: other\nlicense_name: llama3\nlicense_link: LICENSE", ("llama3", "LICENSE", ())),
        ('language:\n- en\n- "no"\nlicense: mit', (None, None, ("en", "no"))),
        ("language: [de, fr]\nlicense_link: https://a.b/c", (None, "https://a.b/c", ("de", "fr"))),
        ("language: en\ntags:\n- x", (None, None, ("en",))),
        ("license_name: a<script>\nlicense_link: '](x)'", (None, None, ())),
        ("", (None, None, ())),
        ("language: English", (None, None, ())),
        ("language:\n- zh-CN\n- code\n- DE\n- multilingual\n- nob", (None, None, ("code", "multilingual", "nob"))),
    ],
)
def test_terms_are_read_from_the_front_matter(front: str, expected: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nlanguage: xx\n")
    assert read_terms(tmp_path) == expected


def test_only_small_files_count_as_terms() -> None:
    sizes = {"LICENSE": 10, "NOTICE": 1 << 30, "COPYING": 0, "README.md": 5, "model.safetensors": 9}
    assert terms_files(sizes) == ["LICENSE", "README.md"]


@pytest.mark.parametrize(("rate", "shown"), [("auto", "auto, which was 0.001"), (0.002, "0.002")])
def test_the_learning_rate_is_shown_as_a_number(rate: float | Literal["auto"], shown: str) -> None:
    facts = replace(FACTS, repair=RepairConfig(9, learning_rate=rate), peak_rate=0.001)
    assert f"| repair learning_rate | {shown} |" in card(record(facts))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("sparse, bfloat16", "the runtime of seft"),
        ("our dense kernel, bfloat16", "a dense kernel"),
        ("llama.cpp, BF16", "llama.cpp"),
    ],
)
def test_the_time_of_a_token_is_the_first_one_of_the_page_that_is_named(row: str, name: str) -> None:
    page, text = (ROOT / "docs/runtime.md").read_text(), " ".join(card(record()).split())
    milliseconds, _, _ = page.partition(f"| {row} | ")[2].partition(" ")
    assert f"{float(milliseconds):.0f} ms with {name}" in text
