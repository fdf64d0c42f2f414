"""A metric's name: does validation log it, may a higher value be better, and which name was meant instead?"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MORE = """
acc accuracy auc auroc auprc f1 fbeta precision recall sensitivity specificity iou miou dice jaccard map ap mar bleu
sacrebleu chrf rouge meteor cider r2 psnr ssim snr sdr ndcg mrr hit hits score scores bertscore reward rewards return
returns kappa mcc corrcoef pearson spearman correlation similarity likelihood elbo match success top topk
"""
"""Words in names of metrics for which higher is better, as a rule."""

LESS = """
loss losses error errors err perplexity ppl nll negative neg mae mse rmse mape fid kid wer cer ter brier ece entropy
divergence distance cost regret
"""
"""Words which say that lower is better, whatever else the name says."""

SCORES, COSTS = frozenset(MORE.split()), frozenset(LESS.split())
VALIDATION = frozenset({"val", "valid", "validation"})
TRAINING = frozenset({"train", "training"})


def words(name: str) -> set[str]:
    """The words of a name in lower case, each with and without its digits.

    Example:
        >>> sorted(words("val/top5-MulticlassAUROC"))
        ['auroc', 'multiclass', 'multiclassauroc', 'top', 'top5', 'val']
    """
    apart = re.split(r"[\W_]+", name) + re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    found = {word.lower() for word in apart}
    return (found | {word.rstrip("0123456789") for word in found}) - {""}


def looks_like_a_score(name: str) -> bool:
    """Whether a higher value may be better: a reason to ask the user, never to decide.

    Example:
        >>> [looks_like_a_score(name) for name in ("val_acc", "val_loss", "val_dice_loss", "map50", "recap")]
        [True, False, False, True, False]
    """
    found = words(name)
    return bool(found & SCORES) and not found & COSTS


def of_validation(name: str) -> bool:
    """Whether the name says that validation logs it."""
    return bool(words(name) & VALIDATION)


def of_training(name: str) -> bool:
    """Whether the name says that training logs it."""
    return bool(words(name) & TRAINING)


def closest(name: str, names: Iterable[str], alike: float = 0.6) -> str | None:
    """The name that was probably meant, or None.

    Args:
        name: the name that was given.
        names: the names that exist.
        alike: the least similarity of the two, a share in [0, 1].

    Example:
        >>> closest("val_los", ["train_loss", "val_loss"]), closest("Val/Loss", ["val_loss"])
        ('val_loss', 'val_loss')
        >>> closest("val_loss", ["val_loss/dataloader_idx_0"]), closest("val_loss", ["train_acc"])
        ('val_loss/dataloader_idx_0', None)
    """
    plain = {_plain(other): other for other in sorted(names, reverse=True)}
    longer = sorted(other for other in plain if other.startswith(_plain(name)))
    found = longer or difflib.get_close_matches(_plain(name), plain, 1, alike)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.lower())
