"""Weights and activations of every scheme, and what they are in f64.

Nothing here shares code with the kernels: values are decoded from the bytes as `#qfuse.scheme`
defines them, and those of ggml by the gguf package.
"""

from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Ggml

from qfuse.dialects.types import PACKINGS, Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.weights import pack_weight

Tensor = torch.Tensor
TORCH = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E5M2": torch.float8_e5m2,
}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
SUPERBLOCK = 256


@dataclass(frozen=True)
class Operand:
    """A tensor: its type, its components as `qfuse.pack` takes them (or itself), its values."""

    type: Shaped
    components: tuple[Tensor, ...]
    values: Tensor
    """f64, so that they are exact."""
    magnitudes: Tensor
    """Sums of the magnitudes of the terms that a value is made of, f64."""

    @property
    def packing(self) -> tuple[tuple[int, int], str]:
        """The block and the packing that `pack_weight` takes."""
        if self.type.scheme is None:
            return (1, self.type.shape[-1]), self.type.dtype
        return self.type.scheme.block, self.type.scheme.packing

    def packed(self) -> tuple[Tensor, ...]:
        return pack_weight([self.components], *self.packing)

    def rows(self, m: int) -> tuple[Tensor, ...]:
        return tuple(c[:m] for c in self.components)


def operand(type_: Shaped, components: tuple[Tensor, ...], dynamic: bool = False) -> Operand:
    """An operand of such components; `dynamic` makes its rows a dynamic extent."""
    values, magnitudes = decode(type_, components)
    if dynamic:
        type_ = Shaped((DYNAMIC, *type_.shape[1:]), type_.dtype, type_.scheme)
    return Operand(type_, components, values, magnitudes)


