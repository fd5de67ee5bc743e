"""Whole networks with LayerNorms, small and untrained, and what of each norm the algebra lets go.

The networks are those of transformers, from ``.venv-real``; the pitch tracker and the sentence encoder, which it does
not have, are written out here. What is expected of each is reasoned from its architecture, in the comment beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from architectures import library, network, randomize
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, INNER, LAYERS = 24, 2, 40, 2
TINY = 1.5e-9
"""The size of the smallest γ in MiniLM's weights."""


@dataclass(frozen=True)
class Network:
    """One network and what becomes of its LayerNorms.

    Attributes:
        name: for humans.
        build: makes it, its parameters as the constructor leaves them.
        inputs: its input specs.
        norms: how many LayerNorms it has.
        affine: those that keep their scale and bias, by patterns of their names, with what the ledger says of it;
            behind "or" what it says of the graph at the opset of ONNX Runtime, which has no Attention.
        mean: those that keep their mean, with what the ledger says of it; the others become RMSNorms.
        writers: how many operators write into the stream of those.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    norms: int
    affine: dict[str, str] = field(default_factory=dict)
    mean: dict[str, str] = field(default_factory=dict)
    writers: int = 0


def lived_in(build: Callable[[], nn.Module]) -> nn.Module:
    """The network in eval mode, seeded, with every parameter as far from its start as training could take it.

    What writes into a residual stream gets a mean, or nothing would show where it stays. Of every LayerNorm one γ is
    near zero and one is negative.
    """
    torch.manual_seed(0)
    module = build()
    with torch.no_grad():
        for part in module.modules():
            randomize(part)
            if isinstance(part, nn.Embedding):
                part.weight.normal_(mean=0.5)
            elif isinstance(part, nn.LayerNorm):
                part.weight[:2] = torch.tensor([-TINY, -0.7])
        for name, parameter in module.named_parameters():
            if name.rpartition(".")[2] in ("class_embedding", "cls_token", "distillation_token", "position_embeddings"):
                parameter.normal_(mean=0.5)
    return module.eval().requires_grad_(False)


def _vision(name: str, task: str = "ForImageClassification", **options: object) -> Callable[[], nn.Module]:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_labels": 5}
    return network(name, task, image_size=16, patch_size=4, intermediate_size=INNER, **sizes, **options)


def _text(name: str, task: str, **options: object) -> Callable[[], nn.Module]:
    sizes = {"vocab_size": 50, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return network(name, task, intermediate_size=INNER, max_position_embeddings=16, **{**sizes, **options})


def _clip(part: str, **options: object) -> Callable[[], nn.Module]:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}

    def build() -> nn.Module:
        config = getattr(library(), f"CLIP{part}Config")
        module: nn.Module = getattr(library(), f"CLIP{part}ModelWithProjection")(
            config(intermediate_size=INNER, projection_dim=8, **sizes, **options)
        )
        return module

    return build


def _whisper() -> nn.Module:
    sizes = {"d_model": WIDTH, "encoder_layers": LAYERS, "encoder_attention_heads": HEADS, "encoder_ffn_dim": INNER}
    whole = network("Whisper", "Model", **sizes, decoder_layers=1, num_mel_bins=8, max_source_positions=15)()
    return whole.get_submodule("encoder")


class Tapped(nn.Module):
    """A ViT's classifier in which, between two layers, something more reads the stream, or writes into it."""

    KINDS: ClassVar[dict[str, str]] = {
        "a head": "NF321 (MatMul extra)",
        "a pooled head": "NF321 (Gemm extra)",
        "a tap": "NF321 (Tanh",
        "an output": "NF002",
        "a pooled output": "NF002",
        "an activation that writes": "NF322 (Tanh",
    }
    """What is planted, and what the ledger says of it."""

    def __init__(self, classifier: nn.Module, kind: str) -> None:
        super().__init__()
        self.classifier, self.kind, self.extra = classifier, kind, nn.Linear(WIDTH, 3)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        vit = self.classifier.get_submodule("vit")
        x = vit.get_submodule("embeddings")(pixel_values)
        first, *others = vit.get_submodule("layers")
        x, outputs = self.planted(first(x))
        for layer in others:
            x = layer(x)
        return {
            "logits": self.classifier.get_submodule("classifier")(vit.get_submodule("layernorm")(x)[:, 0]),
            **outputs,
        }

    def planted(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The stream as it goes on, and the outputs that were added."""
        if self.kind == "an activation that writes":
            return x + torch.tanh(x.flip(1)), {}
        read: dict[str, Callable[[], Tensor]] = {
            "a head": lambda: self.extra(x),
            "a pooled head": lambda: self.extra(x.mean(1)),
            "a tap": lambda: torch.tanh(x),
            "an output": lambda: x,
            "a pooled output": lambda: x.mean(1),
        }
        return x, {"hidden": read[self.kind]()}


class LinearAttention(nn.Module):
    """Attention by the kernel elu + 1, whose cost is linear in time (Katharopoulos et al. 2020, arXiv 2006.16236)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part(x).unflatten(-1, (HEADS, -1)) for part in (self.query, self.key, self.value))
        query, key = functional.elu(query) + 1, functional.elu(key) + 1
        mixed = torch.einsum("bthd,bhde->bthe", query, torch.einsum("bthd,bthe->bhde", key, value))
        total = torch.einsum("bthd,bhd->bth", query, key.sum(1))
        attended: Tensor = self.out((mixed / total.unsqueeze(-1)).flatten(2))
        return attended


