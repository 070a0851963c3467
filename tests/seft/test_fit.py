"""Each rule accepts what fits a model and rejects the rest, for dimensions from headers as for a loaded model."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seft.checkpoint.compact.index import FileEntry, Span, TensorEntry, dump
from seft.config import (
    Allocation,
    EvaluateConfig,
    OutputFormat,
    Pattern,
    PruneConfig,
    PruneMethod,
    PruneSchedule,
    RepairConfig,
    RepairMethod,
    SparsityOf,
    Variant,
)
from seft.errors import ConfigError, ContainerError
from seft.fit import MOST_PACKED, require_fit, require_packable, require_teacher_fit
from seft.models.dimensions import Dimensions, Matrix
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.repair import Repair
from tests.seft.prune.test_loop import WINDOWS
from tests.tiny import tiny_config, untrained_tiny

Settings = PruneConfig | RepairConfig | EvaluateConfig


def dimensions() -> Dimensions:
    """Return the dimensions of the tiny model."""
    model, config = untrained_tiny(), tiny_config()
    shapes = [tuple(target.weight.shape) for target in target_linears(model).values()]
    block = tuple(Matrix(rows, cols) for rows, cols in shapes[: len(shapes) // config.num_hidden_layers])
    return Dimensions(
        architecture="llama",
        context=config.max_position_embeddings,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        largest=config.vocab_size * config.hidden_size,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        attention=config.hidden_size,
        keys=config.hidden_size // 2,
        blocks=(block,) * config.num_hidden_layers,
        vectors=9 * config.hidden_size,
    )


TINY = dimensions()
EXPERT = replace(TINY, stacked=True)
PLAIN = replace(TINY, vectors=0)
SHARED = replace(TINY, shares_keys=True)
HUGE = replace(TINY, blocks=((Matrix(1 << 16, 1 << 15),),))
UNKNOWN = replace(TINY, context=None)


def repair(method: RepairMethod = RepairMethod.SEFT, density: float | str = "auto", **more: object) -> RepairConfig:
    return RepairConfig(**{"steps": 1, "method": method, "density": density, **more})  # type: ignore[arg-type]


def read_by(tokens: int) -> RepairConfig:
    return repair(sequence_tokens=tokens, batch_tokens=tokens)


SEFT, LORA = RepairMethod.SEFT, RepairMethod.LORA_REPRUNE
CASES: dict[str, tuple[Dimensions, Settings, str | None]] = {
    "calibration": (TINY, PruneConfig(0.5, tokens=513), "tokens must be at most 512, the context length of the model"),
    "calibration fits": (TINY, PruneConfig(0.5, tokens=512), None),
    "calibration is not read": (TINY, PruneConfig(0.5, PruneMethod.MAGNITUDE, tokens=513), None),
    "calibration of reconstruction": (
        TINY,
        PruneConfig(0.5, PruneMethod.MAGNITUDE, tokens=513, reconstruct_epochs=1),
        "tokens must be at most 512",
    ),
    "gradual reads none": (TINY, PruneConfig(0.5, schedule=PruneSchedule.GRADUAL, tokens=513), None),
    "training": (TINY, read_by(513), "sequence_tokens must be at most 512"),
    "training fits": (TINY, read_by(512), None),
    "evaluation": (TINY, EvaluateConfig(513), "tokens must be at most 512"),
    "evaluation fits": (TINY, EvaluateConfig(512), None),
    "no context": (UNKNOWN, EvaluateConfig(1 << 20), None),
    "shared keys": (SHARED, PruneConfig(0.5, tokens=9), "allocation must be uniform if blocks of the model use keys"),
    "shared keys fit": (SHARED, PruneConfig(0.5, tokens=9, allocation=Allocation.UNIFORM), None),
    "shared keys and a pattern": (SHARED, PruneConfig(0.5, tokens=9, pattern=Pattern(2, 4)), None),
    "pattern": (TINY, PruneConfig(2 / 3, tokens=9, pattern=Pattern(1, 3)), "such as the 64 of block 0"),
    "pattern fits": (TINY, PruneConfig(0.75, tokens=9, pattern=Pattern(4, 16)), None),
    "pattern of the down projections": (
        TINY,
        PruneConfig(1 - 1 / 64, tokens=9, pattern=Pattern(1, 64)),
        "such as the 160 of block 0",
    ),
    "sparsity of the model": (
        TINY,
        PruneConfig(0.9, tokens=9, sparsity_of=SparsityOf.MODEL),
        "sparsity must be at most 0.86",
    ),
    "sparsity of the model fits": (TINY, PruneConfig(0.86, tokens=9, sparsity_of=SparsityOf.MODEL), None),
    **{
        f"{method} {density}": (TINY, repair(method, density), rule)
        for method in (RepairMethod.SPP, RepairMethod.MASKED_LORA, LORA)
        for density, rule in ((1e-6, "must give at least one linear layer rank 1"), (0.9, "one of 32 x 64 may get"))
    },
    **{
        f"{method} fits": (TINY, repair(method, 0.05), None)
        for method in (RepairMethod.SPP, RepairMethod.MASKED_LORA, LORA)
    },
    "other methods have no ranks": (TINY, repair(RepairMethod.FIXED_MASK, 1.0), None),
    "experts": (EXPERT, repair(LORA, 0.05), "method must support stacked experts"),
    "experts of masked LoRA": (EXPERT, repair(RepairMethod.MASKED_LORA, 0.05), None),
    "norms": (PLAIN, repair(norms_and_biases=True), "norms_and_biases must be off for a model without"),
    "norms are there": (TINY, repair(norms_and_biases=True), None),
    "positions": (HUGE, repair(SEFT, 0.1), "model must have at most 2147483647 weights in each linear layer"),
    "positions as published": (HUGE, repair(SEFT, variant=Variant.PUBLISHED), "model must have at most"),
    "positions of a fixed mask": (HUGE, repair(RepairMethod.FIXED_MASK), "model must have at most"),
    "positions of masked_full": (HUGE, repair(RepairMethod.MASKED_FULL), "model must have at most"),
    "positions of swaps": (HUGE, repair(SEFT, swap_tokens=1 << 20), "model must have at most"),
    "no positions": (HUGE, repair(SEFT), None),
}


@pytest.mark.parametrize("name", CASES)
def test_settings_are_rejected_only_if_they_do_not_fit(name: str) -> None:
    model, config, rule = CASES[name]
    if rule is None:
        require_fit(model, config)
    else:
        with pytest.raises(ConfigError, match=rule):
            require_fit(model, config)


@pytest.mark.parametrize("name", ["pattern", "sparsity of the model"])
def test_a_loaded_model_is_rejected_with_the_same_rule_before_it_is_pruned(name: str) -> None:
    model, config, rule = CASES[name]
    assert rule
    assert isinstance(config, PruneConfig)
    loaded = untrained_tiny()
    with pytest.raises(ConfigError, match=rule) as error:
        prune_model(loaded, WINDOWS, config)
    with pytest.raises(ConfigError) as same:
        require_fit(model, config)
    assert (error.value.field, error.value.value, error.value.way_out) == (
        same.value.field,
        same.value.value,
        same.value.way_out,
    )


@pytest.mark.parametrize("method", [RepairMethod.SPP, RepairMethod.MASKED_LORA, LORA])
@settings(deadline=None, max_examples=20)
@given(density=st.one_of(st.floats(1e-6, 1e-3), st.floats(0.2, 1.0)))
def test_headers_and_a_loaded_model_agree_on_every_density(method: RepairMethod, density: float) -> None:
    config = repair(method, density, sequence_tokens=8, batch_tokens=8)

    def rejection(start: object) -> str:
        try:
            start()  # type: ignore[operator]
        except ConfigError as error:
            return str(error)
        return ""

    of_headers = rejection(lambda: require_fit(TINY, config))
    loaded = rejection(
        lambda: Repair(
            untrained_tiny(), WINDOWS.flatten(), config, pruned=PruneConfig(0.5, PruneMethod.MAGNITUDE, tokens=8)
        )
    )
    assert of_headers == loaded


def test_a_compact_file_must_have_an_index_that_a_reader_accepts() -> None:
    def index(matrices: int) -> bytes:
        span, name = Span(10**12, 10**12, "0" * 64), "model.layers.100.mlp.experts.100.down_proj.weight"
        tensor = TensorEntry(name, "BF16", (10_000, 10_000), span)
        return dump([FileEntry("model.safetensors", 10**6, span, (tensor,) * matrices)])

    model = replace(TINY, blocks=((Matrix(8, 8, count=MOST_PACKED),),))
    require_packable(model, [OutputFormat.COMPACT])
    index(MOST_PACKED + 1000)
    larger = replace(TINY, blocks=((Matrix(8, 8, count=MOST_PACKED + 1),),))
    require_packable(larger, [OutputFormat.DENSE])
    with pytest.raises(ConfigError, match="formats must not contain compact if the model has more than 32000 tensors"):
        require_packable(larger, [OutputFormat.DENSE, OutputFormat.COMPACT])
    with pytest.raises(ConfigError, match="formats must not contain compact"):
        require_packable(replace(model, stacked=True), [OutputFormat.COMPACT])
    with pytest.raises(ContainerError):
        index(MOST_PACKED + 2000)


def test_a_teacher_must_have_the_sizes_of_the_model() -> None:
    require_teacher_fit(TINY.sizes, replace(TINY, context=1).sizes)
    with pytest.raises(ConfigError, match="teacher must have the num_hidden_layers of the pruned model, 4; it has '3'"):
        require_teacher_fit(TINY.sizes, replace(TINY, blocks=TINY.blocks[:3]).sizes)
