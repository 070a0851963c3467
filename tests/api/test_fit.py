"""What does not fit a model is rejected when the job is sent, by the rules of the library.

The same settings are given to `POST /jobs`, to an estimate, to a clone and to the library.
"""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from seft.config import EvaluateConfig, Pattern, PruneConfig, RepairConfig, RepairMethod, SparsityOf
from seft.errors import ConfigError
from seft.fit import require_fit
from seft.models.dimensions import read_dimensions
from seft.models.shapes import shapes
from seft.models.source import find
from tests.api.conftest import Json, problem
from tests.hollow import CONTEXT, write_hollow

SHORT = 256
"""Context length of the model `short`."""


@pytest.fixture(autouse=True)
def short(root: Path) -> Path:
    """A model with a shorter context than the default lengths of sequences."""
    return write_hollow(root / "short", max_position_embeddings=SHORT)


def nested(path: str, value: Any) -> Json:
    """Return the request that sets the field at a dotted path."""
    for part in reversed(path.split(".")):
        value = {part: value}
    settings: Json = value
    return settings


def repair(method: RepairMethod, density: float) -> tuple[Json, RepairConfig]:
    return {"repair": {"method": method, "density": density}}, RepairConfig(1, method, density)


UNFIT: dict[str, tuple[Json, PruneConfig | RepairConfig | EvaluateConfig, str]] = {
    "calibration": (
        nested("prune.calibration.tokens", CONTEXT + 1),
        PruneConfig(0.6, tokens=CONTEXT + 1),
        "prune.calibration.tokens",
    ),
    "sequence": (
        {"repair": {"sequence_tokens": CONTEXT + 1, "batch_tokens": CONTEXT + 1}},
        RepairConfig(1, sequence_tokens=CONTEXT + 1, batch_tokens=CONTEXT + 1),
        "repair.sequence_tokens",
    ),
    "evaluation": (nested("evaluate.tokens", CONTEXT + 1), EvaluateConfig(CONTEXT + 1), "evaluate.tokens"),
    "pattern": (
        {"pattern": "1:7", "sparsity": 1 - 1 / 7},
        PruneConfig(1 - 1 / 7, pattern=Pattern(1, 7)),
        "pattern",
    ),
    "sparsity": (
        {"sparsity": 0.9, "sparsity_of": "model"},
        PruneConfig(0.9, sparsity_of=SparsityOf.MODEL),
        "sparsity",
    ),
    **{
        f"{method} {density}": (*repair(method, density), "repair.density")
        for method in (RepairMethod.SPP, RepairMethod.MASKED_LORA, RepairMethod.LORA_REPRUNE)
        for density in (1e-6, 1.0)
    },
}


def rule_of_library(model: Path, config: PruneConfig | RepairConfig | EvaluateConfig) -> str:
    source = find(str(model))
    with pytest.raises(ConfigError) as error:
        require_fit(read_dimensions(source, shapes(source)), config)
    return error.value.rule


def test_a_request_that_does_not_fit_the_model_is_rejected_with_the_rule_of_the_library(
    client: TestClient, root: Path, body: Json
) -> None:
    made = client.post("/jobs", json=body).json()["id"]
    without_dataset = {key: value for key, value in body.items() if key != "dataset"}
    for name, (change, config, field) in UNFIT.items():
        rule = rule_of_library(root / "tiny", config)
        for path, request in (
            ("/jobs", body | change),
            ("/jobs/estimate", without_dataset | change),
            (f"/jobs/{made}/clone", change),
        ):
            report = problem(client.post(path, json=request), 422, "invalid_request")
            (flaw,) = report["errors"]
            assert (flaw["param"], flaw["rule"]) == (field, rule), name
            assert flaw["value"] == repr(value_at(change, field))
            assert flaw["way_out"] in report["detail"]
    assert [job["id"] for job in client.get("/jobs").json()["data"]] == [made]


def value_at(change: Json, path: str) -> Any:
    value: Any = change
    for part in path.split("."):
        value = value[part]
    return value


def test_every_length_that_does_not_fit_is_named_at_once(client: TestClient, body: Json) -> None:
    lengths: Json = {
        **nested("prune.calibration.tokens", SHORT + 1),
        **nested("repair.sequence_tokens", 8192),
        **nested("evaluate.tokens", 8192),
    }
    report = problem(client.post("/jobs", json=body | {"model": "short"} | lengths), 422, "invalid_request")
    flaws = {flaw["param"]: (flaw["rule"], flaw["value"]) for flaw in report["errors"]}
    rule = f"must be at most {SHORT}, the context length of the model"
    assert flaws == {
        "prune.calibration.tokens": (rule, str(SHORT + 1)),
        "repair.sequence_tokens": (rule, "8192"),
        "evaluate.tokens": (rule, "8192"),
    }


