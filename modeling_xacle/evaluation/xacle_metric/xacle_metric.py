"""
The metrics of the XACLE challenge as a module of Hugging Face Evaluate:

    metric = evaluate.load("modeling_xacle/evaluation/xacle_metric")  # the path of this folder
    metric.compute(predictions=[2.0, 4.0, 3.0], references=[1.0, 3.0, 5.0])
"""

import datasets
import evaluate

from modeling_xacle.evaluation.metrics import alignment_metrics


class XacleMetric(evaluate.Metric):
    """Agreement of predicted scores with listeners, as `modeling_xacle.evaluation.alignment_metrics` has it."""

    def _info(self) -> evaluate.MetricInfo:
        # float64: Evaluate passes the numbers through Arrow, and float32 would round them.
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description="The metrics of the XACLE challenge: SRCC, LCC, KTAU, MSE and the number of pairs.",
            citation="",
            inputs_description=alignment_metrics.__doc__,
            features=features,
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        """The metrics of all that was added: two lists of shape `(num_pairs,)`."""
        return alignment_metrics(predictions, references)
