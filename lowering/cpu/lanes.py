"""Vectors of sixteen f32: loading, rounding and storing them, and reductions in a fixed order.

Everything is computed in f32.  `Lanes` knows how the level at hand converts: AVX-512 rounds to
bf16 with its own instruction, elsewhere integer arithmetic does it.  (The instruction flushes
bf16 subnormals, numbers below 1.2e-38, to zero; that is the one difference.)  f16 goes through the
CPU's conversions, at the level generic through integer arithmetic, too.
"""

from dataclasses import dataclass

from qfuse.lowering.cpu.emit import F32, I32, LANES, Function, Index, Value, vector
from qfuse.lowering.cpu.fp8 import F16, decode, encode

I16 = vector("i16")
_BF16 = vector("bf16")
_F16 = vector("f16")


@dataclass(frozen=True)
class Lanes:
    """Emits into one function for one level."""

    f: Function
    level: str

    def load(self, source: Value, at: Index, dtype: str, mask: Value | None = None) -> Value:
        """Sixteen elements of `dtype` (f32, bf16 or f16) as f32."""
        if dtype == "f32":
            return self.f.load(source, at, F32, mask)
        return self.extend(self.f.load(source, at, I16, mask), dtype)

    def splat(self, source: Value, at: Index, dtype: str) -> Value:
        """One element of `dtype` in all lanes."""
        if dtype == "f32":
            return self.f.broadcast(self.f.load(source, at, "f32"))
        return self.extend(self.f.broadcast(self.f.load(source, at, "i16"), I16), dtype)

    def extend(self, bits: Value, dtype: str) -> Value:
        """bf16 or f16 patterns as f32; exact."""
        f = self.f
        if dtype == "f16":
            if self.level == "generic":
                return decode(f, bits, F16)
            return f.cast("arith.extf", f.bitcast(bits, _F16), F32)
        if self.level == "avx512":  # one permutation, where widening and a shift are two
            order = [i for lane in range(LANES) for i in (lane, LANES + lane)]
            return f.bitcast(f.shuffle(f.isplat(0, I16), bits, order), F32)
        wide = f.cast("arith.extui", bits, I32)
        return f.bitcast(f.binary("shli", wide, f.isplat(16)), F32)

    def store(
        self, value: Value, target: Value, at: Index, dtype: str, mask: Value | None = None
    ) -> None:
        """Round to `dtype`, to nearest even, and store."""
        if dtype != "f32":
            value = self.narrow(value, dtype)
        self.f.store(value, target, at, mask)

    def store_rounded(
        self, value: Value, target: Value, at: Index, dtype: str, mask: Value | None = None
    ) -> Value:
        """`store`, and what loading it again gives."""
        if dtype == "bf16" and self.level != "avx512":
            rounded = self.round(value, dtype)
            upper = self.f.binary("shrui", self.f.bitcast(rounded, I32), self.f.isplat(16))
            self.f.store(self.f.cast("arith.trunci", upper, I16), target, at, mask)
            return rounded
        stored = value if dtype == "f32" else self.narrow(value, dtype)
        self.f.store(stored, target, at, mask)
        return value if dtype == "f32" else self.extend(stored, dtype)

    def narrow(self, value: Value, dtype: str) -> Value:
        """f32 lanes as bf16 or f16 patterns, rounded to nearest even."""
        f = self.f
        if dtype == "f16":
            if self.level == "generic":
                return encode(f, value, F16)
            return f.bitcast(f.cast("arith.truncf", value, _F16), I16)
        if self.level == "avx512":
            return f.bitcast(f.cast("arith.truncf", value, _BF16), I16)
        upper = f.binary("shrui", self._bf16_bits(value), f.isplat(16))
        return f.cast("arith.trunci", upper, I16)

    def round(self, value: Value, dtype: str) -> Value:
        """What storing as `dtype` and loading again gives."""
        if dtype == "f32":
            return value
        if dtype == "bf16" and self.level != "avx512":
            upper = self.f.binary("andi", self._bf16_bits(value), self.f.isplat(0xFFFF0000))
            return self.f.bitcast(upper, F32)
        return self.extend(self.narrow(value, dtype), dtype)

    def _bf16_bits(self, value: Value) -> Value:
        """Bits whose upper half is the nearest bf16; a NaN becomes the quiet one of its sign."""
        f = self.f
        bits = f.bitcast(value, I32)
        odd = f.binary("andi", f.binary("shrui", bits, f.isplat(16)), f.isplat(1))
        rounded = f.binary("addi", f.binary("addi", bits, f.isplat(0x7FFF)), odd)
        quiet = f.binary("ori", bits, f.isplat(0x00400000))
        return f.select(f.compare("uno", value, value), quiet, rounded)

    def magnitude(self, value: Value) -> Value:
        """Bits of |x|: as integers they order like the numbers, with inf and then NaN on top."""
        return self.f.binary("andi", self.f.bitcast(value, I32), self.f.isplat(0x7FFFFFFF))

    def sum(self, value: Value) -> Value:
        """Sum of the lanes, halving the vector each time: one order everywhere."""
        return self._halve(value, "addf")

    def count(self, value: Value) -> Value:
        """Sum of the lanes of an i32 vector."""
        return self._halve(value, "addi")

    def largest(self, value: Value) -> Value:
        """Largest lane of an i32 vector."""
        return self._halve(value, "maxsi")

    def _halve(self, value: Value, name: str) -> Value:
        f = self.f
        width = LANES
        while width > 1:
            width //= 2
            low = f.shuffle(value, value, range(width))
            high = f.shuffle(value, value, range(width, 2 * width))
            value = f.binary(name, low, high)
        return self.first(value)

    def first(self, value: Value) -> Value:
        """The first lane."""
        element = value.type.rpartition("x")[2].rstrip(">")
        return self.f.op(f"vector.extract {value}[0] : {element} from {value.type}", element)
