"""Products by the weights of experts: against f64, against the dense kernel, for any routing."""

import pytest
import torch
from cpu_kernels import (
    POISON,
    TESTED_LEVELS,
    Quantized,
    Tensor,
    dequantize_reference,
    group_text,
    matmul_text,
    plain,
    quantize_reference,
    quantized,
    run,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_reference import choices, route
from test_fused_equals_unfused import activation_text, binary_text, round_text
from test_glu import glu_text, run_glu
from test_matmul import activations, check, first_rows, weight
from test_routing import combine_text, run_route

from qfuse.dialects.glu import SWIGLU_OAI, Glu
from qfuse.lowering.cpu.weights import pack_experts, pack_weight

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
BLOCK = (128, 128)
EXPERTS, CHOICES, N, K = 5, 3, 150, 200


def experts_of(n: int, k: int, count: int = EXPERTS, block: tuple[int, int] = BLOCK) -> Quantized:
    """Codes [E, n, k] and their scales."""
    each = [weight(n, k, block, seed=e) for e in range(count)]
    return torch.stack([c for c, _ in each]), torch.stack([s for _, s in each])


def row(tensor: Tensor | Quantized, index: Tensor | slice) -> Tensor | Quantized:
    return (tensor[0][index], tensor[1][index]) if isinstance(tensor, tuple) else tensor[index]


def is_poison(tensor: Tensor) -> bool:
    return bool((tensor.contiguous().view(torch.uint8) == POISON).all())


TEXT = group_text(
    quantized(-1, K), quantized(EXPERTS, N, K, block=BLOCK), [plain(-1, CHOICES, N)], CHOICES
)
WEIGHTS = experts_of(N, K)
PACKED = pack_experts(*WEIGHTS, BLOCK)
X = quantize_reference(activations(200, K), (1, 128))


def run_group(level: str | None, ids: Tensor, threads: int = 2) -> Tensor:
    """Rows [T * CHOICES, N] for tokens that are the first rows of X."""
    _, tokens, indptr = route(ids, EXPERTS)
    t = len(ids)
    arguments = [first_rows(X, t), PACKED, indptr, tokens]
    result = plain(-1, CHOICES, N)
    (got,) = run(TEXT, level, arguments, [result], t * CHOICES, [t, CHOICES], threads)
    return got.flatten(0, 1)


@levels
@settings(deadline=None, max_examples=25)
@given(choices(90, CHOICES, EXPERTS))
def test_any_routing(level: str, ids: Tensor) -> None:
    """Every row against f64 and, bit for bit, against the dense kernel; no others are written."""
    got = run_group(level, ids)
    _, tokens, indptr = route(ids, EXPERTS)
    dense = matmul_text(quantized(-1, K), quantized(N, K, block=BLOCK), [plain(-1, N)])
    for e, (begin, end) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)):
        w = (WEIGHTS[0][e], WEIGHTS[1][e])
        x = row(X, tokens.flatten()[begin:end].long())
        exact = dequantize_reference(x, (1, 128)), dequantize_reference(w, BLOCK)
        check(got[begin:end], *exact, K, 128, "bf16")
        packed = pack_weight([w], BLOCK)
        (wanted,) = run(dense, level, [x, packed], [plain(-1, N)], end - begin)
        assert same_bits(got[begin:end], wanted)
    assert is_poison(got[int(indptr[-1]) :])


@levels
def test_threads_do_not_change_the_result(level: str) -> None:
    ids = torch.randint(-1, EXPERTS, (70, CHOICES), generator=torch.manual_seed(1))
    outputs = [run_group(level, ids, threads) for threads in (1, 2, 7)]
    assert same_bits(outputs[0], outputs[1]) and same_bits(outputs[0], outputs[2])


@levels
@pytest.mark.parametrize("t", [1, 180])
def test_one_expert_with_everything(level: str, t: int) -> None:
    """More rows than one task has."""
    got = run_group(level, torch.full((t, CHOICES), 3))
    w = dequantize_reference((WEIGHTS[0][3], WEIGHTS[1][3]), BLOCK)
    x = dequantize_reference(first_rows(X, t), (1, 128)).repeat_interleave(CHOICES, 0)
    check(got, x, w, K, 128, "bf16")


