"""The fusion report: which patterns fired, which did not and why, and what that saved."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


ON_TORCH = "on-torch"
"""The name under which compiler/on_torch.py refuses what runs on torch."""


@dataclass(frozen=True)
class Savings:
    """What a fusion saves in one call: launches, and bytes that are no longer read or written.

    `bytes_per_row` counts for each row of what has dynamic extents, each token in a model.
    """

    launches: int = 0
    bytes: int = 0
    bytes_per_row: int = 0

    def __add__(self, other: "Savings") -> "Savings":
        return Savings(
            self.launches + other.launches,
            self.bytes + other.bytes,
            self.bytes_per_row + other.bytes_per_row,
        )

    def __sub__(self, other: "Savings") -> "Savings":
        return self + Savings(-other.launches, -other.bytes, -other.bytes_per_row)

    def of_rows(self, rows: int) -> int:
        """Bytes saved in a call with so many rows."""
        return self.bytes + rows * self.bytes_per_row

    def __str__(self) -> str:
        parts = []
        if self.launches:
            parts.append(f"{self.launches} launch{'es' if self.launches != 1 else ''}")
        if self.bytes:
            parts.append(f"{self.bytes} B")
        if self.bytes_per_row:
            parts.append(f"{self.bytes_per_row} B a row")
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True)
class PatternReport:
    """How often a pattern fired and declined; `reasons` counts each cause of declining.

    `saves` adds up what it saved where it fired; None for a pattern that is no fusion.
    """

    name: str
    fired: int
    refused: int
    reasons: tuple[tuple[str, int], ...] = ()
    saves: Savings | None = None


@dataclass(frozen=True)
class OnTorch:
    """Operations of one name that stay on torch for one reason; `places` counts where they are.

    `pattern` is the one that declined them, or ON_TORCH in the list of all of them.
    """

    op: str
    pattern: str
    reason: str
    places: Mapping[str, int]

    @property
    def count(self) -> int:
        return sum(self.places.values())


@dataclass(frozen=True)
class ExpertLayer:
    """Launches of one layer of experts, without fusion and with it.

    They reach from its router to its experts' sum, a shared expert included; what exactly belongs
    to a layer, `compiler/expert_layers.py` says.  `weight` names its experts' first weights.
    """

    weight: str
    before: int
    after: int


@dataclass(frozen=True)
class Norms:
    """How many norms there are, and how many quantize what they make; why the others do not."""

    total: int
    fused: int
    others: Mapping[str, int]

    def __str__(self) -> str:
        text = f"{self.fused} of {self.total} norms quantize what they make"
        reasons = (f"{count} because {why}" for why, count in self.others.items())
        return "; ".join([text, *reasons])


@dataclass(frozen=True)
class Report:
    """What fusion did to a program.

    `matches` has every match attempted, in order, as `Remark.to_json` of compiler/remarks.py has
    it: where, why and what would help, and what it saves; `patterns` counts them.
    `before` and `after` are the launches and bytes of one call, as `Profile.to_json` has them,
    of the program without fusion and of the one that runs; None where nobody measured.
    `expert_layers` has the layers of experts in program order; None where there are none, or none
    that run as experts' products; `norms` counts norms, None where there are none.
    `str(report)` is plain text; rich renders it as tables.
    """

    patterns: tuple[PatternReport, ...]
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    expert_layers: tuple[ExpertLayer, ...] | None = None
    norms: Norms | None = None
    matches: tuple[Mapping[str, Any], ...] = ()
    tuning: Mapping[str, Any] | None = None
    """What compiler/tuning.py says of products, for a program of a CPU."""

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Report":
        """Read what the compiler stored with the program.

        `remarks` lists remarks with `outcome` ("fired" or "refused"), `pattern`, `cause`, `cure`
        and `saves` (the fields of Savings, or None); `patterns` names all that ran, so that those
        without a remark are listed, too; `before` and `after` are profiles; `expert_layers` lists
        the fields of each ExpertLayer, `norms` has those of Norms; `tuning` is that of
        compiler/tuning.py.  Every key may be absent.
        """
        norms = Norms(**data["norms"]) if data.get("norms") else None
        fired: Counter[str] = Counter()
        saved: dict[str, Savings] = {}
        reasons: dict[str, Counter[str]] = {}
        names = dict.fromkeys(data.get("patterns") or ())
        for remark in data.get("remarks") or ():
            name = remark["pattern"]
            names.setdefault(name)
            if remark["outcome"] == "fired":
                fired[name] += 1
                if (saves := remark.get("saves")) is not None:
                    saved[name] = saved.get(name, Savings()) + Savings(**saves)
            else:
                texts = (remark.get("cause", ""), remark.get("cure", ""))
                reason = "; ".join(t for t in texts if t) or "no reason given"
                reasons.setdefault(name, Counter())[reason] += 1
        return Report(
            tuple(
                PatternReport(
                    name,
                    fired[name],
                    sum(reasons.get(name, Counter()).values()),
                    tuple(reasons.get(name, Counter()).most_common()),
                    saved.get(name),
                )
                for name in names
            ),
            data.get("before"),
            data.get("after"),
            tuple(ExpertLayer(**layer) for layer in data.get("expert_layers") or ()) or None,
            norms if norms is not None and norms.total else None,
            tuple(data.get("remarks") or ()),
            data.get("tuning"),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: patterns with counts, reasons and what they saved, every match attempted,
        both profiles, layers of experts, norms, tunables of products."""
        return {
            "patterns": {
                p.name: {
                    "fired": p.fired,
                    "refused": p.refused,
                    "reasons": dict(p.reasons),
                    "saves": asdict(p.saves) if p.saves else None,
                }
                for p in self.patterns
            },
            "matches": [dict(match) for match in self.matches],
            "before": dict(self.before) if self.before else None,
            "after": dict(self.after) if self.after else None,
            "expert_layers": [asdict(e) for e in self.expert_layers]
            if self.expert_layers
            else None,
            "norms": asdict(self.norms) if self.norms else None,
            "tuning": dict(self.tuning) if self.tuning else None,
        }

    def on_torch(self) -> list[OnTorch]:
        """What stays on torch, by kind: what patterns declined of it, then every launch."""
        refused = [match for match in self.matches if match["outcome"] == "refused"]
        left = {(m["op"], m["location"]) for m in refused if m["pattern"] == ON_TORCH}
        found: dict[tuple[str, str, str], Counter[str]] = {}
        for match in refused:
            if (match["op"], match["location"]) in left:
                reason = "; ".join(filter(None, (match["cause"], match["cure"])))
                key = (match["op"], match["pattern"], reason)
                found.setdefault(key, Counter())[match["location"]] += 1
        kinds = [OnTorch(*key, dict(places)) for key, places in found.items()]
        return sorted(kinds, key=lambda kind: (kind.pattern == ON_TORCH, -kind.count))

    def most_of_an_expert_layer(self) -> tuple[int, int] | None:
        """Launches before and after of the layer of experts that has the most, or None."""
        counts = [(layer.after, layer.before) for layer in self.expert_layers or ()]
        return max(counts)[::-1] if counts else None

    def __str__(self) -> str:
        lines = []
        if self.patterns:
            width = max(len(p.name) for p in self.patterns)
            saves = [str(p.saves or "") for p in self.patterns]
            wide = max(map(len, ["saves", *saves]))
            lines.append(f"{'pattern':{width}}  fired  refused  {'saves':{wide}}  reasons")
            for p, saved in zip(self.patterns, saves, strict=True):
                first, *rest = [f"{n} x {text}" for text, n in p.reasons] or [""]
                counts = f"{p.name:{width}}  {p.fired:5}  {p.refused:7}  {saved:{wide}}"
                lines.append(f"{counts}  {first}".rstrip())
                lines += [f"{'':{len(counts)}}  {text}" for text in rest]
        if self.norms:
            lines.append(str(self.norms))
        if tuned := self.tuned_text():
            lines.append(tuned)
        lines += [f"{name}: {before} -> {after}" for name, before, after in self.savings()]
        return "\n".join(lines)

    def __rich__(self) -> "RenderableType":
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        patterns = Table("pattern", "fired", "refused", "saves", "reasons", title="Fusion")
        for p in self.patterns:
            reasons = "\n".join(f"{n} x {escape(text)}" for text, n in p.reasons)
            patterns.add_row(p.name, str(p.fired), str(p.refused), str(p.saves or ""), reasons)
        savings = Table("per call", "before", "after")
        for row in self.savings():
            savings.add_row(*row)
        shown: list[RenderableType] = [patterns]
        if self.norms:
            shown.append(escape(str(self.norms)))
        if tuned := self.tuned_text():
            shown.append(escape(tuned))
        if savings.row_count:
            shown.append(savings)
        return Group(*shown)

    def tuned_text(self) -> str | None:
        """How many products have tuned kernels, for people; None where there is nothing to say."""
        if not self.tuning or not self.tuning["products"]:
            return None
        products = self.tuning["products"]
        measured = sum(bool(row["measured"]) for row in products)
        tuned = sum(bool(row["tuned"]) for row in products)
        return (
            f"tuning {self.tuning['mode']}: of {len(products)} products {measured} measured, "
            f"{tuned} with other values than the defaults ({self.tuning['cpu']}, "
            f"{self.tuning['threads']} threads)"
        )

    def savings(self) -> list[tuple[str, str, str]]:
        """What is known of a call without fusion and with it: (what, before, after), as text."""
        before, after = self.before or {}, self.after or {}
        rows = []
        for key, name, show in (
            ("launches", "launches", str),
            ("bytes", "bytes moved", size_text),
        ):
            if key in before or key in after:
                texts = [show(p[key]) if key in p else "not measured" for p in (before, after)]
                rows.append((name, texts[0], texts[1]))
        layers = Counter((layer.before, layer.after) for layer in self.expert_layers or ())
        for (unfused, fused), count in layers.items():
            of_all = "" if len(layers) == 1 else f", {count} of {layers.total()} layers"
            rows.append((f"launches per MoE layer{of_all}", str(unfused), str(fused)))
        return rows


def size_text(count: int) -> str:
    """`1536` as `1.5 KiB`."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
