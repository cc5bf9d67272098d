"""What kernels share that work on rows of one matrix, without a product."""

from collections.abc import Callable, Sequence

from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC, ceil_div
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Grid, Launch, Variant
from qfuse.lowering.triton.product import SCALE_TYPES
from qfuse.lowering.triton.signature import LaunchBuilder, Signature, Tensor, open_launch
from qfuse.lowering.triton.tile import Tile

MAX_COLUMNS = 32768
"""Elements of a row that one program holds."""

_ELEMENTS = 1024
"""Elements that a program without reductions works on: 8 for each thread of 4 warps."""

_PER_WARP = 512


def build_rows(
    signature: Signature,
    gpu: Gpu,
    width: int,
    *,
    whole_rows: bool,
    finds: Sequence[bool] | None = None,
    body: Callable[[LaunchBuilder, Tile], None],
) -> list[Variant]:
    """One launch for any M whose programs each run `body` on a tile of a [M, width] matrix.

    The tile spans whole rows where asked for, or where a result is quantized per row.  `finds` is
    which results, where they are quantized, find their scales: all, or those not given beforehand.
    """
    made = zip(signature.results, finds or [True] * len(signature.results), strict=True)
    quantized = [r for r, finds_scale in made if r.shaped.quantized and finds_scale]
    whole_rows |= any(r.group >= width for r in quantized)
    groups = [r.group for r in quantized if r.group < width]
    columns = power_of_two(width)
    if not whole_rows:
        columns = min(columns, max([_ELEMENTS, *groups]))
    tensors = [*signature.operands, *signature.results]
    return [Variant(1, None, (rows_launch(gpu, signature.name, tensors, width, columns, body),))]


def rows_launch(
    gpu: Gpu,
    name: str,
    tensors: Sequence[Tensor],
    width: int,
    columns: int | None,
    body: Callable[[LaunchBuilder, Tile], None],
    scratch: str | None = None,
) -> Launch:
    """A launch whose programs each run `body` on a tile of a [M, width] matrix.

    `columns` are those of a tile, by default as many as a program without reductions does well
    with; `scratch` is as in `open_launch`.
    """
    if columns is None:
        columns = min(power_of_two(width), _ELEMENTS)
    rows = max(1, min(16, _ELEMENTS // columns))
    tiles = ceil_div(width, columns)
    warps = max(1, min(16, rows * columns // _PER_WARP))
    once = {(t.source, t.index): t for t in tensors}
    with open_launch(
        gpu,
        name,
        list(once.values()),
        Grid(rows, tiles),
        scratch=scratch,
        num_warps=warps,
        num_stages=1,
    ) as launch:
        b = launch.b
        number = b.program_id(0)
        row = b.mul(b.div(number, tiles) if tiles > 1 else number, rows)
        column = b.mul(b.rem(number, tiles), columns) if tiles > 1 else b.full(0)
        body(launch, Tile(b, launch.pointers, row, rows, column, columns, width))
    return launch.made


def row_error(value: Shaped) -> str | None:
    """Why rows of `value` cannot be worked on whole, or None."""
    if not value.shape or value.shape[-1] == DYNAMIC:
        return f"the last dimension of {value} must be static"
    if value.shape[-1] == 0:
        return f"{value} holds no elements"
    if value.shape[-1] > MAX_COLUMNS:
        return f"a row has {value.shape[-1]} elements; GPU kernels hold at most {MAX_COLUMNS}"
    return None


def quantized_error(result: Shaped) -> str | None:
    """Why no row kernel can quantize to `result`, or None."""
    scheme = result.scheme
    assert scheme is not None
    width, group = result.shape[-1], scheme.block[1]
    if scheme.scale not in SCALE_TYPES:
        return f"scales of {scheme.scale}; GPU kernels write {', '.join(SCALE_TYPES)}"
    if group < width and group & (group - 1):
        return f"groups of {group}; use a power of two, or one group per row"
    if group >= width and width > MAX_COLUMNS:
        return f"one scale per row of {width} elements; rows have at most {MAX_COLUMNS}"
    return None


def results_error(results: Sequence[Shaped], finds: Sequence[bool] | None = None) -> str | None:
    """Why a row kernel cannot make one of `results`; `finds` as for `build_rows`."""
    for i, result in enumerate(results):
        finds_scale = finds is None or finds[i]
        if result.quantized and finds_scale and (why := quantized_error(result)):
            return f"result {i} has {why}"
    return None


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()