def decode(type_: Shaped, components: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Values and magnitudes, f64 [N, K]."""
    scheme, (n, k) = type_.scheme, type_.shape
    assert scheme is not None
    data, scale = components[:2]
    if scheme.packing in ("q4_k", "q6_k"):
        return decode_k_quant(type_, data, scale)
    if scheme.packing == "q8_1":
        scale = scale[:, ::2]
    spread = spread_over(scale.double(), scheme.block, n, k)
    if type_.dtype == "i4":
        codes = nibbles(data).double()
        zero = spread_over(components[2].double(), scheme.block, n, k) if components[2:] else 8
        codes = codes - zero
    elif type_.dtype == "f4E2M1FN":
        raw = nibbles(data).long()
        codes = E2M1[raw & 7] * torch.where(raw > 7, -1.0, 1.0)
    else:
        codes = data.float().double()
    values = codes * spread
    return values, values.abs()


def spread_over(scale: Tensor, block: tuple[int, int], n: int, k: int) -> Tensor:
    return scale.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]


def nibbles(data: Tensor) -> Tensor:
    raw = data.view(torch.uint8)
    return torch.stack([raw & 15, raw >> 4], -1).flatten(-2)


def decode_k_quant(type_: Shaped, data: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """By gguf, in f32 (which is exact for q6_k, and rounds once for q4_k)."""
    blocks, kind = ggml_blocks(type_, data, scale)
    values = torch.from_numpy(gguf.quants.dequantize(blocks, kind)).double()
    magnitudes = values.abs()
    if kind == Ggml.Q4_K:
        positive = blocks.reshape(-1, 144).copy()
        positive[:, 2:4] = (-positive[:, 2:4].view(np.float16)).view(np.uint8)
        plus = gguf.quants.dequantize(positive.reshape(blocks.shape), kind)
        magnitudes = torch.from_numpy(plus).double().abs()
    return values, magnitudes


def ggml_blocks(type_: Shaped, data: Tensor, scale: Tensor) -> tuple[np.ndarray, Ggml]:
    n, superblocks = type_.shape[0], type_.shape[1] // SUPERBLOCK
    split = [t.view(torch.uint8).view(n, superblocks, -1) for t in (data, scale)]
    is_q4 = type_.dtype == "i4"
    blocks = torch.cat(split[::-1] if is_q4 else split, -1).flatten(1)
    return blocks.numpy(), Ggml.Q4_K if is_q4 else Ggml.Q6_K


# -- weights ---------------------------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed))


def scale_of(n: int, k: int, block: tuple[int, int], dtype: str, seed: int) -> Tensor:
    shape = (-(-n // block[0]), -(-k // block[1]))
    scale = (random(*shape, seed=seed).abs() + 0.1) * 0.01
    if dtype == "f8E8M0FNU":
        return (scale.log2().round() + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
    return scale.to(TORCH[dtype])


def simple(
    n: int, k: int, dtype: str, block: tuple[int, int], scale: str = "f32", seed: int = 0
) -> Operand:
    """FP8 or i8 by blocks; a block of 0 columns is all of K."""
    block = (block[0], block[1] or k)
    scheme = Scheme(block, scale)
    if dtype == "i8":
        codes = torch.randint(-128, 128, (n, k), generator=torch.manual_seed(seed))
        codes = codes.to(torch.int8)
    else:
        codes = (random(n, k, seed=seed) * 20).to(TORCH[dtype])
    scales = scale_of(n, k, block, scale, seed + 1)
    return operand(Shaped((n, k), dtype, scheme), (codes, scales))


def plain_weight(n: int, k: int, dtype: str, seed: int = 0) -> Operand:
    w = (random(n, k, seed=seed) * 0.1).to(TORCH[dtype])
    return Operand(Shaped((n, k), dtype), (w,), w.double(), w.double().abs())


def int4(
    n: int, k: int, group: int, scale: str = "f16", zeros: bool = False, seed: int = 0
) -> Operand:
    block = (1, group or k)
    scheme = Scheme(block, scale, "int4", "int" if zeros else "none")
    generator = torch.manual_seed(seed)
    data = torch.randint(-128, 128, (n, k // 2), generator=generator).to(torch.int8)
    components = [data, scale_of(n, k, block, scale, seed + 1)]
    if zeros:
        components.append(
            torch.randint(0, 16, components[1].shape, generator=generator).to(torch.int8)
        )
    return operand(Shaped((n, k), "i4", scheme), tuple(components))


def halves_to_pairs(data: np.ndarray) -> Tensor:
    """ggml's blocks of 32 codes in 16 bytes: from the halves of a block to neighbours."""
    raw = torch.from_numpy(data.copy())
    codes = torch.cat([raw & 15, raw >> 4], -1)
    return (codes[..., ::2] | (codes[..., 1::2] << 4)).flatten(1).view(torch.int8)


def q8_0(n: int, k: int, seed: int = 0) -> Operand:
    blocks = gguf.quants.quantize(random(n, k, seed=seed).numpy(), Ggml.Q8_0)
    blocks = blocks.reshape(n, k // 32, 34)
    codes = torch.from_numpy(blocks[..., 2:].reshape(n, k).view(np.int8).copy())
    scale = torch.from_numpy(blocks[..., :2].copy().view(np.float16).reshape(n, -1))
    made = operand(Shaped((n, k), "i8", Scheme((1, 32), "f16")), (codes, scale))
    same_as_gguf(made, blocks, Ggml.Q8_0)
    return made


def q4_0(n: int, k: int, seed: int = 0) -> Operand:
    blocks = gguf.quants.quantize(random(n, k, seed=seed).numpy(), Ggml.Q4_0)
    blocks = blocks.reshape(n, k // 32, 18)
    scale = torch.from_numpy(blocks[..., :2].copy().view(np.float16).reshape(n, -1))
    type_ = Shaped((n, k), "i4", Scheme((1, 32), "f16", "int4"))
    made = operand(type_, (halves_to_pairs(blocks[..., 2:]), scale))
    same_as_gguf(made, blocks, Ggml.Q4_0)
    return made


def mxfp4(n: int, k: int, seed: int = 0) -> Operand:
    blocks = gguf.quants.quantize(random(n, k, seed=seed).numpy(), Ggml.MXFP4)
    blocks = blocks.reshape(n, k // 32, 17)
    scale = torch.from_numpy(blocks[..., 0].copy()).view(torch.float8_e8m0fnu)
    type_ = Shaped((n, k), "f4E2M1FN", Scheme((1, 32), "f8E8M0FNU", "fp4"))
    made = operand(type_, (halves_to_pairs(blocks[..., 1:]), scale))
    same_as_gguf(made, blocks, Ggml.MXFP4)
    return made


def same_as_gguf(made: Operand, blocks: np.ndarray, kind: Ggml) -> None:
    wanted = gguf.quants.dequantize(blocks.reshape(len(blocks), -1), kind)
    assert np.array_equal(made.values.float().numpy(), wanted)


def q4_k(n: int, k: int, seed: int = 0) -> Operand:
    """Quantized as simply as the format allows: a scale and a minimum of each 32 columns."""
    w = random(n, k, seed=seed).numpy().reshape(n, k // SUPERBLOCK, 8, 32)
    least = np.minimum(w.min(-1), 0)
    step = (w.max(-1) - least) / 15
    d = (step.max(-1, keepdims=True) / 63).astype(np.float16)
    dmin = (-least.min(-1, keepdims=True) / 63).astype(np.float16)
    sc = np.clip(np.round(step / d), 0, 63).astype(np.uint8)
    m = np.clip(np.round(-least / dmin), 0, 63).astype(np.uint8)
    scale, minimum = (
        (d.astype(np.float32) * sc)[..., None],
        (dmin.astype(np.float32) * m)[..., None],
    )
    u = np.clip(np.round((w + minimum) / np.maximum(scale, 1e-20)), 0, 15).astype(np.uint8)
    numbers = np.zeros((*sc.shape[:2], 16), np.uint8)
    numbers[..., :2], numbers[..., 2:4] = d.view(np.uint8), dmin.view(np.uint8)
    numbers[..., 4:8] = sc[..., :4] | ((sc[..., 4:] >> 4) << 6)
    numbers[..., 8:12] = m[..., :4] | ((m[..., 4:] >> 4) << 6)
    numbers[..., 12:] = (sc[..., 4:] & 15) | ((m[..., 4:] & 15) << 4)
    pairs = u.reshape(n, -1, 2, 32)
    data = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(n, k // 2)
    type_ = Shaped((n, k), "i4", Scheme((1, SUPERBLOCK), "i8", "q4_k"))
    tensors = (torch.from_numpy(t.reshape(n, -1).view(np.int8)) for t in (data, numbers))
    made = operand(type_, tuple(tensors))
    assert np.abs(made.values.numpy() - w.reshape(n, k)).max() < 0.5
    return made


def q6_k(n: int, k: int, seed: int = 0) -> Operand:
    w = random(n, k, seed=seed).numpy().reshape(n, k // SUPERBLOCK, 16, 16)
    step = np.abs(w).max(-1) / 31
    d = (step.max(-1, keepdims=True) / 127).astype(np.float16)
    sc = np.clip(np.round(step / d), -128, 127).astype(np.int8)
    sc[:, :, ::3] = -sc[:, :, ::3]  # scales may be negative
    scale = (d.astype(np.float32) * sc)[..., None]
    u = (np.clip(np.round(w / scale), -32, 31) + 32).astype(np.uint8)
    quarters = u.reshape(n, -1, 4, 32)  # of 128 columns
    low = quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4
    high = sum((quarters[:, :, i] >> 4) << (2 * i) for i in range(4))
    split = [low.reshape(n, -1, 128), np.asarray(high, np.uint8).reshape(n, -1, 64)]
    data = np.concatenate(split, -1).reshape(n, -1)
    numbers = np.concatenate([sc.view(np.uint8), d.view(np.uint8)], -1).reshape(n, -1)
    type_ = Shaped((n, k), "i6", Scheme((1, SUPERBLOCK), "i8", "q6_k"))
    made = operand(type_, tuple(torch.from_numpy(t.view(np.int8)) for t in (data, numbers)))
    assert np.abs(made.values.numpy() - w.reshape(n, k)).max() < 0.5
    return made


# -- activations -----------------------------------------------------------------------------------


def plain_x(m: int, k: int, dtype: str, seed: int = 9) -> Operand:
    x = random(m, k, seed=seed).to(TORCH[dtype])
    return Operand(Shaped((DYNAMIC, k), dtype), (x,), x.double(), x.double().abs())


def quantized_x(
    m: int, k: int, dtype: str, group: int, scale: str = "f32", packing: str = "none"
) -> Operand:
    """Codes of all sizes, with scales that differ; the sums of q8_1 are not to be read."""
    scheme = Scheme((1, group or k), scale, packing)
    made = simple(m, k, dtype, (1, group), scale, seed=9)
    components = list(made.components)
    if packing == "q8_1":
        numbers = PACKINGS[packing].numbers
        scales = torch.full((m, components[1].shape[1] * numbers), torch.nan).to(TORCH[scale])
        scales[:, ::numbers] = components[1]
        components[1] = scales
    return operand(Shaped((m, k), dtype, scheme), tuple(components), dynamic=True)
