"""A one-layer language model, written by hand, and what it computes."""

import torch
from fakes import main

from qfuse.compiler import torch_ops

VOCABULARY, WIDTH = 13, 4


def language_model(cache: int = 16, keys_read_after: bool = False) -> str:
    """Embedding, attention over a cache, logits of the last token.

    `keys_read_after`: the old keys are an output, too, so that they must survive the update.
    """
    table = f"!torch.vtensor<[{VOCABULARY},{WIDTH}],f32>"
    kv = f"!torch.vtensor<[1,1,{cache},{WIDTH}],f32>"
    x = f"!torch.vtensor<[1,?,{WIDTH}],f32>"
    heads = f"!torch.vtensor<[1,1,?,{WIDTH}],f32>"
    update = f"({kv}, {heads}, !torch.vtensor<[?],si64>) -> {kv}"
    out = f"!torch.vtensor<[1,?,1,{WIDTH}],f32>"
    last = f"!torch.vtensor<[1,1,{WIDTH}],f32>"
    kv_short = f"1x1x{cache}x{WIDTH}xf32"
    return (
        main(
            f"table: {VOCABULARY}x{WIDTH}xf32 parameter\n"
            "input_ids: 1x?xsi64 input\n"
            "position: ?xsi64 input\n"
            f"key_cache.0: {kv_short} cache\n"
            f"value_cache.0: {kv_short} cache",
            f"logits: 1x1x{VOCABULARY}xf32 output\n"
            + (f"key_cache.0: {kv_short} output\n" if keys_read_after else "")
            + f"keys: {kv_short} cache\nvalues: {kv_short} cache",
            f"""
      %zero = torch.constant.int 0
      %one = torch.constant.int 1
      %minus = torch.constant.int -1
      %end = torch.constant.int 9223372036854775807
      %false = torch.constant.bool false
      %scale = torch.constant.float 5.000000e-01
      %x = torch.aten.embedding %table, %input_ids, %minus, %false, %false
        : {table}, !torch.vtensor<[1,?],si64>, !torch.int, !torch.bool, !torch.bool -> {x}
      %h = torch.aten.unsqueeze %x, %one : {x}, !torch.int -> {heads}
      %v = torch.aten.neg %h : {heads} -> {heads}
      %keys = torch.operator "torch.qfuse.kv_update"(%key_cache.0, %h, %position) : {update}
      %values = torch.operator "torch.qfuse.kv_update"(%value_cache.0, %v, %position) : {update}
      %a = torch.operator "torch.qfuse.attention"(%h, %keys, %values, %position, %scale, %zero)
        : ({heads}, {kv}, {kv}, !torch.vtensor<[?],si64>, !torch.float, !torch.int) -> {out}
      %s = torch.aten.squeeze.dim %a, %one : {out}, !torch.int -> {x}
      %n = torch.aten.select.int %a, %zero, %zero : {out}, !torch.int, !torch.int
        -> !torch.vtensor<[?,1,{WIDTH}],f32>
      %t = torch.aten.transpose.int %n, %zero, %one : !torch.vtensor<[?,1,{WIDTH}],f32>,
        !torch.int, !torch.int -> {x}
      %l = torch.aten.slice.Tensor %t, %one, %minus, %end, %one
        : {x}, !torch.int, !torch.int, !torch.int, !torch.int -> {last}
      %none = torch.constant.none
      %logits = torch.aten.linear %l, %table, %none
        : {last}, {table}, !torch.none -> !torch.vtensor<[1,1,{VOCABULARY}],f32>""",
        )
        .replace('"keys"', '"key_cache.0"')
        .replace('"values"', '"value_cache.0"')
    )


def expected_logits(table: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The logits after all of `ids`, computed at once."""
    h = table[ids][None, None]
    position = torch.arange(len(ids))
    a = torch_ops.attention(h, h, -h, position, 0.5, 0)
    return a[:, -1:, 0] @ table.T


def expected_tokens(table: torch.Tensor, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(expected_logits(table, ids)[0, -1].argmax()))
    return ids[len(ids) - count :]
