"""What the focus does: figures against cases worked out by hand, weights against the modules, knobs, picture, CLI."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from matplotlib.image import imread
from torch import Tensor

from focusasr.cli.attention_plot import DOTS_PER_INCH, by_offset, draw, picture_inches
from focusasr.config import SAMPLE_RATE_HZ, AttentionScaling, InspectionConfig, ModelConfig
from focusasr.evaluation import attention_stats as room
from focusasr.model.attention import HybridAttention, rotary, with_attention_scaling
from focusasr.model.checkpoint import Checkpoint, save_checkpoint
from focusasr.model.transformer import Model
from focusasr.runtime.errors import InputError
from tests.helpers.toy_speech import TINY, letters_tokenizer, mels, sung, tiny_model

TOKENIZER = letters_tokenizer()
HEAD_KEYS = (
    "span_scale span_ms temperature local_entropy_bits local_entropy local_share_above_1_percent global_entropy_bits "
    "global_entropy global_share_above_1_percent local_norm global_norm local_over_global"
).split()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def hybrid_model(**settings: object) -> Model:
    return tiny_model(TOKENIZER, **{"encoder_layers": 3, "strides": (1, 2), **settings})  # type: ignore[arg-type]


def hybrid_layer(**settings: object) -> HybridAttention:
    torch.manual_seed(1)
    return HybridAttention(ModelConfig(**{**TINY, **settings})).double().eval()  # type: ignore[arg-type]


def set_span(layer: HybridAttention, span_scale: float) -> None:
    layer.span_pred.linear.weight.zero_()
    layer.span_pred.linear.bias.fill_(math.log(span_scale / (1 - span_scale)))


def view_of(layer: HybridAttention, x: Tensor) -> tuple[room.LayerView, Tensor]:
    """Return the view of a layer that reads x (1, T, D), and what the layer itself returns, (T, D)."""
    rotation = rotary(torch.arange(x.shape[1]), layer.attn_local.query.out_features // layer.attn_local.heads, 1e4)
    attended = layer(x, rotation=rotation)
    return room.layer_view(layer, x, attended.span_scale, rotation), attended.out[0]


def save(model: Model, folder: str = "model") -> str:
    save_checkpoint(Path(folder), Checkpoint(model, TOKENIZER, {}, ""))
    return folder


@pytest.fixture
def song() -> str:
    soundfile.write("song.wav", sung("bad cafe"), SAMPLE_RATE_HZ)
    return "song.wav"


@pytest.mark.parametrize("keys", [2, 3, 8])
def test_entropy_of_uniform_and_of_single_weights(keys: int) -> None:
    visible = torch.ones(1, 5, keys, dtype=torch.bool)
    bits, relative = room.entropy(torch.full((1, 5, keys), 1 / keys), visible)
    assert (bits.item(), relative.item()) == pytest.approx((math.log2(keys), 1.0), abs=1e-6)
    bits, relative = room.entropy(torch.eye(keys)[:1].expand(1, 5, keys), visible)
    assert (bits.item(), relative.item()) == (0.0, 0.0)


def test_entropy_is_relative_to_what_may_be_seen() -> None:
    weights = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]])
    bits, relative = room.entropy(weights, torch.ones(1, 2, 4, dtype=torch.bool))
    assert (bits.item(), relative.item()) == (1.5, 0.75)  # (1 + 2) / 2 bits of (2 + 2) / 2
    assert room.entropy(weights, weights > 0)[1].item() == 1.0
    lonely = torch.ones(1, 1, 1)
    assert [part.item() for part in room.entropy(lonely, lonely > 0)] == [0.0, 1.0]


def test_share_counts_visible_weights_only() -> None:
    weights = torch.tensor([[[0.98, 0.015, 0.005, 0.0], [0.25, 0.25, 0.25, 0.25]]])
    assert room.share_above(weights, torch.ones(1, 2, 4, dtype=torch.bool)).item() == 6 / 8
    assert room.share_above(weights, weights > 0).item() == pytest.approx(6 / 7)
    assert room.share_above(weights, weights > 0, threshold=0.5).item() == pytest.approx(1 / 7)


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 41])
@pytest.mark.parametrize(
    "settings", [{}, {"max_dist": 3}, {"temperature": "formula", "sharpen_longer": False}, {"ramp": 5, "win_size": 4}]
)
def test_weights_times_values_are_what_the_layer_computes(steps: int, settings: dict[str, object]) -> None:
    layer = hybrid_layer(**settings)
    set_span(layer, 0.4)
    view, out = view_of(layer, 2 * torch.randn(1, steps, 16, dtype=torch.float64))
    torch.testing.assert_close(view.local.whole + view.globe.whole + layer.projection.bias, out, atol=1e-6, rtol=0)
    for branch in (view.local, view.globe):
        torch.testing.assert_close(branch.weights.sum(dim=-1), torch.ones(2, steps, dtype=torch.float64))
        assert not (branch.weights > 0)[~branch.visible.expand_as(branch.weights)].any()


def test_views_follow_the_encoder() -> None:
    model = hybrid_model(conv_kernel=3)
    (mel,) = mels(["bad cafe"])
    spans = model.encode(mel[None], torch.tensor([len(mel)])).spans
    views = list(room.layer_views(model, mel))
    torch.testing.assert_close(torch.stack([view.span_scale for view in views]), torch.cat(spans))


def test_span_and_temperature_by_hand() -> None:
    layer = hybrid_layer(temperature="formula", temp_scale=0.6, max_span=12, ramp=4)
    set_span(layer, 0.25)
    figures = room.layer_figures(3, view_of(layer, torch.randn(1, 30, 16).double())[0], step_seconds=0.02)
    assert (figures.layer, len(figures.heads)) == (3, 2)
    for head in figures.heads:
        assert head.span_scale == pytest.approx(0.25)
        assert head.span_ms == pytest.approx(20 * (4 + 8 * 0.25))
        assert head.temperature == pytest.approx(1 + 0.6 * 0.75)


def test_uniform_attention_by_hand() -> None:
    """Without queries every weight is the mask's: uniform in the global branch, m / sum m in the local one."""
    layer = hybrid_layer(ramp=2, max_span=4)
    set_span(layer, 0.5)  # radius 3: m is 1, 1, 1/2 at distances 0, 1, 2
    for branch in (layer.attn_local, layer.attn_global):
        branch.query.weight.zero_()
        branch.query.bias.zero_()
    view, _ = view_of(layer, torch.randn(1, 200, 16).double())
    row = torch.tensor([0.0, 0.5, 1, 1, 1, 0.5, 0]).double() / 4
    torch.testing.assert_close(view.local.weights[0, 100, 97:104], row)
    (head, _) = room.layer_figures(1, view, 0.04).heads
    assert (head.global_entropy_bits, head.global_entropy) == pytest.approx((math.log2(200), 1.0))
    assert (head.global_share_above_1_percent, head.local_share_above_1_percent) == (0.0, 1.0)
    assert head.local_entropy_bits == pytest.approx(2.25, abs=0.02)  # 3/4 · 2 + 1/4 · 3, fewer keys at the ends
    assert 0.95 < head.local_entropy < 1


