"""Dimensions read from file headers equal what the library counts in the loaded model."""

import json
from pathlib import Path

import pytest

from core.estimate.dimensions import read_dimensions
from seft.errors import SourceError
from seft.models.shapes import shapes
from seft.models.source import Kind, ModelSource, find
from tests.hollow import SHAPES, write_hollow
from tests.seft.architectures import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_and_target_linears_equal_those_of_the_library_for_every_architecture(
    name: str, tmp_path: Path
) -> None:
    from seft.models.targets import target_linears

    model = ARCHITECTURES[name].model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    source = ModelSource(name, Kind.FOLDER, tmp_path, None, config, None)
    dimensions, targets = read_dimensions(source, shapes(source)), target_linears(model)
    sizes = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    assert dimensions.parameters == sum(sizes.values())
    assert dimensions.targets == sum(target.weight.numel() for target in targets.values())
    assert (dimensions.vocabulary, dimensions.hidden) == model.get_input_embeddings().weight.shape
    assert 0 < dimensions.active_targets <= dimensions.targets


def test_all_shards_of_a_folder_are_read(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"].model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    for folder in ("one", "many"):
        (tmp_path / folder / "tokenizer.json").write_text("{}")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (shapes(find(folder, roots=[tmp_path])) for folder in ("one", "many"))
    assert one == many


@pytest.mark.parametrize("header", [b"", b"\xff" * 9, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b'{"'])
def test_weights_without_a_header_are_rejected(header: bytes, tmp_path: Path) -> None:
    (write_hollow(tmp_path / "model") / "model.safetensors").write_bytes(header)
    with pytest.raises(SourceError, match="no readable header"):
        shapes(find("model", roots=[tmp_path]))


def test_a_model_without_blocks_is_rejected(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model")
    source = find("model", roots=[tmp_path])
    assert shapes(source) == SHAPES
    with pytest.raises(SourceError, match="must have an embedding and blocks with linear layers"):
        read_dimensions(source, {"model.embed_tokens.weight": (8, 4)})
