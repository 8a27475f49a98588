"""A rank's result as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from .rank_result import Profile, Projection, RankResult

__all__ = ["report"]


def report(result: RankResult) -> str:
    """The plan, what was measured, where the time went, and what it projects."""
    parts = [_head(result), _memory(result), _steps(result)]
    parts += [_profile(name, profile) for name, profile in result.profiles.items()]
    parts.append(_projections(result))
    lines: list[str] = []
    for part in parts:
        lines += ["", *part] if lines else list(part)
    if result.interrupted:
        lines += ["", "interrupted: what was complete by then"]
    return "\n".join(line.rstrip() for line in lines)


def _head(result: RankResult) -> Iterator[str]:
    s, shape = result.settings, result.shape
    experts = f", {shape.top_k} of {shape.experts} experts" if shape.experts else ""
    yield f"rank {s.rank} of {s.world} of {shape.name}: {shape.layers} layers{experts}, drafter with blocks of {shape.block}"
    where = f"measured on {result.machine['gpu']}" if "gpu" in result.machine else "not measured: a plan"
    yield f"{where}; random weights, experts in MXFP4; routing {s.routing}, {s.context} positions before a step"
    yield f"version {result.version}" + (f", commit {result.commit}" if result.commit else "")


def _memory(result: RankResult) -> Iterator[str]:
    for path, items in result.memory.items():
        yield f"memory of the GPU, {path} path" + ("" if result.machine else f" (if it is an {result.planned_for})")
        for name, count in items:
            if count:
                yield f"  {count / 1e9:10.3f} GB  {name}"
    ring, activations = result.shared_memory
    yield f"shared memory of a resident CTA: {ring:,} B of weights loaded ahead, {activations:,} B of activations"


def _steps(result: RankResult) -> Iterator[str]:
    for path, samples in result.samples.items():
        if copy := samples.get("copy"):
            spread = f"{min(copy) / 1e12:.2f} to {max(copy) / 1e12:.2f}"
            yield f"copy bandwidth {_tera(result.median(path, 'copy'))} TB/s, read and written together ({spread}), beside {path}"
    yield f"{'':20}{'GB read':>9}{'ms':>10}{'min':>9}{'max':>9}{'TB/s':>7}{'of copy':>9}{'x plain':>9}"
    for width in result.settings.widths:
        yield from _work(result, f"step {width}", result.step_bytes(width), result.modelled[width].time)
    block = result.shape.block
    drafting = result.modelled_rounds[block].time - result.modelled[block].time if block in result.modelled_rounds else None
    yield from _work(result, "draft", result.draft_bytes(), drafting)
    experts = ", ".join(f"{result.expected_experts(width):.1f} at width {width}" for width in result.settings.widths)
    if result.shape.experts:
        yield f"distinct experts of a layer, expected: {experts}"
    share, world = f"{result.assume.fraction:.0%}", result.settings.world
    yield f"model: {share} of the bandwidth of an {result.planned_for}, with waits, sampling and what {world} ranks tell each other"
    if result.samples:
        yield "measured: without sampling and without what ranks tell each other; the drafter's features stay on the GPU"


def _work(result: RankResult, name: str, size: float, modelled: float | None) -> Iterator[str]:
    if modelled is not None:
        yield f"{name + ', model':<20}{size / 1e9:9.3f}{1e3 * modelled:10.3f}"
    for path, samples in result.samples.items():
        values = samples.get(name)
        if not values:
            continue
        read = result.median(path, name.replace("step", "bytes")) if name != "draft" else size
        share, ratio = result.fraction(path, name), result.ratio(name, path) if path != "plain" else None
        times = f"{1e3 * (result.median(path, name) or 0):10.3f}{1e3 * min(values):9.3f}{1e3 * max(values):9.3f}"
        text = f"{name + ', ' + path:<20}{(read or size) / 1e9:9.3f}{times}{_tera(result.rate(path, name)):>7}"
        yield text + (f"{share:9.0%}" if share is not None else f"{'':9}") + (f"{ratio:9.2f}" if ratio is not None else "")


def _tera(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e12:.2f}"


def _profile(name: str, profile: Profile) -> Iterator[str]:
    yield f"{name}: once, by the stamps of its CTAs or tasks (clock of {profile.tick} ns): {1e3 * profile.seconds:.3f} ms"
    yield f"  {'':13}{'stages':>9}{'us':>10}{'share':>7}{'gaps us':>9}{'TB/s':>7}{'SMs busy':>10}"
    for phase in sorted(profile.phases, key=lambda phase: -phase.seconds):
        rate = f"{phase.bytes / phase.seconds / 1e12:7.2f}" if phase.bytes and phase.seconds else f"{'-':>7}"
        share = phase.seconds / profile.seconds if profile.seconds else 0.0
        times = f"{1e6 * phase.seconds:10.1f}{share:7.1%}{1e6 * phase.gap:9.1f}"
        yield f"  {phase.name:<13}{phase.launches:9}{times}{rate}{phase.busy:10.0%}"
    gaps = sum(phase.gap for phase in profile.phases)
    busy = sorted(profile.sm_busy)
    if busy:
        spread = f"{busy[0]:.0%} (least), {busy[len(busy) // 2]:.0%} (median), {busy[-1]:.0%} (most)"
        yield f"  between stages {1e6 * gaps:.1f} us; a multiprocessor is busy {spread} of the step"


def _projections(result: RankResult) -> Iterator[str]:
    world = result.settings.world
    yield f"projected speed of {world} GPUs, one sequence (not measured: tokens a round / (time + communication))"
    for projection in result.projections():
        yield from _projection(result, projection)


def _projection(result: RankResult, p: Projection) -> Iterator[str]:
    kind = "width 1, no drafts" if p.width == 1 else f"width {p.width} with drafts"
    speeds = ", ".join(f"{speed:.0f} at {tokens:g}" for tokens, speed in p.speeds)
    if p.path is not None:
        us = 1e6 * result.assume.all_reduce
        more = f"{p.exchanges} exchanges of {us:g} us ({1e3 * p.communication:.3f} ms)"
        how = f"{1e3 * p.seconds:.3f} ms measured ({p.path}) + {more}"
    else:
        how = f"{1e3 * p.seconds:.3f} ms by the model"
    yield f"  {kind:<20} {speeds} tokens/s: {how}"