def test_norms_of_a_projection_that_reads_one_branch() -> None:
    layer = hybrid_layer()
    weight = layer.projection.weight
    near, far = weight[:, :16], weight[:, 16:]
    x = torch.randn(1, 20, 16).double()
    near.zero_()
    figures = room.layer_figures(1, view_of(layer, x)[0], 0.04)
    assert figures.local_norm == figures.local_over_global == 0 and figures.global_norm > 0
    near.copy_(torch.eye(16))
    before = room.layer_figures(1, view_of(layer, x)[0], 0.04)
    near.mul_(3)
    after = room.layer_figures(1, view_of(layer, x)[0], 0.04)
    assert after.local_over_global == pytest.approx(3 * before.local_over_global)
    assert after.heads[1].local_norm == pytest.approx(3 * before.heads[1].local_norm)
    assert after.heads[1].global_norm == before.heads[1].global_norm
    far.zero_()
    view, _ = view_of(layer, x)
    assert math.isfinite(room.layer_figures(1, view, 0.04).local_over_global)


def test_mean_spans_are_those_of_the_mean() -> None:
    model = hybrid_model()
    songs = mels(["bad", "cafe", "f"])
    spans = [torch.stack([view.span_scale for view in room.layer_views(model, mel)]) for mel in songs]
    (radii, temperatures) = room.mean_spans(model, songs)[2]
    local = room.hybrid_layers(model)[2].attn_local
    mean = torch.stack(spans).mean(dim=0)[2]
    torch.testing.assert_close(radii, 20 * local.radius(mean))
    torch.testing.assert_close(temperatures, local.temperature(mean))


