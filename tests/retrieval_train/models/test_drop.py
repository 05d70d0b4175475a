"""Dropout that follows the sample: against a slow twin, against chance, and in real models cut up over ranks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from timm import create_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retrieval_train.models import lora
from retrieval_train.models.backbones import timm
from retrieval_train.models.drop import RowDropout, RowDropPath, Rows, follow_rows, row_seeds
from retrieval_train.models.embedder import Embedder, build_embedder
from retrieval_train.models.necks import linear

WORD = 2**64
VIT = timm.Config(model="eva02_tiny_patch14_224", image_px=28, weights="none", blocks=4, drop_path=0.3)


def layers(*, p: float = 0.1, num: int = 1) -> tuple[Rows, nn.Sequential]:
    rows, model = Rows(), nn.Sequential(*(nn.Dropout(p) for _ in range(num)))
    follow_rows(model, rows)
    return rows, model


def dropped(p: float, seed_N: Tensor, num: int, *, layer: int = 0) -> Tensor:
    """bool (N, num)"""
    rows, model = layers(p=p, num=layer + 1)
    rows.draw(seed_N)
    out: Tensor = model[layer](torch.ones(len(seed_N), num)) == 0
    return out


def seeds(rows: int = 8, *, seed: int = 0, step: int = 0) -> Tensor:
    return row_seeds(seed, step, torch.arange(rows))


def trained_embedder() -> Embedder:
    """In training, with adapters that do something."""
    embedder = build_embedder(VIT, linear.Config(out=8), seed=0)
    lora.Config(rank=2, dropout=0.1).apply(embedder, seed=0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=drawn)
    return embedder.train()


def images(rows: int) -> Tensor:
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(0, 255, (rows, 3, 28, 28), dtype=torch.uint8, generator=drawn)


def windowed() -> tuple[nn.Module, Rows]:
    """A small Swin: its attention has the windows of all images as its rows."""
    small = {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2), "num_classes": 0}
    swin, rows = create_model("swin_tiny_patch4_window7_224", drop_path_rate=0.3, proj_drop_rate=0.1, **small), Rows()
    follow_rows(swin, rows)
    return swin, rows


def adapted() -> tuple[nn.Module, Rows]:
    embedder = trained_embedder()
    return embedder, embedder.rows


def gradients(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


# slow twin


def mixed(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def mixed_32(word: int) -> int:
    signed = (word + 2**31) % 2**32 - 2**31
    signed = (signed ^ signed >> 16) * 0x7FEB352D
    signed = (signed + 2**31) % 2**32 - 2**31
    return (signed ^ signed >> 15) * 0x846CA68B % 2**32


def test_what_is_dropped_is_the_hash_written_out_in_whole_numbers() -> None:
    golden = 0x9E3779B97F4A7C15
    for seed, step, row, layer in [(0, 0, 0, 0), (7, 123_456, 4095, 3), (2**40, 2**31, 2**20, 1)]:
        word = mixed((row * golden + mixed((mixed(seed) + step) % WORD)) % WORD)
        seed_1 = row_seeds(seed, step, torch.tensor([row]))
        assert seed_1.item() % WORD == word
        key = mixed((word + (layer + 1) * golden) % WORD)
        hashes = [mixed_32(key + at * (key >> 32 | 1)) for at in range(500)]
        expected = [(one + 2**31) % 2**32 < 0.3 * 2**32 for one in hashes]
        assert dropped(0.3, seed_1, 500, layer=layer)[0].tolist() == expected


# against chance


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_rows_and_places_are_dropped_as_often_as_chance_would(p: float) -> None:
    dropped_NE = dropped(p, seeds(256), 2048).double()
    rows, places = dropped_NE.shape
    for counts, of in ((dropped_NE.sum(1), places), (dropped_NE.sum(0), rows), (dropped_NE.sum()[None], rows * places)):
        chi_square = ((counts - of * p) ** 2 / (of * p * (1 - p))).sum()
        assert abs(chi_square - len(counts)) < 5 * (2 * len(counts)) ** 0.5  # also where it is too even


def test_rows_layers_steps_and_places_have_nothing_to_do_with_each_other() -> None:
    p = 0.2
    masks = [
        dropped(p, seeds(8, seed=seed, step=step), 4096, layer=layer)
        for seed, step, layer in itertools.product((0, 1), (0, 1, 2), (0, 1, 2))
    ]
    normal_VE = (torch.cat(masks).double() - p) / (p * (1 - p)) ** 0.5
    vectors, places = normal_VE.shape
    score_VV = (normal_VE @ normal_VE.T / places**0.5)[*torch.triu_indices(vectors, vectors, 1)]
    lags = [normal_VE[:, :-lag] * normal_VE[:, lag:] for lag in (*range(1, 33), 64, 100, 192, 768, 1024)]
    score_LV = torch.stack([of_lag.sum(1) / of_lag.shape[1] ** 0.5 for of_lag in lags])
    for score in (score_VV, score_LV):  # each is nearly normal
        assert score.abs().max() < 5.5
        assert abs((score**2).mean() - 1) < 6 * (2 / score.numel()) ** 0.5


def test_stochastic_depth_drops_whole_rows_as_often_as_asked() -> None:
    rows, path = Rows(), RowDropPath
    rows.num_layers = 1
    rows.draw(seeds(20_000))
    out = path(rows, 0, 0.3)(torch.ones(20_000, 2, 3))
    assert ((out == 0).all(dim=(1, 2)) | torch.isclose(out, torch.tensor(1 / 0.7)).all(dim=(1, 2))).all()
    assert abs((out[:, 0, 0] == 0).double().mean() - 0.3) < 5 * (0.21 / 20_000) ** 0.5
    assert path(rows, 0, 0.3, scale_by_keep=False)(torch.ones(20_000, 2)).unique().tolist() == [0, 1]


# one layer


def test_the_mean_stays_and_the_gradient_is_dropped_alike() -> None:
    rows, model = layers(p=0.25)
    rows.draw(seeds(16))
    x = torch.ones(16, 50, 40, requires_grad=True)
    out = model(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3]) and out.mean().item() == pytest.approx(1, abs=0.02)
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out)


def test_bf16_stays_bf16_and_drops_the_same() -> None:
    rows, model = layers(p=0.5)
    rows.draw(seeds())
    out = model(torch.ones(8, 100, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and torch.equal(out.float(), model(torch.ones(8, 100)))


def test_windows_of_an_image_follow_the_image() -> None:
    rows, model = layers(p=0.5)
    rows.draw(seeds(6))
    whole = model(torch.ones(6 * 4, 5, 7))
    rows.draw(seeds(6)[2:5])
    assert torch.equal(model(torch.ones(3 * 4, 5, 7)), whole[8:20])
    assert not torch.equal(whole[0], whole[1])


def test_nothing_is_dropped_in_evaluation_and_no_seeds_are_needed() -> None:
    _, model = layers()
    x = torch.randn(3, 4)
    assert model.eval()(x) is x
    embedder = trained_embedder().eval()
    assert torch.equal(embedder(images(2)), embedder(images(2)))


def test_only_what_drops_is_replaced_and_a_layer_with_two_names_stays_one() -> None:
    twice = nn.Dropout(0.5)
    model = nn.ModuleDict({"a": twice, "b": nn.Sequential(twice, nn.Dropout(0.0), nn.Dropout(0.2).eval())})
    rows = Rows()
    follow_rows(model, rows)
    follow_rows(model, rows)
    first, none, last = model["b"].children()
    assert rows.num_layers == 2 and model["a"] is first and isinstance(first, RowDropout)
    assert type(none) is nn.Dropout and isinstance(last, RowDropout) and (last.layer, last.training) == (1, False)


def test_a_forward_without_the_seeds_of_its_rows_is_told() -> None:
    rows, model = layers()
    with pytest.raises(AssertionError, match="no seeds of rows: draw"):
        model(torch.ones(3, 4))
    rows.draw(seeds(3))
    with pytest.raises(AssertionError, match="got 7 rows for 3 images"):
        model(torch.ones(7, 4))
    embedder = trained_embedder()
    with pytest.raises(AssertionError, match="seeds for 0 rows and got 2"):
        embedder(images(2))
    embedder.draw(seeds(1))
    with pytest.raises(AssertionError, match="seeds for 1 rows and got 2"):
        embedder(images(2))


# whole models


@pytest.mark.parametrize("build", [adapted, windowed])
def test_ranks_drop_of_their_rows_what_one_process_drops(build: Callable[[], tuple[nn.Module, Rows]]) -> None:
    (model, rows), seed_B = build(), seeds(7, seed=3, step=11)
    image = images(7) if build is adapted else torch.randn(7, 3, 56, 56)
    assert {RowDropout, RowDropPath} <= {type(module) for module in model.modules()}
    given = {}
    for ranks in (1, 2, 3):
        parts = []
        for rank in range(ranks):
            mine = slice(rank * 7 // ranks, (rank + 1) * 7 // ranks)
            rows.draw(seed_B[mine])
            parts.append(model(image[mine]))
            parts[-1].square().sum().backward()
        given[ranks] = torch.cat(parts).detach(), gradients(model)
    for ranks in (2, 3):
        torch.testing.assert_close(given[ranks][0], given[1][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(given[ranks][1], given[1][1], rtol=1e-4, atol=1e-5 * given[1][1].abs().max().item())
    rows.draw(seeds(7, seed=3, step=12))
    assert (model(image) - given[1][0]).abs().amax(1).min() > 1e-3, "another step drops something else of every row"


def test_a_forward_that_is_done_again_for_the_backward_drops_the_same() -> None:
    embedder, image = trained_embedder(), images(4)
    embedder.draw(seeds(4))
    embedder(image).square().sum().backward()
    expected = gradients(embedder)
    again = checkpoint(embedder, image, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(again, Tensor)
    torch.manual_seed(99)
    again.square().sum().backward()
    torch.testing.assert_close(gradients(embedder), expected, rtol=0, atol=0)


def test_a_copy_has_seeds_of_its_own_and_adapters_merge() -> None:
    embedder, image = trained_embedder(), images(2)
    embedder.draw(seeds(2))
    expected = embedder(image)
    twin = copy.deepcopy(embedder)
    twin.draw(seeds(2, step=5))
    assert torch.equal(embedder(image), expected) and not torch.equal(twin(image), expected)
    before = embedder.eval()(image)
    lora.merge(embedder)
    torch.testing.assert_close(embedder(image), before, rtol=1e-4, atol=1e-5)
    plain = build_embedder(VIT.model_copy(update={"drop_path": 0.0}), linear.Config(out=8), seed=0)
    assert embedder.state_dict().keys() == plain.state_dict().keys()


def test_the_look_for_dead_adapters_needs_no_seeds_and_leaves_none() -> None:
    embedder = trained_embedder()
    lora.check_alive(embedder, image_px=28)
    with pytest.raises(AssertionError, match="seeds for 0 rows"):
        embedder(images(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_drops_what_a_cpu_drops() -> None:
    on_cpu = dropped(0.1, seeds(16), 50_000)
    rows, model = layers(p=0.1)
    rows.draw(row_seeds(0, 0, torch.arange(16, device="cuda")))
    assert torch.equal((model(torch.ones(16, 50_000, device="cuda")) == 0).cpu(), on_cpu)
