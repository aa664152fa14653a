"""What tests of a search share: short settings, and a quality that costs nothing."""

from ganprune.experiments.trials import SearchConfig


def config(**changes):
    return SearchConfig(
        **{"trials": 5, "finetune_steps": 0, "batch_size": 4, "precision": "float32", **changes}
    )


class Quality:
    """The mean distance of the pruned weights to a target: cheap, and worse the more is pruned. Notes its calls."""

    def __init__(self, interrupt_at=None, bad_at=None):
        self.splits, self.interrupt_at, self.bad_at = [], interrupt_at, bad_at

    def __call__(self, gan, split):
        self.splits.append(split.name)
        if len(self.splits) == self.interrupt_at:
            raise KeyboardInterrupt
        if len(self.splits) == self.bad_at:
            return {"digit_fid": float("nan")}
        weights = [p.detach().abs().sum() for p in gan.generator_ema.parameters() if p.ndim == 2]
        return {"digit_fid": 100 / float(sum(weights)), "split": split.name}