def test_knobs_at_1_change_no_bit() -> None:
    model = hybrid_model()
    assert with_attention_scaling(model, AttentionScaling()) is model
    local = room.hybrid_layers(model)[0].attn_local
    local.sharpness.copy_(torch.tensor([0.3, -0.2]))
    span_scale = torch.cat((torch.rand(500, 2), torch.tensor([[0.0, 1.0]])))
    assert torch.equal(local.radius(span_scale), 2 + (8 - 2) * span_scale)
    assert torch.equal(
        local.temperature(span_scale), (1.0 + 0.5 * (1.0 - span_scale)) * 4.0 ** torch.tanh(local.sharpness)
    )


@pytest.mark.parametrize(("factor", "radius"), [(1e-9, 2.0), (0.5, 2 + 6 * 0.25), (1.0, 5.0), (1.5, 6.5), (9.0, 8.0)])
def test_span_knob_moves_the_reach(factor: float, radius: float) -> None:
    """By gradient: what step 20 returns depends on the steps that are nearer than the radius, and on no other."""
    model = hybrid_model()
    for layer in room.hybrid_layers(model):
        set_span(layer, 0.5)
    local = room.hybrid_layers(with_attention_scaling(model, AttentionScaling(span_scale=factor)))[1].attn_local
    span_scale = torch.full((1, 2), 0.5)
    torch.testing.assert_close(local.radius(span_scale), torch.full((1, 2), radius))
    assert torch.equal(local.temperature(span_scale), room.hybrid_layers(model)[1].attn_local.temperature(span_scale))
    with torch.enable_grad():
        x = torch.randn(1, 41, 16, requires_grad=True)
        local(x, span_scale)[0, 20].sum().backward()
    reached = x.grad[0].abs().sum(dim=1) > 0
    distance = (torch.arange(41) - 20).abs()
    assert torch.equal(reached, distance < radius)


def test_temperature_knob_sharpens_and_blunts() -> None:
    """With a hard edge, weights can only become more even as the temperature rises."""
    model = hybrid_model(ramp=1)
    (mel,) = mels(["bad cafe"])

    def entropies(factor: float) -> list[float]:
        turned = with_attention_scaling(model, AttentionScaling(span_scale=1e6, temperature_scale=factor))
        figures = [room.layer_figures(1, view, 0.02) for view in room.layer_views(turned, mel)]
        return [head.local_entropy for head in figures[0].heads]

    for sharp, learned, blunt in zip(entropies(0.05), entropies(1.0), entropies(20.0), strict=True):
        assert sharp < learned < blunt


def test_turned_model_shares_weights_and_leaves_the_first_as_it_was() -> None:
    model = hybrid_model(decoder_attention="hybrid", positions="absolute")
    (mel,) = mels(["bad"])
    lengths = torch.tensor([len(mel)])
    before = model.encode(mel[None], lengths).states
    turned = with_attention_scaling(model, AttentionScaling(span_scale=0.1, temperature_scale=3.0))
    assert {p.data_ptr() for p in turned.parameters()} == {p.data_ptr() for p in model.parameters()}
    assert not torch.equal(turned.encode(mel[None], lengths).states, before)
    assert torch.equal(model.encode(mel[None], lengths).states, before)
    assert turned.decoder.blocks[0].attention.attn_local.span_knob == 0.1


def test_knobs_need_something_to_turn() -> None:
    with pytest.raises(InputError, match=r"span_scale is 0\.5.*global"):
        with_attention_scaling(hybrid_model(attention="global"), AttentionScaling(span_scale=0.5))
    for settings in ({"span_scale": 0.0}, {"temperature_scale": -1.0}, {"span_scale": math.nan}):
        with pytest.raises(InputError, match=next(iter(settings))):
            AttentionScaling(**settings)


def test_weights_by_offset() -> None:
    weights = torch.arange(1.0, 10).reshape(1, 3, 3)
    assert by_offset(weights, 1).tolist() == [[[0, 1, 2], [4, 5, 6], [8, 9, 0]]]


@pytest.mark.parametrize("layers", [None, [2]])
def test_picture_is_whole_and_of_the_size_it_says(song: str, layers: list[int] | None) -> None:
    seen = room.inspect_recording(hybrid_model(), song, InspectionConfig(), layers)
    assert sorted(seen.views) == (layers or [1, 2, 3])
    draw(seen, Path("picture.png"))
    pixels = imread("picture.png")
    width, height = picture_inches(seen)
    assert pixels.shape[:2] == pytest.approx((height * DOTS_PER_INCH, width * DOTS_PER_INCH), abs=1)
    for part in torch.from_numpy(pixels).chunk(1 + len(seen.views)):
        assert part.std() > 0.1  # no part is empty
    assert {path.name for path in Path().iterdir()} == {"song.wav", "picture.png"}