class ConformerConvolution(nn.Module):
    """Pointwise, gate, depthwise, pointwise (Gulati et al. 2020, arXiv 2005.08100), channels first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.expand = nn.Conv1d(WIDTH, 4 * WIDTH, 1)
        self.depthwise = nn.Conv1d(2 * WIDTH, 2 * WIDTH, 5, padding=2, groups=2 * WIDTH)
        self.contract = nn.Conv1d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.glu(self.expand(self.norm(x).transpose(1, 2)), dim=1)
        contracted: Tensor = self.contract(functional.silu(self.depthwise(y))).transpose(1, 2)
        return contracted


class ConformerLayer(nn.Module):
    """Attention and convolution, each behind its own LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.convolution = nn.LayerNorm(WIDTH), LinearAttention(), ConformerConvolution()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        convolved: Tensor = self.convolution(x)
        return x + convolved


class PitchTracker(nn.Module):
    """As FCPE: ``mel`` [B, T, 20] → the salience of 36 pitches [B, T, 36]; a convolutional stem, conformers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(20, WIDTH, 3, padding=1), nn.GroupNorm(4, WIDTH), nn.LeakyReLU(),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
        )  # fmt: skip
        self.layers = nn.Sequential(*(ConformerLayer() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 36)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.stem(mel.transpose(1, 2)).transpose(1, 2)
        salience: Tensor = torch.sigmoid(self.head(self.norm(self.layers(x))))
        return salience


class SentenceEncoder(nn.Module):
    """As MiniLM: a BERT, the mean of its tokens that are no padding, scaled to length 1: [B, 24]."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = _text("Bert", "Model", num_hidden_layers=3, layer_norm_eps=1e-12)()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return functional.normalize((tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=-1)


IMAGE, TOKENS = "pixel_values:N=1..2..4x3x16x16@f32", "input_ids:B=1..2..3xT=1..5..9@i64[0..49]"
POST_LN = "NF325"
RESIDUAL = "NF206"
OUTPUT = "NF002"
A_NORM = "NF302 (LayerNormalization"
A_BIAS = "NF326"