@pytest.mark.parametrize("path", ["prune.calibration.tokens", "repair.sequence_tokens", "evaluate.tokens"])
def test_a_length_of_exactly_the_context_is_accepted_and_kept(client: TestClient, body: Json, path: str) -> None:
    request = body | {"model": "short"} | nested(path, SHORT)
    assert value_at(client.post("/jobs", json=request).json()["spec"], path) == SHORT


def test_lengths_that_were_left_out_are_lowered_to_the_context_and_sizes_follow(client: TestClient, body: Json) -> None:
    spec = client.post("/jobs", json=body | {"model": "short"}).json()["spec"]
    assert spec["prune"]["calibration"] == {"samples": 128, "tokens": SHORT}
    assert spec["evaluate"]["tokens"] == SHORT
    sizes = {name: spec["repair"][name] for name in ("sequence_tokens", "batch_tokens", "steps")}
    assert sizes == {"sequence_tokens": SHORT, "batch_tokens": 2 * SHORT, "steps": (1 << 23) // (2 * SHORT)}
    given = {"steps": 7, "batch_tokens": 4 * SHORT}
    spec = client.post("/jobs", json=body | {"model": "short", "repair": given}).json()["spec"]
    assert {name: spec["repair"][name] for name in given} == given
    estimate = {key: value for key, value in body.items() if key != "dataset"} | {"model": "short"}
    assert client.post("/jobs/estimate", json=estimate).json()["tokens"]["calibration"] == 128 * SHORT
    original = client.post("/jobs", json=body).json()
    report = problem(client.post(f"/jobs/{original['id']}/clone", json={"model": "short"}), 422, "invalid_request")
    assert len(report["errors"]) == 3, "the lengths of the first job are kept, and are too long"


def test_a_model_that_is_pruned_already_has_no_dense_model_to_learn_from(client: TestClient, body: Json) -> None:
    kept = body | {"sparsity": 0}
    estimate = {key: value for key, value in kept.items() if key != "dataset"}
    assert client.post("/jobs", json=kept).json()["spec"]["repair"]["retain"] == "none"
    assert client.post("/jobs/estimate", json=estimate).json()["tokens"]["calibration"] == 0
    for name, value, off in (("retain", "written", "none"), ("distill_weight", 0.5, "0"), ("hidden_weight", 1.0, "0")):
        (flaw,) = problem(client.post("/jobs", json=kept | {"repair": {name: value}}), 422, "invalid_request")["errors"]
        assert (flaw["param"], flaw["value"]) == (f"repair.{name}", repr(value))
        assert flaw["rule"].startswith(f"must be {off} with the sparsity 0")
        client.post("/jobs", json=kept | {"repair": {name: int(off) if off == "0" else off}}).raise_for_status()


def test_a_batch_that_the_lowered_sequences_do_not_divide_is_rejected(
    client: TestClient, root: Path, body: Json
) -> None:
    write_hollow(root / "odd", max_position_embeddings=300)
    request = body | {"model": "odd", "repair": {"batch_tokens": 1024}}
    (flaw,) = problem(client.post("/jobs", json=request), 422, "invalid_request")["errors"]
    assert (flaw["param"], flaw["rule"]) == ("repair.batch_tokens", "must be a multiple of sequence_tokens (300)")


def test_a_batch_that_the_devices_cannot_share_after_the_sequences_were_lowered_is_rejected(
    client: TestClient, root: Path, body: Json
) -> None:
    write_hollow(root / "odd", max_position_embeddings=384)
    request = body | {"devices": 3, "repair": {"batch_tokens": 3072, "micro_batch": 3}}
    assert client.post("/jobs", json=request).status_code == 202, "six sequences of 512 tokens"
    for path in ("/jobs", "/jobs/estimate"):
        (flaw,) = problem(client.post(path, json=request | {"model": "odd"}), 422, "invalid_request")["errors"]
        assert (flaw["param"], flaw["value"]) == ("repair.batch_tokens", "8")
        assert flaw["rule"] == "must give a number of sequences that is a multiple of the number of devices, 3"


def test_a_text_length_that_no_setting_reads_is_not_checked(client: TestClient, body: Json) -> None:
    prune = {"method": "magnitude", "calibration": {"tokens": 1024}}
    assert client.post("/jobs", json=body | {"model": "short", "prune": prune}).status_code == 202


COMPLETE: Json = {
    "model_type": "llama",
    "max_position_embeddings": CONTEXT,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "hidden_act": "silu",
}
"""The part of a config that decides whether GGUF can express the model."""


INEXPRESSIBLE: list[tuple[Json, str]] = [
    ({"architectures": ["OPTForCausalLM"]}, "only for a model with an architecture of LlamaForCausalLM, Mistral"),
    ({"hidden_act": "gelu"}, "only for a model with the activation silu"),
    ({"attention_bias": True}, "linear layers without biases"),
    ({"sliding_window": 128}, "attention to the whole context"),
    ({"architectures": ["Qwen3ForCausalLM"]}, "heads of 128 values"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "a rope_type of default, linear, llama3"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotary positions in whole heads"),
    ({"hidden_size": None}, "a complete config.json"),
]
"""Changes of such a config by which GGUF cannot express the model, and the rule that then rejects it."""


def test_a_model_that_gguf_cannot_express_is_rejected_at_the_door(client: TestClient, body: Json, root: Path) -> None:
    for number, (config, rule) in enumerate(INEXPRESSIBLE):
        model = write_hollow(root / f"other{number}", **{**COMPLETE, **config}).name
        request = body | {"model": model, "output": {"formats": ["dense", "gguf_q8_0"]}}
        for path in ("/jobs", "/jobs/estimate"):
            report = problem(client.post(path, json=request), 422, "invalid_request")
            (flaw,) = report["errors"]
            assert flaw["param"] == "output.formats", config
            assert rule in flaw["rule"]
            assert flaw["way_out"] == "Use the format dense."
        for formats in (["dense"], ["compact"]):
            accepted = body | {"model": model, "output": {"formats": formats}}
            assert client.post("/jobs", json=accepted).status_code == 202, config


def test_a_llama_is_accepted_in_all_formats_and_the_estimate_counts_them(
    client: TestClient, body: Json, root: Path
) -> None:
    write_hollow(root / "other", **COMPLETE)
    request = body | {"model": "other", "output": {"formats": ["dense", "gguf_bf16", "gguf_q8_0", "gguf_q4_0"]}}
    dense = client.post("/jobs/estimate", json=body | {"model": "other"}).json()
    every = client.post("/jobs/estimate", json=request).json()
    head, other = 64 * 384, dense["parameters"] - 64 * 384
    added = 2 * dense["parameters"] + int(8.5 * dense["parameters"]) // 8 + int(8.5 * head + 4.5 * other) // 8
    assert every["checkpoint_bytes"] - dense["checkpoint_bytes"] == added
    assert every["disk_bytes"] == dense["disk_bytes"], "other formats are stored without a copy on the disk"
    only = client.post("/jobs/estimate", json=request | {"output": {"formats": ["gguf_q4_0"]}}).json()
    assert only["disk_bytes"] == dense["disk_bytes"], "the dense model is on disk too"
    assert only["checkpoint_bytes"] < dense["checkpoint_bytes"]
    alone = client.post("/jobs/estimate", json=request | {"repair": {"retain": "none"}}).json()
    assert dense["disk_bytes"] - alone["disk_bytes"] == 512 * 262_144, "what is retained"
    few = body | {"model": "other", "repair": {"method": "masked_full"}}
    more = client.post("/jobs/estimate", json=few).json()
    nonzeros = round((1 - body["sparsity"]) * dense["target_weights"])
    assert more["disk_bytes"] > 22 * nonzeros, "index, value, base, age and moments of each nonzero in float32"
    job = client.post("/jobs", json=request)
    assert (job.status_code, job.json()["spec"]["output"]["formats"]) == (202, request["output"]["formats"])


def test_the_estimate_of_a_compact_file_follows_the_sparsity(client: TestClient, body: Json, root: Path) -> None:
    write_hollow(root / "other", **COMPLETE)
    request = body | {"model": "other", "output": {"formats": ["compact"]}}
    sizes = []
    for sparsity in (0.9, 0.6, 0.3):
        answer = client.post("/jobs/estimate", json=request | {"sparsity": sparsity}).json()
        sizes.append(answer["checkpoint_bytes"])
    dense = client.post("/jobs/estimate", json=body | {"model": "other"}).json()
    assert sizes == sorted(sizes)
    assert 11 * (dense["parameters"] - 0.9 * dense["target_weights"]) < 8 * sizes[0]
    assert sizes[2] < dense["checkpoint_bytes"]
    assert answer["disk_bytes"] == dense["disk_bytes"], "the dense model is on disk, and the compact file is not"


def test_a_model_whose_blocks_share_keys_gets_a_uniform_allocation(client: TestClient, root: Path, body: Json) -> None:
    write_hollow(root / "shared", num_kv_shared_layers=1)
    job = client.post("/jobs", json={**body, "model": "shared"}).json()
    assert job["spec"]["allocation"] == "uniform"
    report = problem(
        client.post("/jobs", json={**body, "model": "shared", "allocation": "curvature"}), 422, "invalid_request"
    )
    assert report["errors"][0]["param"] == "allocation"
