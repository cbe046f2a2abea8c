"""What preference data look like to a model: findings, and how they are shown."""

from adadpo_lightning.data.inspection.findings import Example, Inspection, histogram, inspect_pairs
from adadpo_lightning.data.inspection.show import print_inspection, to_html

__all__ = ["Example", "Inspection", "histogram", "inspect_pairs", "print_inspection", "to_html"]