# A projection with a bias is two writers, MatMul and Add, or where its input has two axes one Gemm.
NETWORKS = [
    # pre-LN: every norm is read by linears alone. 11 writers: patches, class token, positions, 4 projections
    Network("ViT", _vision("ViT"), (IMAGE,), 5, writers=11),
    # one more token, and two heads that each read one
    Network("DeiT", _vision("DeiT", "ForImageClassificationWithTeacher"), (IMAGE,), 5, writers=12),
    # a scale for each feature behind every projection; the head reads the class token beside the mean of the others
    Network("DINOv2", network("Dinov2", "ForImageClassification", image_size=16, patch_size=4, hidden_size=WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, mlp_ratio=2, num_labels=5), (IMAGE,), 5, writers=11),
    # the head is the table of tokens, without a bias that could take the last norm's; 2 tables and 4 Gemms write
    Network("GPT-2", network("GPT2", "LMHeadModel", vocab_size=50, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            n_positions=16, use_cache=False, bos_token_id=0, eos_token_id=0), (TOKENS,), 5,
            {"*.ln_f": OUTPUT}, {"*.ln_f": A_BIAS}, writers=6),
    # post-LN: what a norm writes is the stream; only the last one is read by the pooler's linear alone
    Network("BERT", _text("Bert", "ForSequenceClassification"), (TOKENS,), 5,
            {"*.embeddings.*": RESIDUAL, "*.attention.*": RESIDUAL, "*.0.output.*": RESIDUAL},
            {"*.embeddings.*": A_BIAS, "*.layer.*": POST_LN}),
    # the last one is multiplied with the mask
    Network("MiniLM", SentenceEncoder, (TOKENS, "attention_mask:BxT@i64[1..1]"), 7,
            {"*.2.output.*": "NF207 (Mul", "*": RESIDUAL},
            {"*.embeddings.*": A_BIAS, "*.layer.*": POST_LN}),
    # the first norm writes the stream; depthwise convolutions read it, mean and all, and write without a common one
    Network("ConvNeXt", network("ConvNext", "ForImageClassification", hidden_sizes=[16, 24], depths=[2, 1],
            num_stages=2, patch_size=2, num_labels=5), (IMAGE,), 6, {"*.embeddings.*": "NF201"},
            {"*.embeddings.*": A_BIAS, "*.layers.?.layernorm": "NF322",
             "*": "NF321 (Conv convnext.encoder.stages."}),
    # a norm writes the first stage's stream; where patches are merged, four of them stand side by side, and the
    # linear behind has no bias. The second stage's is written by it and 4 projections, and read by norms alone
    Network("Swin", network("Swin", "ForImageClassification", image_size=16, patch_size=1, embed_dim=16, depths=[2, 2],
            num_heads=[2, 4], window_size=4, mlp_ratio=2.0, num_labels=5), (IMAGE,), 11,
            {"*.embeddings.norm": A_NORM, "*.downsample.norm": A_NORM},
            {"*.embeddings.norm": A_BIAS, "*.layers.0.blocks.*": POST_LN,
             "*.downsample.norm": "NF322 (Concat"}, writers=9),
    # a norm writes the stream, which is an output; the projection without bias is a Gemm, which has room for one
    Network("CLIP vision", _clip("Vision", image_size=16, patch_size=4), (IMAGE,), 6, {"*.pre_layrnorm": A_NORM},
            {"*.pre_layrnorm": A_BIAS, "*": "NF002 vision_model.pre_layrnorm); last_hidden_state"}),
    # the last norm is an output; 2 tables and 4 projections write
    Network("CLIP text", _clip("Text", vocab_size=50, max_position_embeddings=16, eos_token_id=49, bos_token_id=0,
            pad_token_id=1), (TOKENS,), 5, {"*.final_layer_norm": OUTPUT}, {"*.final_layer_norm": A_BIAS}, writers=10),
    # keys have no bias; the last norm is the output; an activation writes the stream
    Network("Whisper encoder", _whisper, ("input_features:B=1..2..3x8x30@f32",), 5,
            {"*.self_attn_layer_norm": "NF207 (Attention or NF017 (Reshape", "layer_norm": OUTPUT},
            {"*": "NF322 (Gelu"}),
    # 7 writers: the stem, 2 projections, 2 pointwise convolutions
    Network("FCPE", PitchTracker, ("mel:B=1..2..3xT=4..9..20x20@f32",), 5, writers=7),
]  # fmt: skip
