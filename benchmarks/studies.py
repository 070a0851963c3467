"""The experiments of `benchmarks.quality`, in named studies. A label is unique in its study."""

from collections.abc import Callable
from dataclasses import replace

from benchmarks.cells import Cell, TextName
from benchmarks.changes import ALLOCATED, CHANGES, MOMENTS, OPTIMIZERS
from benchmarks.recipes import ADMM, CURVATURE, GRADUAL, RECIPES, WANDA
from seft.config import (
    Allocation,
    Compare,
    Pattern,
    PruneConfig,
    PruneMethod,
    RateSchedule,
    RepairConfig,
    Retain,
    Variant,
)

Study = dict[str, Cell]
BASES = {"wanda": WANDA, "admm": ADMM, "curvature": CURVATURE}
"""Ways to prune before a repair. `curvature` is ADMM with another distribution of the zeros."""
TEXT = 1 << 14
"""Tokens of retained text. If half of a batch is retained text, a hundred steps read each of these tokens 3.6 times."""


def bases() -> Study:
    """Return the dense model, the models pruned at four sparsities, and the dense model after the same training."""
    pruned = {
        f"{sparsity}, {name}": Cell(prune)
        for name, base in BASES.items()
        for sparsity, prune in _sparsities(base).items()
    }
    return {"dense": Cell(), **pruned, "ceiling": Cell(None, RECIPES["ceiling"].config(1e-3))}


def allocations() -> Study:
    """Return pruned models with other distributions of the zeros over the linears, or with a part of one left out."""
    return {
        **{
            f"{base.method}, {allocation}": Cell(replace(base, allocation=allocation))
            for base in (
                ADMM,
                replace(ADMM, method=PruneMethod.ALPS),
                replace(ADMM, method=PruneMethod.SPARSEGPT),
                WANDA,
            )
            for allocation in (Allocation.UNIFORM, Allocation.CURVATURE)
        },
        **{
            f"admm, {other}": Cell(replace(ADMM, allocation=other))
            for other in (Allocation.OWL, Allocation.ALPHAPRUNING)
        },
        **{f"admm, curvature, {name}": Cell(CURVATURE, change=name) for name in ALLOCATED},
    }


def methods() -> Study:
    """Return every recipe with all its learning rates."""
    return {
        f"{name} {rate:g}": Cell(recipe.prune, recipe.config(rate))
        for name, recipe in RECIPES.items()
        for rate in recipe.rates
    }


def ablations() -> Study:
    """Return SEFT with one part removed or changed, for 40 steps at the default learning rate.

    The density is 0.5 %. The limit for zeros is compared at 5 %, because no event reaches it at 0.5 %.
    """
    base = RECIPES["seft"].config("auto", steps=40)
    dense = replace(base, density=0.05)
    return {
        "as built": Cell(WANDA, base),
        "as published": Cell(WANDA, replace(base, variant=Variant.PUBLISHED)),
        **{name: Cell(WANDA, base, change=name) for name in CHANGES if name not in {MOMENTS, *ALLOCATED, *OPTIMIZERS}},
        **{
            f"an event every {interval} steps": Cell(WANDA, replace(base, update_interval=interval))
            for interval in (5, 20, 40)
        },
        **{
            f"{name}{', ' + change if change else ''}": Cell(prune, config, change=change)
            for name, prune, config, changed in (
                ("2:4", _pairs(WANDA), base, "growth at nonzeros only"),
                ("density 5%", WANDA, dense, "no limit for zeros"),
            )
            for change in ("", changed)
        },
    }


def swaps() -> Study:
    """Return the training of all nonzeros with and without swaps, at three sparsities.

    100 steps on WikiText-2 have ten events, less those in the last quarter. 1,000 steps on GSM8K's text have one event
    every 50 steps, because more gradients have less noise.
    """
    study = {}
    lengths: tuple[tuple[str, int, int, TextName], ...] = (
        ("", 100, 10, "wikitext2"),
        (", 1,000 steps", 1000, 50, "gsm8k"),
    )
    for name, prune in (("60%", ADMM), ("70%", replace(ADMM, sparsity=0.7)), ("2:4", _pairs(ADMM))):
        for suffix, steps, interval, text in lengths:
            label, config = name + suffix, RECIPES["all-admm"].config(1e-3, steps=steps)
            study[label] = Cell(prune, config, text=text)
            swapping = replace(config, swap_tokens=interval * config.batch_tokens)
            study[f"{label} with swaps"] = Cell(prune, swapping, text=text)
        study[f"{name}, wanda on GSM8K"] = Cell(replace(prune, method=PruneMethod.WANDA), text="gsm8k")
    return study


