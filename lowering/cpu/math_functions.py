"""exp, tanh and erf on vectors of f32, as polynomials.

Relative error about 1e-7 (one or two units in the last place), right at infinities and NaN, with
gradual underflow; no call leaves the kernel.  `test_math_functions.py` holds the bounds.
"""

from collections.abc import Sequence

from qfuse.lowering.cpu.emit import F32, I32, Function, Value

_LOG2E = 1.4426950408889634
# ln 2 in two parts: the first has trailing zeros, so that n times it is exact.
_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.42860677e-06
# 1.5 * 2^23: adding it rounds a small number to an integer, whose bits are then the low ones.
_ROUND = 12582912.0


def exp(f: Function, x: Value) -> Value:
    """e^x: inf above 88.72, 0 below -103.97."""
    # Comparisons with NaN are false, so NaN passes the clamps; beyond them the result is settled.
    low, high = f.splat(-105.0), f.splat(90.0)
    clamped = f.select(f.compare("olt", x, low), low, x)
    clamped = f.select(f.compare("ogt", clamped, high), high, clamped)
    shifted = f.fma(clamped, f.splat(_LOG2E), f.splat(_ROUND))
    n = f.sub(shifted, f.splat(_ROUND))
    power = f.binary("subi", f.bitcast(shifted, I32), f.bitcast(f.splat(_ROUND), I32))
    r = f.fma(n, f.splat(-_LN2_HIGH), clamped)
    r = f.fma(n, f.splat(-_LN2_LOW), r)
    p = _polynomial(
        f,
        r,
        [
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ],
    )
    p = f.add(f.fma(p, f.mul(r, r), r), f.splat(1.0))
    # 2^n in two factors, since n may be -152 or 130, where 2^n itself is no normal number.
    half = f.binary("shrsi", power, f.isplat(1))
    rest = f.binary("subi", power, half)
    return f.mul(f.mul(p, _power_of_two(f, half)), _power_of_two(f, rest))


def tanh(f: Function, x: Value) -> Value:
    """Near 0 an odd polynomial, elsewhere 1 - 2 / (e^(2|x|) + 1) with the sign of x."""
    bits = f.bitcast(x, I32)
    magnitude = f.bitcast(f.binary("andi", bits, f.isplat(0x7FFFFFFF)), F32)
    e = exp(f, f.add(magnitude, magnitude))
    one = f.splat(1.0)
    far = f.sub(one, f.div(f.splat(2.0), f.add(e, one)))
    square = f.mul(x, x)
    p = _polynomial(
        f,
        square,
        [
            -5.70498872745e-3,
            2.06390887954e-2,
            -5.37397155531e-2,
            1.33314422036e-1,
            -3.33332819422e-1,
        ],
    )
    near = f.fma(f.mul(p, square), x, x)
    result = f.select(f.compare("olt", magnitude, f.splat(0.625)), near, far)
    # of -0, too, which `near` loses
    sign = f.binary("andi", bits, f.isplat(0x80000000))
    return f.bitcast(f.binary("ori", f.bitcast(result, I32), sign), F32)


def erf(f: Function, x: Value) -> Value:
    """Near 0 an odd polynomial, elsewhere 1 - e^q(|x|) with the sign of x."""
    bits = f.bitcast(x, I32)
    t = f.bitcast(f.binary("andi", bits, f.isplat(0x7FFFFFFF)), F32)
    # Beyond 4 the result is 1 in f32, and q would lose its shape.
    t = f.select(f.compare("ogt", t, f.splat(4.0)), f.splat(4.0), t)
    square = f.mul(x, x)
    q = _polynomial(
        f,
        t,
        [
            -1.72853470e-5,
            3.83197126e-4,
            -3.88396438e-3,
            2.42546219e-2,
            -1.06777877e-1,
            -6.34846687e-1,
            -1.28717512e-1,
        ],
    )
    far = f.sub(f.splat(1.0), exp(f, f.fma(q, t, f.mul(t, f.splat(-1.0)))))
    sign = f.binary("andi", bits, f.isplat(0x80000000))
    far = f.bitcast(f.binary("ori", f.bitcast(far, I32), sign), F32)
    p = _polynomial(
        f,
        square,
        [
            -5.96761703e-4,
            4.99119423e-3,
            -2.67681349e-2,
            1.12819925e-1,
            -3.76125336e-1,
            1.28379166e-1,
        ],
    )
    near = f.fma(p, x, x)
    # Written so that NaN takes the near branch, which keeps it.
    return f.select(f.compare("ogt", t, f.splat(0.927734375)), far, near)


def _polynomial(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's rule, highest power first."""
    result = f.splat(coefficients[0])
    for c in coefficients[1:]:
        result = f.fma(result, x, f.splat(c))
    return result


def _power_of_two(f: Function, n: Value) -> Value:
    biased = f.binary("addi", n, f.isplat(127))
    return f.bitcast(f.binary("shli", biased, f.isplat(23)), F32)
