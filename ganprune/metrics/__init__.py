"""How good a generator is (``fidelity``) and what a network costs (``cost``), with the features of a classifier."""

from ganprune.metrics.classifier import (
    ClassifierConfig,
    ImageClassifier,
    accuracy,
    train_classifier,
)
from ganprune.metrics.cost import ComplexityReport, Latency, complexity, latency
from ganprune.metrics.extractor import (
    Extractor,
    digit_classifier_path,
    load_classifier,
    load_extractor,
    prepare_extractor,
    read_extractor,
    save_classifier,
)
from ganprune.metrics.fid_kid import fid, kid
from ganprune.metrics.fidelity import (
    METRICS,
    FidelityReport,
    check_evaluation,
    evaluate,
    evaluate_images,
    histogram_kl,
)
from ganprune.metrics.neighbours import density_coverage, precision_recall
from ganprune.metrics.reference import extract_features, floor
from ganprune.metrics.size import (
    compressed_bytes,
    count_nonzero,
    count_parameters,
    file_bytes,
    network_sparsity,
    sparsity,
)
from ganprune.metrics.work import (
    Work,
    effective_macs,
    layer_report,
    macs,
    measure_work,
)

__all__ = [
    "METRICS",
    "ClassifierConfig",
    "ComplexityReport",
    "Extractor",
    "FidelityReport",
    "ImageClassifier",
    "Latency",
    "Work",
    "accuracy",
    "check_evaluation",
    "complexity",
    "compressed_bytes",
    "count_nonzero",
    "count_parameters",
    "density_coverage",
    "digit_classifier_path",
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
    "load_extractor",
    "macs",
    "measure_work",
    "network_sparsity",
    "precision_recall",
    "prepare_extractor",
    "read_extractor",
    "save_classifier",
    "sparsity",
    "train_classifier",
]