def gradual() -> Study:
    """Return the rising sparsity with other settings of the rise."""
    config = RECIPES["all-gradual"].config(1e-3)
    return {
        "as built": Cell(GRADUAL, config),
        **{f"rise {rise:g}": Cell(replace(GRADUAL, rise=rise), config) for rise in (0.5, 0.9)},
        "an event every 5 steps": Cell(replace(GRADUAL, rise_interval=5), config),
        **{
            f"compared within the model{label}": Cell(replace(GRADUAL, compare=Compare.MODEL), changed)
            for label, changed in (
                ("", config),
                (", seed 1", replace(config, seed=1)),
                (", rate 0.0005", replace(config, learning_rate=5e-4)),
                (", half of each batch written", replace(config, retain=Retain.WRITTEN)),
                (
                    ", half of each batch written, rate 0.0005",
                    replace(config, retain=Retain.WRITTEN, learning_rate=5e-4),
                ),
            )
        },
        "as built, seed 1": Cell(GRADUAL, replace(config, seed=1)),
        "compared within rows": Cell(replace(GRADUAL, compare=Compare.ROW), config),
        "after 40 steps of dense training": Cell(
            GRADUAL, RECIPES["all-gradual"].config(5e-4, steps=60), adapt=RECIPES["ceiling"].config(1e-3, steps=40)
        ),
    }


def retention() -> Study:
    """Return the training of all nonzeros with several kinds and shares of retained text, and with distillation.

    The dataset to retain is from the training questions of ARC-Easy, so its accuracy on ARC-Easy proves nothing.
    """
    study = {}
    for name, prune in (("admm", ADMM), ("gradual", GRADUAL)):
        config = RECIPES["all"].config(1e-3)
        study[name] = Cell(prune, config)
        for weight in (0.5, 0.67, 1.0):
            study[f"{name}, distillation {weight:g}"] = Cell(prune, replace(config, distill_weight=weight))
        for share in (0.25, 0.5):
            for retain in (Retain.WRITTEN, Retain.DATASET):
                kept = replace(config, retain=retain, retain_share=share, retain_tokens=TEXT)
                study[f"{name}, {retain} {share:g}"] = Cell(prune, kept)
        study[f"{name}, written 0.5, each token read once"] = Cell(prune, _default(rate=1e-3))
        for rate in (5e-4, 2e-3):
            kept = replace(config, retain=Retain.WRITTEN, retain_tokens=TEXT, learning_rate=rate)
            study[f"{name}, written 0.5, rate {rate:g}"] = Cell(prune, kept)
    return study


def reads() -> Study:
    """Return 1,000 steps of 2 x 128 tokens of GSM8K's text with more and less text that the dense model wrote.

    Half of each batch is this text, so the same number of its tokens is read in each experiment.
    """
    config = replace(_default(steps=1000, rate=1e-3), sequence_tokens=128, batch_tokens=256)
    windows = {"once": 1144, "8 times": 143, "64 times": 18}
    return {
        "nothing retained": Cell(CURVATURE, replace(config, retain=Retain.NONE), text="gsm8k"),
        **{
            f"each token read {times}": Cell(CURVATURE, replace(config, retain_tokens=128 * count), text="gsm8k")
            for times, count in windows.items()
        },
    }


def batch() -> Study:
    """Return the same number of tokens in steps of other sizes, each with several learning rates."""
    study = {}
    for steps, length, count in ((200, 512, 1), (200, 256, 2), (50, 512, 4)):
        for rate in (5e-4, 1e-3, 2e-3):
            config = replace(_default(steps=steps, rate=rate), sequence_tokens=length, batch_tokens=length * count)
            study[f"{steps} steps of {count} x {length}, rate {rate:g}"] = Cell(ADMM, config)
    return study


def schedules() -> Study:
    """Return the default with other learning rates, other schedules of the rate, and a warm-up."""
    return {
        **{f"rate {rate:g}": Cell(CURVATURE, _default(rate=rate)) for rate in (2.5e-4, 5e-4, 1e-3, 2e-3)},
        **{
            f"{schedule}, rate {rate:g}": Cell(CURVATURE, replace(_default(rate=rate), schedule=schedule))
            for schedule, rate in (
                (RateSchedule.COSINE, 1e-3),
                (RateSchedule.CONSTANT, 5e-4),
                (RateSchedule.CONSTANT, 1e-3),
            )
        },
        **{
            f"warm-up of {steps} steps, rate 0.001": Cell(CURVATURE, replace(_default(rate=1e-3), warmup_steps=steps))
            for steps in (5, 20)
        },
    }


