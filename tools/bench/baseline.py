"""The baseline: a plain Triton kernel as MLC and SGLang have it, with its fixed tiles.

64 x block_n x block_k, 32 tiles of rows to a group, 4 warps, 3 stages: loads through pointers, one
program to a tile, both scales loaded in the loop, and their product applied to that of the tiles.
Written from the description in seeds/001 (mlc-llm python/mlc_llm/op/triton.py, after SGLang).
"""

import triton
import triton.language as tl

TILES = {
    "BLOCK_SIZE_M": 64,
    "BLOCK_SIZE_N": 128,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 32,
}
OPTIONS = {"num_warps": 4, "num_stages": 3}


def w8a8_block_fp8_matmul(
    x,
    w,
    out,
    x_scale,
    w_scale,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_SIZE_M: tl.constexpr,
):
    """out [M, N] = (x [M, K] * x_scale [M, K/bk]) @ (w [N, K] * w_scale [N/bn, K/bk]).T"""
    pid = tl.program_id(axis=0)
    num_pid_m = tl.cdiv(M, BLOCK_SIZE_M)
    num_pid_n = tl.cdiv(N, BLOCK_SIZE_N)
    num_pid_in_group = GROUP_SIZE_M * num_pid_n
    first_pid_m = pid // num_pid_in_group * GROUP_SIZE_M
    group_size_m = min(num_pid_m - first_pid_m, GROUP_SIZE_M)
    pid_m = first_pid_m + (pid % num_pid_in_group) % group_size_m
    pid_n = (pid % num_pid_in_group) // group_size_m

    offs_m = (pid_m * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)) % M
    offs_n = (pid_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)) % N
    offs_k = tl.arange(0, BLOCK_SIZE_K)
    x_ptrs = x + offs_m[:, None] * K + offs_k[None, :]
    w_ptrs = w + offs_n[None, :] * K + offs_k[:, None]
    groups: tl.constexpr = (K + BLOCK_SIZE_K - 1) // BLOCK_SIZE_K
    x_scale_ptrs = x_scale + offs_m * groups
    w_scale_ptrs = w_scale + offs_n // BLOCK_SIZE_N * groups

    accumulator = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), dtype=tl.float32)
    for k in range(0, groups):
        left = K - k * BLOCK_SIZE_K
        a = tl.load(x_ptrs, mask=offs_k[None, :] < left, other=0.0)
        b = tl.load(w_ptrs, mask=offs_k[:, None] < left, other=0.0)
        a_s = tl.load(x_scale_ptrs + k)
        b_s = tl.load(w_scale_ptrs + k)
        accumulator += tl.dot(a, b) * a_s[:, None] * b_s[None, :]
        x_ptrs += BLOCK_SIZE_K
        w_ptrs += BLOCK_SIZE_K

    rows = pid_m * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)
    columns = pid_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)
    out_ptrs = out + rows[:, None] * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(out_ptrs, accumulator.to(out.dtype.element_ty), mask=mask)


kernel = triton.jit(w8a8_block_fp8_matmul)


def grid(m: int, n: int) -> tuple[int]:
    return (triton.cdiv(m, TILES["BLOCK_SIZE_M"]) * triton.cdiv(n, TILES["BLOCK_SIZE_N"]),)
