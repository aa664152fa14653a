"""How good a generator is (``fidelity``) and how large (``complexity``), with the features of a classifier."""

from ganprune.metrics.classifier import (
    ClassifierConfig,
    DigitClassifier,
    ImageClassifier,
    accuracy,
    train_classifier,
)
from ganprune.metrics.cost import ComplexityReport, Latency, complexity, latency
from ganprune.metrics.extractor import (
    Extractor,
    load_classifier,
    load_digit_classifier,
    load_extractor,
    save_classifier,
)
from ganprune.metrics.fid_kid import fid, kid
from ganprune.metrics.fidelity import (
    FidelityReport,
    evaluate,
    evaluate_images,
    extract_features,
    floor,
    histogram_kl,
)
from ganprune.metrics.macs import (
    compressed_bytes,
    count_nonzero,
    count_parameters,
    effective_macs,
    file_bytes,
    layer_report,
    macs,
    network_sparsity,
    sparsity,
)
from ganprune.metrics.neighbours import density_coverage, precision_recall

__all__ = [
    "ClassifierConfig",
    "ComplexityReport",
    "DigitClassifier",
    "Extractor",
    "FidelityReport",
    "ImageClassifier",
    "Latency",
    "accuracy",
    "complexity",
    "compressed_bytes",
    "count_nonzero",
    "count_parameters",
    "density_coverage",
    "effective_macs",
    "evaluate",
    "evaluate_images",
    "extract_features",
    "fid",
    "file_bytes",
    "floor",
    "histogram_kl",
    "kid",
    "latency",
    "layer_report",
    "load_classifier",
    "load_digit_classifier",
    "load_extractor",
    "macs",
    "network_sparsity",
    "precision_recall",
    "save_classifier",
    "sparsity",
    "train_classifier",
]
