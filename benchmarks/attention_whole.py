"""For benchmarks/attention.py: exact attention on a few batches, refined on all images."""

import argparse
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from attention_setting import Scores, Setting, timed
from scipy.stats import spearmanr

from delta_transfer.attention.estimators.ablation import ExactScorer
from delta_transfer.functional import normalize_scores

SEEDS = range(5)  # of the refined estimator
DRAWS = 50  # of four batches


def on_the_whole(
    setting: Setting, options: argparse.Namespace, naive_seconds: float
) -> list[dict[str, Any]]:
    """Exact on four batches, as the authors have it, against estimates from all images.

    Args:
        setting: with all images.
        options: of the command.
        naive_seconds: of the naive loop for an image.
    """
    total = sum(len(targets) for _, targets in setting.whole)
    with setting.with_probe(setting.model) as model:
        exact = ExactScorer(
            model, taps=setting.taps, loss=F.cross_entropy, precision=options.precision
        )
        scored, seconds = timed(
            setting.device,
            lambda: [
                exact(inputs.to(setting.device), targets.to(setting.device)).scores
                for inputs, targets in setting.whole
            ],
        )
    each = {tap: torch.cat([part[tap] for part in scored]).double().cpu() for tap in setting.taps}
    truth = {tap: scores.mean(dim=0) for tap, scores in each.items()}
    rows = [{"method": f"exact, all {total}", "seconds": seconds, "naive": naive_seconds * total}]
    draw = torch.Generator().manual_seed(0)
    for samples in (4 * 32, 4 * 64):
        if samples < total:
            picked = [torch.randperm(total, generator=draw)[:samples] for _ in range(DRAWS)]
            draws = [{tap: each[tap][some].mean(dim=0) for tap in each} for some in picked]
            share = samples / total
            name = f"exact, 4 batches of {samples // 4}"
            times = {"seconds": seconds * share, "naive": naive_seconds * samples}
            rows.append({"method": name, **times, **nearness(draws, truth)})
    for method, seeds in (("refined", SEEDS), ("gradient", range(1))):
        runs = [
            timed(
                setting.device,
                lambda method=method, seed=seed: setting.estimate(
                    setting.whole, method, options, seed
                ),
            )
            for seed in seeds
        ]
        median = statistics.median(took for _, took in runs)
        near = nearness([attention.scores for attention, _ in runs], truth)
        rows.append({"method": f"{method}, all {total}", "seconds": median, "naive": None, **near})
    return rows


def nearness(estimates: list[Scores], truth: Scores) -> dict[str, dict[str, float]]:
    """Means over estimates: Spearman, and the relative distance of attention at temperature 5."""
    found: dict[str, dict[str, float]] = {"spearman": {}, "distance": {}}
    for tap, scores in truth.items():
        exact = normalize_scores(scores, temperature=5.0)
        spread = (exact - 1 / len(exact)).norm()
        found["spearman"][tap] = statistics.mean(
            float(spearmanr(estimate[tap], scores).statistic) for estimate in estimates
        )
        found["distance"][tap] = statistics.mean(
            float((normalize_scores(e[tap].double(), temperature=5.0) - exact).norm() / spread)
            for e in estimates
        )
    return found


def show_whole(rows: list[dict[str, Any]], taps: tuple[str, ...]) -> None:
    print("\nagainst exact on all images: Spearman / relative distance of attention")
    print(f"{'':28} {'seconds':>8} {'naive':>8} {'  '.join(f'{tap:>12}' for tap in taps)}")
    for row in rows:
        naive = "" if row["naive"] is None else f"{row['naive']:.0f}"
        near = "  ".join(
            f"{row['spearman'][tap]:.3f} / {row['distance'][tap]:.2f}".rjust(12)
            for tap in taps
            if "spearman" in row
        )
        print(f"{row['method']:28} {row['seconds']:8.1f} {naive:>8} {near}")