@levels
def test_many_experts_without_tokens(level: str) -> None:
    """512 experts, few of which have rows; x has the rows themselves, plain."""
    experts, n, k, m = 512, 16, 33, 21
    w = experts_of(n, k, experts, (16, 32))
    result = plain(-1, 1, n, dtype="f32")
    text = group_text(plain(-1, 1, k), quantized(experts, n, k, block=(16, 32)), [result])
    of_rows = torch.sort(torch.tensor([0, 17, 200, 511])[torch.arange(m) % 4])[0]
    _, _, indptr = route(of_rows[:, None], experts)
    x = activations(m, k)
    arguments = [x[:, None], pack_experts(*w, (16, 32)), indptr]
    (got,) = run(text, level, arguments, [result], m, [m, 1], threads=2)
    for r, e in enumerate(of_rows.tolist()):
        w64 = dequantize_reference((w[0][e], w[1][e]), (16, 32))
        check(got[r], x[r : r + 1].double(), w64, k, 32, "f32")


@levels
@pytest.mark.parametrize("n", [128, 300])
def test_gate_and_up_with_glu_and_quantize(level: str, n: int) -> None:
    """The parts of an expert begin at scale blocks; all results are those of the dense kernel."""
    q_type, row_type = quantized(-1, n), plain(-1, n)
    gate, gate_value = round_text("", "%acc0", "bf16")
    up, up_value = round_text("", "%acc1", "bf16")
    act, act_value = activation_text("silu", gate_value, "bf16")
    product, value = binary_text("mulf", act_value, up_value, "bf16")
    body, yields = "\n".join([gate, up, act, product]), [value, value]
    begin = -(-n // 128) * 128
    weights = experts_of(begin + n, K)
    weights[0][:, n:begin] = torch.tensor(float("nan")).to(torch.float8_e4m3fn)  # nobody's rows
    w_type = quantized(EXPERTS, begin + n, K, block=BLOCK)
    results = [plain(-1, CHOICES, n), quantized(-1, CHOICES, n)]
    text = group_text(quantized(-1, K), w_type, results, CHOICES, body, yields, parts=[n, n])
    single = matmul_text(
        quantized(-1, K),
        quantized(begin + n, K, block=BLOCK),
        [row_type, q_type],
        body,
        yields,
        parts=[n, n],
    )
    ids = torch.tensor([0] * 20 + [1] * 9 + [2] * 3 + [4]).view(-1, CHOICES)
    t = len(ids)
    _, tokens, indptr = route(ids, EXPERTS)
    arguments = [first_rows(X, t), pack_experts(*weights, BLOCK), indptr, tokens]
    plain_, codes = run(text, level, arguments, results, t * CHOICES, [t, CHOICES], threads=2)
    for e in range(EXPERTS):
        rows = slice(int(indptr[e]), int(indptr[e + 1]))
        x = row(X, tokens.flatten()[rows].long())
        split = -(-n // 128)
        of_expert = [
            (weights[0][e][:n], weights[1][e][:split]),
            (weights[0][e][begin:], weights[1][e][split:]),
        ]
        packed = pack_weight(of_expert, BLOCK)
        wanted = run(single, level, [x, packed], [row_type, q_type], rows.stop - rows.start)
        assert same_bits(plain_.flatten(0, 1)[rows], wanted[0])
        assert same_bits(row((codes[0].flatten(0, 1), codes[1].flatten(0, 1)), rows), wanted[1])


@levels
def test_parts_of_two_widths_and_extra_operands(level: str) -> None:
    """Extra operands of rows are in the order of experts, as the results are."""
    widths, m = (200, 70), 22
    w = experts_of(256 + 70, K)
    types = [plain(-1, 1, n, dtype="f32") for n in widths]
    extra = [(types[0], "[M,N]"), (plain(70, dtype="f32"), "[N]"), (plain(-1, 1, 1), "[M,1]")]
    extra.append((plain(EXPERTS, 70, dtype="f32"), "[E,N]"))
    body = "%y0 = arith.addf %acc0, %e0 : f32\n%a = arith.addf %acc1, %e1 : f32\n"
    body += "%b = arith.addf %a, %e3 : f32\n%y1 = arith.mulf %b, %e2 : f32"
    w_type = quantized(EXPERTS, 256 + 70, K, block=BLOCK)
    text = group_text(
        plain(-1, 1, K, dtype="f32"), w_type, types, 0, body, ["%y0", "%y1"], extra, widths
    )
    _, _, indptr = route(torch.tensor([0] * 11 + [3] * 10 + [4])[:, None], EXPERTS)
    x, old, bias = activations(m, K, "f32"), torch.randn(m, 200), torch.randn(70)
    of_experts = torch.randn(EXPERTS, 70)
    factor = activations(m, 1)
    arguments = [x[:, None], pack_experts(*w, BLOCK), indptr, old[:, None], bias, factor[:, None]]
    arguments.append(of_experts)
    got = [y[:, 0] for y in run(text, level, arguments, types, m, [m, 1], threads=2)]
    for e in range(EXPERTS):
        rows = slice(int(indptr[e]), int(indptr[e + 1]))
        exact = x[rows].double() @ dequantize_reference((w[0][e], w[1][e]), BLOCK).T
        torch.testing.assert_close(
            got[0][rows].double(), exact[:, :200] + old[rows], atol=2e-4, rtol=0
        )
        wanted = (exact[:, 256:] + bias + of_experts[e]) * factor[rows].double()
        torch.testing.assert_close(got[1][rows].double(), wanted, atol=5e-4, rtol=0)


@levels
@settings(deadline=None, max_examples=15)
@given(choices(90, CHOICES, EXPERTS))
def test_biases_of_experts(level: str, ids: Tensor) -> None:
    """The bits of the product alone, rounded, plus the bias of each row's expert, rounded."""
    bias = activations(EXPERTS, N)
    rounded, value = round_text("", "%acc0", "bf16")
    added, value = binary_text("addf", value, "%e0", "bf16")
    text = group_text(
        quantized(-1, K),
        quantized(EXPERTS, N, K, block=BLOCK),
        [plain(-1, CHOICES, N)],
        CHOICES,
        f"{rounded}\n{added}",
        [value],
        [(plain(EXPERTS, N), "[E,N]")],
    )
    _, tokens, indptr = route(ids, EXPERTS)
    t, rows = len(ids), int(indptr[-1])
    arguments = [first_rows(X, t), PACKED, indptr, tokens, bias]
    result = plain(-1, CHOICES, N)
    (got,) = run(text, level, arguments, [result], t * CHOICES, [t, CHOICES], threads=2)
    expert = torch.arange(EXPERTS).repeat_interleave(indptr.diff().long())
    wanted = run_group(level, ids)[:rows] + bias[expert]
    assert same_bits(got.flatten(0, 1)[:rows], wanted)
    assert is_poison(got.flatten(0, 1)[rows:])


@levels
@settings(deadline=None, max_examples=6, derandomize=True)
@given(choices(40, CHOICES, EXPERTS), st.sampled_from([Glu("relu", 1.5), Glu(SWIGLU_OAI, 2.0)]))
def test_biased_gate_and_up_with_glu_and_quantize(level: str, ids: Tensor, glu: Glu) -> None:
    """Fused, against the biased product, the GLU and a quantization; both are of two types."""
    n = 150
    row, q_type = plain(-1, CHOICES, n), quantized(-1, CHOICES, n)
    w_type = quantized(EXPERTS, 256 + n, K, block=BLOCK)
    extra = [(plain(EXPERTS, n), "[E,N]"), (plain(EXPERTS, n, dtype="f32"), "[E,N]")]
    texts, biased = [], []
    for part in range(2):
        rounded, value = round_text("", f"%acc{part}", "bf16")
        added, value = binary_text("addf", value, f"%e{part}", "bf16")
        texts += [rounded, added]
        biased.append(value)
    made, value = glu_text(glu, *biased, "bf16")
    x_type, parts = quantized(-1, K), [n, n]
    body = "\n".join([*texts, made])
    fused = group_text(
        x_type, w_type, [row, q_type], CHOICES, body, [value, value], extra, parts=parts
    )
    apart = group_text(
        x_type, w_type, [row, row], CHOICES, "\n".join(texts), biased, extra, parts=parts
    )
    _, tokens, indptr = route(ids, EXPERTS)
    t, count = len(ids), int(indptr[-1])
    packed = pack_experts(*experts_of(256 + n, K), BLOCK)
    biases = activations(EXPERTS, n) * 3, activations(EXPERTS, n, "f32") * 3
    arguments = [first_rows(X, t), packed, indptr, tokens, *biases]
    shape = t * CHOICES, [t, CHOICES]
    got, codes = run(fused, level, arguments, [row, q_type], *shape, threads=2)
    both = run(apart, level, arguments, [row, row], *shape)
    gate, up = (each.flatten(0, 1)[:count] for each in both)
    wanted = run_glu(level, glu, gate, up, "bf16")
    assert same_bits(got.flatten(0, 1)[:count], wanted)
    rows = codes[0].flatten(0, 1)[:count], codes[1].flatten(0, 1)[:count]
    assert same_bits(rows, quantize_reference(wanted, (1, 128)))


@levels
@settings(deadline=None, max_examples=8)
@given(choices(30, CHOICES, EXPERTS))
def test_a_whole_layer(level: str, ids: Tensor) -> None:
    """From ids to the sum of each token, per token in f64; only quantization is imitated."""
    t, hidden, inner = len(ids), K, 128
    x = activations(t, hidden)
    q = quantize_reference(x, (1, 128)) if t else (torch.empty(0, hidden), torch.empty(0, 2))
    up, down = experts_of(inner, hidden), experts_of(hidden, inner)
    weights = torch.rand(t, CHOICES, generator=torch.manual_seed(t))
    slots, tokens, indptr = run_route(ids, EXPERTS, level)
    up_text = group_text(
        quantized(-1, hidden),
        quantized(EXPERTS, inner, hidden, block=BLOCK),
        [quantized(-1, CHOICES, inner)],
        CHOICES,
    )
    down_text = group_text(
        quantized(-1, CHOICES, inner),
        quantized(EXPERTS, hidden, inner, block=BLOCK),
        [plain(-1, CHOICES, hidden, dtype="f32")],
    )
    result = plain(-1, hidden, dtype="f32")
    sum_text = combine_text(CHOICES, hidden, "f32", "f32", "f32", residual=False)
    shape = t * CHOICES, [t, CHOICES]
    arguments = [q, pack_experts(*up, BLOCK), indptr, tokens]
    (h,) = run(up_text, level, arguments, [quantized(-1, CHOICES, inner)], *shape)
    arguments = [h, pack_experts(*down, BLOCK), indptr]
    (y,) = run(down_text, level, arguments, [plain(-1, CHOICES, hidden, dtype="f32")], *shape)
    (got,) = run(sum_text, level, [y, slots, weights], [result], t)
    for token in range(t):
        wanted = torch.zeros(hidden, dtype=torch.float64)
        for j, e in enumerate(ids[token].tolist()):
            if 0 <= e < EXPERTS:
                x64 = dequantize_reference(row(q, slice(token, token + 1)), (1, 128))
                h64 = x64 @ dequantize_reference((up[0][e], up[1][e]), BLOCK).T
                h64 = dequantize_reference(quantize_reference(h64.float(), (1, 128)), (1, 128))
                y64 = h64 @ dequantize_reference((down[0][e], down[1][e]), BLOCK).T
                wanted += weights[token, j].double() * y64[0]
        # A value between two codes may go to either: 2^-4 of one of 128.
        assert (got[token] - wanted).norm() <= 0.01 * wanted.norm()


BAD_INDPTR = {
    "not monotone": [0, 20, 3, 60, 10, 12],
    "negative": [-5, -(2**31), 4, -1, 9, 30],
    "beyond the rows": [0, 2**31 - 1, 5, 2**31 - 1, 7, 2**31 - 1],
    "not from zero": [7, 9, 9, 30, 30, 31],
}


@levels
@pytest.mark.parametrize("case", BAD_INDPTR)
@pytest.mark.parametrize("t", [1, 30])
def test_bad_routing_stays_within_bounds(level: str, case: str, t: int) -> None:
    """Whatever indptr and tokens hold; `run` guards the results and the scratch."""
    indptr = torch.tensor(BAD_INDPTR[case], dtype=torch.int32)
    strange = torch.tensor([-1, -(2**31), 2**31 - 1, t], dtype=torch.int32)
    tokens = strange[torch.arange(t * CHOICES) % 4].view(t, CHOICES)
    arguments = [first_rows(X, t), PACKED, indptr, tokens]
    result = plain(-1, CHOICES, N)
    (got,) = run(TEXT, level, arguments, [result], t * CHOICES, [t, CHOICES], threads=3)
    # The experts' ends never decrease, and rows before the first and after the last are nobody's.
    first = min(max(int(indptr[0]), 0), t * CHOICES)
    last = min(max(int(indptr.max()), first), t * CHOICES)
    rows = got.flatten(0, 1)
    assert is_poison(rows[:first]) and is_poison(rows[last:])
    assert all(bool(r.isfinite().all()) and not is_poison(r) for r in rows[first:last])


@levels
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6), st.integers(1, 12))
def test_any_indptr_stays_within_bounds(level: str, indptr: list[int], t: int) -> None:
    values = torch.tensor(indptr)
    values[::2] %= 3 * t + 4
    tokens = torch.arange(t * CHOICES, dtype=torch.int32).view(t, CHOICES)
    arguments = [first_rows(X, t), PACKED, values.int(), tokens]
    run(TEXT, level, arguments, [plain(-1, CHOICES, N)], t * CHOICES, [t, CHOICES], threads=2)
