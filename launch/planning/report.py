"""A plan as text."""

from typing import TYPE_CHECKING

from launch.planning.memory import GIB, Line, peak

if TYPE_CHECKING:
    from launch.plan import Plan

FEW = 5  # lines of activations that are shown; the rest is added up
DAY, HOUR = 86400, 3600
WORDS = {"W": "weights that are trained", "F": "frozen", "M": "float32 masters"}
KEPT_BY_GLIBC = "  and up to .45 of it in freed blocks, unless MALLOC_MMAP_THRESHOLD_=1048576 is set, which costs time"


def report(plan: "Plan", speed: float | None, source: str) -> str:
    """Return the plan, all in one."""
    parts = [_model(plan), _memory(plan), _lines(plan), _activations(plan), _run(plan, speed, source)]
    return "\n\n".join("\n".join(part) for part in parts)


def _model(plan: "Plan") -> list[str]:
    sizes, name = plan.sizes, plan.resolved.get("model.class")
    frozen = f", {sizes.frozen:,} of them frozen" if sizes.frozen else ""
    return [f"{name}: {sizes.trained + sizes.frozen:,} parameters{frozen}; a vocabulary of {plan.vocab_size:,}"]


def _memory(plan: "Plan") -> list[str]:
    """Show every strategy in a column: the lines by name, and the peak."""
    names = list(plan.memory)
    rows = dict.fromkeys(line.name for lines in plan.memory.values() for line in lines)
    ranks = {name: 1 if name == "single" else plan.ranks for name in names}
    head = ["GiB of a rank", *(f"{name}" for name in names)]
    table = [head, ["ranks", *(str(ranks[name]) for name in names)]]
    for row in rows:
        cells = [sum(line.bytes for line in plan.memory[name] if line.name == row) for name in names]
        table.append([row, *(_gib(cell) if cell else "-" for cell in cells)])
    places = [("peak", None)] if not plan.on_gpu else [("peak of the GPU", False), ("peak of host memory", True)]
    for title, place in places:
        table.append([title, *(_gib(peak(plan.memory[name], place)) for name in names)])
    kind = "GPUs" if plan.on_gpu else "CPUs"
    accelerator = plan.resolved.get("trainer.accelerator") or "auto"
    guessed = "; trainer.accelerator is auto: what this machine has" if accelerator == "auto" else ""
    note = "the lines are not all there at the same time: the peak is the largest sum of those that are"
    return [f"memory on {kind}{guessed} ({note})", *_aligned(table)]


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]


def _lines(plan: "Plan") -> list[str]:
    """Show the formulas of the strategy that is configured."""
    lines = plan.memory.get(plan.strategy)
    if lines is None:
        return [f"strategy {plan.strategy}: is not one of launch's; its memory is not planned"]
    known = {"W": plan.sizes.trained * plan.size, "F": plan.sizes.frozen * plan.size}
    known |= {"M": plan.sizes.trained * 4} if plan.size < 4 else {}
    values = [f"{name} = {_gib(value)} GiB ({WORDS[name]})" for name, value in known.items()]
    ranks = 1 if plan.strategy == "single" else plan.ranks
    top = f"peak {_gib(peak(lines, False if plan.on_gpu else None))} GiB"
    found = [f"strategy {plan.strategy}: {top}; {', '.join(values)}, N = {ranks} ranks"]
    table = [[line.name, _gib(line.bytes), _when(line), line.formula] for line in lines]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    if not plan.on_gpu and plan.strategy not in ("single", "ddp"):
        found.append(KEPT_BY_GLIBC)
    return found + [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in table]


def _when(line: Line) -> str:
    if len(line.phases) == 4:
        return "always"
    return ", ".join(phase for phase in ("backward", "exchange", "update", "between") if phase in line.phases)


def _activations(plan: "Plan") -> list[str]:
    get = plan.resolved.get
    micro, length = get("data.micro_batch_size"), get("data.sequence_length")
    total = sum(part.bytes for part in plan.kept)
    largest = sorted(plan.kept, key=lambda part: -part.bytes)
    texts = f" x {plan.texts_per_example} texts" if plan.texts_per_example > 1 else ""
    title = f"activations of a micro-batch of {micro}{texts} x {length} tokens, {get('trainer.precision') or '32-true'}"
    shown = [f"  {_gib(part.bytes):>9}  {part.name}: {part.formula}" for part in largest[:FEW]]
    rest = sum(part.bytes for part in largest[FEW:])
    more = [f"  {_gib(rest):>9}  {len(largest) - FEW} smaller ones"] if rest else []
    return [f"{title}: {_gib(total)} GiB", *shown, *more]


def _run(plan: "Plan", speed: float | None, source: str) -> list[str]:
    get, steps = plan.resolved.get, plan.resolved.get("trainer.max_steps")
    batch, micro = get("data.global_batch_size"), get("data.micro_batch_size")
    ranks = 1 if plan.strategy == "single" else plan.ranks
    tokens = plan.tokens_per_step
    things = "sequences" if plan.texts_per_example == 1 else f"examples of {plan.texts_per_example} texts or more"
    cut = f"{ranks} ranks x {batch // (ranks * micro)} micro-batches x {micro}"
    lines = [
        f"step: {batch} {things} = {cut}, at most {tokens:,} tokens",
        f"run: {steps:,} steps, at most {steps * tokens:,} tokens",
        f"checkpoint: {_gib(plan.checkpoint_bytes)} GiB (weights and two moments of what is trained, frozen weights)",
    ]
    if count := plan.kept_checkpoints:
        lines.append(
            f"disk: {_gib(count * plan.checkpoint_bytes)} GiB for {count} checkpoints, one of them being written"
        )
    if speed is None:
        lines.append("time: give --tokens-per-second X, or --from RUN for what a run has measured")
    else:
        seconds = steps * tokens / speed
        lines.append(f"time: {_time(seconds)} at {speed:,.0f} tokens/s ({source})")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _time(seconds: float) -> str:
    if seconds >= 2 * DAY:
        return f"{seconds / DAY:.1f} days"
    if seconds >= HOUR:
        return f"{seconds / HOUR:.1f} hours"
    return f"{seconds / 60:.1f} minutes"