def test_a_name_in_letters_without_a_font_is_drawn_without_a_word(song: str, recwarn: pytest.WarningsRecorder) -> None:
    Path(song).rename("録音 $x.wav")
    draw(room.inspect_recording(hybrid_model(), "録音 $x.wav", InspectionConfig(), [1]), Path("picture.png"))
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_inspect_with_its_arguments_the_wrong_way_round(run, sample: Path) -> None:
    result = run("inspect", sample, "alnum")
    said = f"focusasr: {sample} is a recording, not a checkpoint; did you mean focusasr inspect alnum {sample}?\n"
    assert (result.status, result.err) == (2, said)


def test_inspect_on_the_command_line(run, song: str) -> None:
    folder = save(hybrid_model())
    result = run("inspect", folder, song, "--json", "--offset", 0.2, "--seconds", 0.64, "--span_scale", 0.5)
    figures = json.loads(result.out)
    assert (result.status, figures["offset_seconds"], figures["audio_seconds"]) == (0, 0.2, 0.64)
    short = json.loads(run("inspect", folder, song, "--json", "--seconds", 0.1).out)
    assert short["audio_seconds"] == 0.1
    assert (figures["step_ms"], figures["knobs"]) == (20.0, {"span_scale": 0.5, "temperature_scale": 1.0})
    assert [layer["layer"] for layer in figures["layers"]] == [1, 2, 3]
    for layer in figures["layers"]:
        assert list(layer) == ["layer", "local_norm", "global_norm", "local_over_global", "heads"]
        assert [list(head) for head in layer["heads"]] == [HEAD_KEYS] * 2
    result = run("inspect", folder, song, "-o", "picture.png", "--layer", 1)
    assert result.status == 0 and imread("picture.png").ndim == 3
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line[:10].split() for line in lines[2:11]]
    assert names == [name for layer in "123" for name in ([layer, "1"], ["2"], ["all"])]


def test_knobs_on_the_command_line_reach_the_encoder(run, song: str) -> None:
    folder = save(hybrid_model())

    def spans(*options: object) -> list[float]:
        layers = json.loads(run("inspect", folder, song, "--json", *options).out)["layers"]
        return [head["span_ms"] for layer in layers for head in layer["heads"]]

    assert all(small < large for small, large in zip(spans("--span-scale", 0.3), spans(), strict=True))
    assert spans("--span-scale", 1000) == [160.0] * 6  # max_span, 8 steps of 20 ms


@pytest.mark.parametrize("command", ["transcribe", "evaluate"])
def test_knobs_where_nothing_can_be_turned(run, song: str, command: str) -> None:
    folder = save(hybrid_model(attention="global"))
    Path("m.jsonl").write_text(json.dumps({"audio_filepath": song, "text": "bad"}) + "\n")
    heard = song if command == "transcribe" else "m.jsonl"
    assert run(command, heard, "--model", folder).status == 0
    result = run(command, heard, "--model", folder, "--temperature-scale", 2)
    assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert "global" in result.err
    result = run(command, heard, "--model", save(hybrid_model(), "hybrid"), "--span-scale", 0.5)
    assert result.status == 0


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--layer", 0], 2, "--layer 0"),
        (["--layer", 2, "--layer", 4], 2, "--layer 4"),
        (["--span-scale", 0], 2, "--span-scale 0"),
        (["--seconds", 0], 2, "--seconds 0"),
        (["--seconds", 121], 2, "--seconds 121"),
        (["--offset", 100], 1, "song.wav"),
        (["-o", "song.wav/picture.png"], 1, "song.wav: is a file"),
        (["-o", "picture.jpg"], 2, "--output picture.jpg"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_one_line(
    run, song: str, options: list[object], status: int, said: str
) -> None:
    result = run("inspect", save(hybrid_model()), song, *options)
    result.refused(status, said)


def test_a_checkpoint_or_a_recording_without_anything_to_see(run, song: str) -> None:
    result = run("inspect", save(hybrid_model(attention="global"), "flat"), song)
    assert result.status == 1 and "global attention, without spans" in result.err
    result = run("inspect", "nowhere", song)
    assert result.status == 1 and "nowhere: no such checkpoint folder" in result.err
    result = run("inspect", save(hybrid_model()), "absent.wav")
    assert result.status == 1 and "absent.wav" in result.err