def defaults() -> Study:
    """Return the settings of a job that names only model, dataset and sparsity, with three seeds.

    At twice the rate there are also models with equally sparse linears (`uniform`), which an N:M pattern always has,
    and with nothing retained.
    """
    uniform = {f"{name}, uniform": prune for name, prune in _sparsities(ADMM).items() if not prune.pattern.grouped}
    default = {**_sparsities(CURVATURE), "2:4": _pairs(ADMM)}
    everything, twice = {**default, **uniform}, _default(rate=1e-3)
    runs = (
        ("", default, _default()),
        (", rate 0.001", everything, twice),
        (", nothing retained, rate 0.001", everything, replace(twice, retain=Retain.NONE)),
    )
    return {
        f"{name}{more}, seed {seed}": Cell(prune, replace(config, seed=seed))
        for more, pruned, config in runs
        for name, prune in pruned.items()
        for seed in range(3)
    }


def peers() -> Study:
    """Return all methods at four sparsities, after three ways to prune, with nothing retained.

    `all` trains all nonzeros, `masked_full` too but with AdamW. The others train 0.5 % of the weights. 80 steps of
    `all` and 74 of `masked_full` take about as long as 100 steps of the fastest method without AMX.
    """
    names = ("seft", "masked_lora", "spp", "fixed_mask", "masked_full", "lora_reprune")
    configs = {
        "all": RECIPES["all"].config(1e-3),
        "all, 80 steps": RECIPES["all"].config(1e-3, steps=80),
        **{name: RECIPES[name].config("auto") for name in names},
        "masked_full, 74 steps": RECIPES["masked_full"].config("auto", steps=74),
    }
    return {
        f"{sparsity}, {base}, {name}": Cell(prune, config)
        for base, pruner in BASES.items()
        for sparsity, prune in _sparsities(pruner).items()
        for name, config in configs.items()
    }


def rates() -> Study:
    """Return methods at 60 % zeros by ADMM with several learning rates, and nothing retained.

    The rates are a quarter to four times the rate of `auto`. For `all` they are a quarter to four times 1e-3, which is
    twice the rate of `auto`.
    100 steps of 2 x 512 tokens are trained on WikiText-2, and 1,000 steps of 2 x 64 tokens on GSM8K's text. Events of
    `seft` follow after the same number of tokens.
    """
    study = {}
    lengths: tuple[tuple[str, int, int, int, TextName], ...] = (
        ("", 100, 512, 10, "wikitext2"),
        (", 1,000 steps", 1000, 64, 80, "gsm8k"),
    )
    for suffix, steps, length, interval, text in lengths:
        for name in ("all", "masked_full", "seft", "fixed_mask", "masked_lora", "spp"):
            default = RECIPES[name].config(1e-3 if name == "all" else "auto", steps, length)
            default = replace(default, update_interval=interval)
            for factor in (0.25, 0.5, 1, 2, 4):
                config = default if factor == 1 else replace(default, learning_rate=default.peak_rate() * factor)
                study[f"{name} {config.peak_rate():g}{suffix}"] = Cell(ADMM, config, text=text)
        for rate in (1.25e-4, 2.5e-4, 5e-4, 1e-3):
            study[f"ceiling {rate:g}{suffix}"] = Cell(None, RECIPES["ceiling"].config(rate, steps, length), text=text)
    return study


def moments() -> Study:
    """Return the methods with Adam's moments in bfloat16, as built, and in float32, with three seeds for `seft`."""
    return {
        f"{name}{change and ', ' + change}, seed {seed}": Cell(
            ADMM, replace(RECIPES[name].config("auto"), seed=seed), change=change
        )
        for name, seeds in (("seft", 3), ("masked_full", 1))
        for seed in range(seeds)
        for change in ("", MOMENTS)
    }


def optimizers() -> Study:
    """Return the training of all nonzeros with other optimizers, at 60 % zeros by ADMM, and with trained norms."""
    config = RECIPES["all-admm"].config(1e-3)
    return {
        "as built": Cell(ADMM, config),
        **{name: Cell(ADMM, config, change=name) for name in OPTIMIZERS},
        "norms trained too": Cell(ADMM, replace(config, norms_and_biases=True)),
    }


def thousand() -> Study:
    """Return 1,000 steps on GSM8K's text, because WikiText-2 is too short for so many.

    The experiments are the default, the default with one change (other rates, equally sparse linears, nothing
    retained), the other methods, and the ceiling. The first rate of each other method is the best one of the study
    `rates` in 1,000 steps, or half of `auto` where the study has no such rows. Its other rates are half and twice the
    first one.
    """
    high = _default(steps=1000, rate=1e-3)
    peers = {"seft": 0.015, "fixed_mask": 0.015, "masked_lora": 0.005, "spp": 0.015, "masked_full": 5e-4}
    return {
        "ceiling": Cell(None, RECIPES["ceiling"].config(1e-3, steps=1000), text="gsm8k"),
        "ceiling, rate 0.00025": Cell(None, RECIPES["ceiling"].config(2.5e-4, steps=1000), text="gsm8k"),
        "ceiling, rate 0.000125": Cell(None, RECIPES["ceiling"].config(1.25e-4, steps=1000), text="gsm8k"),
        "default": Cell(CURVATURE, _default(steps=1000, rate=2.5e-4), text="gsm8k"),
        "default, rate 0.0005": Cell(CURVATURE, _default(steps=1000), text="gsm8k"),
        "default, rate 0.000125": Cell(CURVATURE, _default(steps=1000, rate=1.25e-4), text="gsm8k"),
        "default, rate 0.001": Cell(CURVATURE, high, text="gsm8k"),
        "uniform, rate 0.001": Cell(ADMM, high, text="gsm8k"),
        **{
            f"uniform, nothing retained, rate {rate:g}": Cell(
                ADMM, replace(high, learning_rate=rate, retain=Retain.NONE), text="gsm8k"
            )
            for rate in (2.5e-4, 5e-4, 1e-3)
        },
        **{
            f"uniform, nothing retained, {name} {rate * factor:g}": Cell(
                ADMM, replace(RECIPES[name].config(rate * factor, steps=1000), update_interval=60), text="gsm8k"
            )
            for name, rate in peers.items()
            for factor in (1, 0.5, 2)
        },
        "wanda": Cell(WANDA, text="gsm8k"),
    }


def long() -> Study:
    """Return 8,192 steps of 2 x 64 tokens on GSM8K's text. By default, a job takes 8,192 steps of 2 x 512 tokens.

    The experiments are the default with three learning rates, and the ceiling. `auto` is 1.25e-4 for this number of
    steps. `default` has 2.5e-4, the lowest rate of `auto` when the study was made.
    """
    config = replace(RECIPES["all"].config(2.5e-4, 8192, 64), retain_tokens=1 << 18)
    default = replace(config, retain=Retain.WRITTEN)
    return {
        "default": Cell(CURVATURE, default, text="gsm8k"),
        **{
            f"default, rate {rate:g}": Cell(CURVATURE, replace(default, learning_rate=rate), text="gsm8k")
            for rate in (1.25e-4, 5e-4)
        },
        **{
            f"ceiling, rate {rate:g}": Cell(None, replace(config, learning_rate=rate), text="gsm8k")
            for rate in (1.25e-4, 2.5e-4)
        },
    }


def _default(steps: int = 100, rate: float = 5e-4) -> RepairConfig:
    """Return the settings of a job with steps of 2 x 512 tokens, with the rate of `auto` for 100 steps."""
    return replace(RECIPES["all"].config(rate, steps=steps), retain=Retain.WRITTEN)


def _sparsities(prune: PruneConfig) -> dict[str, PruneConfig]:
    """Return a pruner at the sparsities of the tables, and with 2:4 zeros if its allocation is uniform."""
    shares = {f"{share:.0%}": replace(prune, sparsity=share) for share in (0.5, 0.6, 0.7)}
    return shares if prune.allocation is Allocation.CURVATURE else {**shares, "2:4": _pairs(prune)}


def _pairs(prune: PruneConfig) -> PruneConfig:
    return replace(prune, sparsity=0.5, pattern=Pattern(2, 4))


STUDIES: dict[str, Callable[[], Study]] = {
    study.__name__: study
    for study in (
        bases,
        allocations,
        methods,
        ablations,
        swaps,
        gradual,
        retention,
        reads,
        batch,
        schedules,
        defaults,
        peers,
        rates,
        moments,
        optimizers,
        thousand,
        long,
    )
}
